//! Uploaded files reach the proxies whose plugins use them, beside the revisions.

use bytes::Bytes;
use serde_json::json;
use signalbox_config::BlobId;
use signalbox_control_plane::store::BlobRow;
use signalbox_plugin::blobs::BlobSource as _;
use signalbox_plugin::{PluginType, Registry};
use signalbox_proxy::source::BlobDir;

use crate::harness::*;
use crate::reader::Reader;

async fn upload(plane: &Plane, content: &[u8]) -> BlobId {
    let id = BlobId::of(content);
    let row = BlobRow { id, size: content.len() as u64, created_at_us: 0, created_by: "e".to_owned() };
    plane.publisher.files().save(&row, content).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_fetches_a_file_before_it_serves_the_plugin_that_uses_it() {
    let types = Registry::new([PluginType::of::<Reader>()]).unwrap();
    let database = Database::new();
    let plane = Plane::start_with(&database, Settings { types: types.clone(), ..Settings::default() }).await;
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::knowing(&types, &plane.url(), home.path(), "p");
    proxy.until_serves(0).await;
    // More than one message, and more than the window of a stream.
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 11) as u8).collect();
    let id = upload(&plane, &content).await;
    let spec = json!({"name": "r", "type": "reader", "config": {"file": id}});
    let number = plane.put("plugin/r", spec).await;
    proxy.until_serves(number).await;
    let files = BlobDir::new(home.path().join("blobs"));
    assert_eq!(files.get(id), Some(Bytes::from(content)), "it is there before the ACK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_had_is_reported_and_asked_for_again() {
    let types = Registry::new([PluginType::of::<Reader>()]).unwrap();
    let database = Database::new();
    let plane = Plane::start_with(&database, Settings { types: types.clone(), ..Settings::default() }).await;
    let home = tempfile::tempdir().unwrap();
    let id = upload(&plane, b"module").await;
    let spec = json!({"name": "r", "type": "reader", "config": {"file": id}});
    let number = plane.put("plugin/r", spec).await;
    // Nobody may delete it through the API now: it is lost. The control plane that read it still has it.
    let held = plane.store.hold().await.unwrap();
    assert!(plane.store.delete_blob(held, id).await.unwrap());
    plane.stop().await;
    let plane = Plane::start_with(&database, Settings { types: types.clone(), ..Settings::default() }).await;
    let proxy = Proxy::knowing(&types, &plane.url(), home.path(), "p");
    eventually("the proxy says what it lacks", || {
        plane.board.proxy("p").and_then(|proxy| proxy.error).is_some_and(|error| {
            let text = format!("{error:?}");
            text.contains("config.file") && text.contains(&id.to_string())
        })
    })
    .await;
    assert_eq!(proxy.serves(), None);
    upload(&plane, b"module").await;
    proxy.until_serves(number).await;
}
