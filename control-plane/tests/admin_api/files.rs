//! Uploaded files, and the plugins that use them.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use signalbox_config::BlobId;
use signalbox_plugin::{PluginType, Registry};
use signalbox_tests::control_plane::send;

use self::reader::Reader;
use crate::fixture::{Admin, EDITOR, PROXY, VIEWER, expect, expect_status};

#[path = "../../../tests/tests/xds/reader.rs"]
mod reader;

async fn admin() -> Admin {
    let types = signalbox_plugins::types().chain([PluginType::of::<Reader>()]);
    Admin::start_knowing(&Registry::new(types).unwrap()).await
}

async fn upload(admin: &Admin, content: &'static [u8]) -> BlobId {
    let id = BlobId::of(content);
    let answer = admin.raw(Method::PUT, &format!("/blobs/{id}"), "application/wasm", content).await;
    expect(&answer, 201);
    id
}

fn reader(id: BlobId) -> Value {
    json!({"type": "reader", "config": {"file": id}})
}

#[tokio::test]
async fn a_file_is_uploaded_once_listed_downloaded_and_deleted() {
    let admin = admin().await;
    let id = upload(&admin, b"a file\0\xff").await;
    let again = admin.raw(Method::PUT, &format!("/blobs/{id}"), "", &b"a file\0\xff"[..]).await;
    expect(&again, 200);
    assert_eq!(again.body["created_by"], "admin");
    let posted = admin.raw(Method::POST, "/blobs", "application/octet-stream", &b"a file\0\xff"[..]).await;
    expect(&posted, 200);
    assert_eq!(posted.body["sha256"], id.to_string());
    expect(&admin.raw(Method::POST, "/blobs", "", &b""[..]).await, 400);
    // A form would be stored with its own text around the file.
    let form = admin.raw(Method::POST, "/blobs", "multipart/form-data; boundary=x", &b"--x\r\n"[..]).await;
    expect(&form, 415);
    let list = admin.get("/blobs").await.body;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["sha256"], id.to_string());
    assert_eq!(list["items"][0]["size"], 8);
    assert_eq!(list["items"][0]["used_by"], json!([]));
    let url = format!("{}/api/v1/blobs/{id}", admin.url);
    let content = reqwest::Client::new().get(url).bearer_auth(VIEWER).send().await.unwrap();
    assert_eq!(content.headers()["content-type"], "application/octet-stream");
    assert_eq!(content.bytes().await.unwrap(), Bytes::from_static(b"a file\0\xff"));
    expect_status(&admin.delete(&format!("/blobs/{id}")).await, 204);
    for method in [Method::GET, Method::DELETE] {
        expect(&admin.call(method, &format!("/blobs/{id}"), None).await, 404);
    }
    let audit = admin.get("/audit").await.body.to_string();
    assert!(audit.contains("upload file") && audit.contains("delete file"), "{audit}");
}

#[tokio::test]
async fn an_upload_is_what_its_name_says_and_by_an_editor() {
    let admin = admin().await;
    let id = BlobId::of(b"one");
    let other = admin.raw(Method::PUT, &format!("/blobs/{id}"), "", &b"two"[..]).await;
    expect(&other, 422);
    assert_eq!(other.fields(), ["sha256"]);
    assert!(other.message("sha256").contains(&BlobId::of(b"two").to_string()), "{other}");
    let none = admin.raw(Method::PUT, "/blobs/abc", "", &b"two"[..]).await;
    expect(&none, 422);
    assert_eq!(none.fields(), ["sha256"]);
    expect(&admin.raw(Method::PUT, &format!("/blobs/{}", BlobId::of(b"")), "", &b""[..]).await, 400);
    expect(&admin.get("/blobs/abc").await, 404);
    let large = vec![7; BlobId::MAX_SIZE + 1];
    expect(&admin.raw(Method::PUT, &format!("/blobs/{id}"), "", large).await, 413);
    for (token, status) in [(VIEWER, 403), (PROXY, 403), (EDITOR, 201)] {
        let url = format!("{}/api/v1/blobs/{id}", admin.url);
        let put = reqwest::Client::new().put(url).bearer_auth(token).body("one");
        expect(&send(put).await.unwrap(), status);
    }
}

#[tokio::test]
async fn a_plugin_takes_only_files_that_are_there_and_good() {
    let admin = admin().await;
    let good = BlobId::of(b"good");
    let (bad, head) = (upload(&admin, b"bad").await, admin.head());
    for query in ["", "?dry_run=true"] {
        for (id, message) in [(good, "PUT /api/v1/blobs/"), (bad, "is a bad file")] {
            let answer = admin.put(&format!("/plugins/p{query}"), reader(id)).await;
            expect(&answer, 422);
            assert_eq!(answer.fields(), ["config.file"], "{answer}");
            assert!(answer.message("config.file").contains(message), "{answer}");
        }
    }
    let document = json!({"plugins": [{"name": "q", "type": "cors", "config": {"origins": ["*"]}},
        {"name": "p", "type": "reader", "config": {"file": good}}]});
    let answer = admin.post("/apply", document.clone()).await;
    expect(&answer, 422);
    assert_eq!(answer.fields(), ["plugins[1].config.file"], "{answer}");
    assert_eq!(admin.head(), head, "nothing was stored");

    upload(&admin, b"good").await;
    expect(&admin.post("/apply", document).await, 200);
    let used = admin.get("/blobs").await.body;
    assert_eq!(used["items"][0]["used_by"], json!(["p"]), "{used}");
    let kept = admin.delete(&format!("/blobs/{good}")).await;
    expect(&kept, 409);
    assert!(kept.body["detail"].as_str().unwrap().contains("plugins/p"), "{kept}");

    // A revision whose file was deleted meanwhile cannot be brought back.
    let with_file = admin.head();
    expect_status(&admin.delete("/plugins/p").await, 204);
    expect_status(&admin.delete(&format!("/blobs/{good}")).await, 204);
    let back = admin.post(&format!("/revisions/{with_file}/rollback"), json!({})).await;
    expect(&back, 422);
    assert!(back.to_string().contains(&good.to_string()), "{back}");
}
