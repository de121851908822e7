//! The runbook of tokens: whichever way they are kept, no proxy is refused, no request fails, and nobody is locked out.

use http::{Method, StatusCode};
use serde_json::json;
use signalbox_tests::control_plane::{ADMIN_TOKEN, PROXY_TOKEN};
use signalbox_tests::{Api, Load, Postgres};

use super::{Site, put, until_served};
use crate::fixture::respond;

const OLD_ADMIN: &str = ADMIN_TOKEN;

/// How a token is kept, and the procedures that add and remove a proxies' one.
struct Kept {
    add: &'static str,
    remove: &'static str,
}

const STORED: Kept =
    Kept { add: "Add a proxies' token to the store", remove: "Remove the old proxies' token from the store" };
const IN_FILES: Kept =
    Kept { add: "Add a proxies' token to the files", remove: "Remove the old proxies' token from the files" };
const IN_FLAGS: Kept =
    Kept { add: "Add a proxies' token to the flags", remove: "Remove the old proxies' token from the flags" };

/// Two control planes and two proxies, whose tokens are in files of each host if `files` says so.
fn site(postgres: &Postgres, files: bool) -> Site {
    let site = Site::new(2, 2);
    site.configure_control_planes(&postgres.url(), "");
    site.configure_proxies("http", "");
    for host in site.control_planes.iter().filter(|_| files) {
        let flags = site.file(host, "/etc/signalbox/control-plane.flags");
        let mut text = std::fs::read_to_string(&flags).unwrap();
        for (flag, token) in [("admin-token", OLD_ADMIN), ("proxy-token", PROXY_TOKEN)] {
            let name = format!("{flag}s");
            let file = site.file(host, &format!("/etc/signalbox/{name}"));
            std::fs::write(&file, format!("{token}\n")).unwrap();
            text = text.replace(&format!("{flag} = {token}"), &format!("{flag}-file = {}", file.display()));
        }
        std::fs::write(flags, text).unwrap();
    }
    site
}

/// The status of a call with a token at each control plane.
async fn statuses(site: &Site, token: &str) -> Vec<StatusCode> {
    let mut found = Vec::new();
    for host in &site.control_planes {
        let api = Api::new(format!("http://{host}:9080"), token).unwrap();
        found.push(api.call(Method::GET, "/session", None).await.unwrap().status);
    }
    found
}

fn new_token(site: &Site) -> String {
    std::fs::read_to_string(site.path("work/new-token")).unwrap().trim().to_owned()
}

async fn rotate_the_proxies_token(site: &mut Site, kept: &Kept) {
    put(&site.api(), "text", &respond("/", "text")).await;
    for proxy in 0..2 {
        until_served(site, proxy, "/", "text").await;
    }
    let load = Load::on([site.http(0), site.http(1)]).start().await.unwrap();
    site.follow("tokens.md", kept.add, &[]).await;
    let new = new_token(site);
    // Both are in force; a proxies' token is known and may do nothing here.
    assert_eq!(statuses(site, &new).await, [StatusCode::FORBIDDEN; 2]);
    site.follow("tokens.md", "Move the proxies", &[]).await;
    site.follow("tokens.md", kept.remove, &[]).await;
    put(&site.api(), "after", &respond("/after", "after")).await;
    for proxy in 0..2 {
        until_served(site, proxy, "/after", "after").await;
    }
    load.finish().assert_flawless(100);
    assert_eq!(statuses(site, &new).await, [StatusCode::FORBIDDEN; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_token_of_the_proxies_in_files_is_rotated_without_a_refused_proxy() {
    let postgres = Postgres::new().unwrap();
    let mut site = site(&postgres, true);
    site.start().await;
    rotate_the_proxies_token(&mut site, &IN_FILES).await;
    assert_eq!(statuses(&site, PROXY_TOKEN).await, [StatusCode::UNAUTHORIZED; 2]);

    site.follow("tokens.md", "Rotate the administrators' token in the files", &[]).await;
    assert_eq!(statuses(&site, OLD_ADMIN).await, [StatusCode::UNAUTHORIZED; 2]);
    assert_eq!(statuses(&site, &new_token(&site)).await, [StatusCode::OK; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_token_of_the_proxies_in_flags_is_rotated_without_a_refused_proxy() {
    let postgres = Postgres::new().unwrap();
    let mut site = site(&postgres, false);
    site.start().await;
    rotate_the_proxies_token(&mut site, &IN_FLAGS).await;
    assert_eq!(statuses(&site, PROXY_TOKEN).await, [StatusCode::UNAUTHORIZED; 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stored_tokens_are_rotated_without_a_refused_proxy_and_nobody_is_locked_out() {
    let postgres = Postgres::new().unwrap();
    let mut site = site(&postgres, false);
    for host in site.control_planes.clone() {
        site.systemctl(&host, &["start", "signalbox-control-plane"]);
    }
    // These are the tokens that the first start without flags would have made.
    let api = site.api();
    let mut stored = Vec::new();
    for (name, role) in [("the-proxies", "proxy"), ("ann", "admin")] {
        let ready = async || {
            let made = api.call(Method::POST, "/tokens", Some(&json!({"name": name, "role": role}))).await;
            let made = made.and_then(signalbox_tests::ApiAnswer::success);
            made.is_ok_and(|made| {
                stored.push(made.body["token"].as_str().unwrap().to_owned());
                true
            })
        };
        assert!(signalbox_tests::eventually(super::DEADLINE, ready).await, "{}", site.logs());
    }
    let [proxies, ann] = stored.try_into().unwrap();
    // The other control plane learns of it a moment later, and would refuse a proxy until then.
    let is_known = async || statuses(&site, &proxies).await == [StatusCode::FORBIDDEN; 2];
    assert!(signalbox_tests::eventually(super::DEADLINE, is_known).await, "{}", site.logs());
    for host in site.proxies.clone() {
        let flags = site.file(&host, "/etc/signalbox/proxy.flags");
        let text = std::fs::read_to_string(&flags).unwrap();
        std::fs::write(flags, text.replace(PROXY_TOKEN, &proxies)).unwrap();
    }
    site.start().await;
    let kept = STORED;
    put(&site.api(), "text", &respond("/", "text")).await;
    let load = Load::on([site.http(0), site.http(1)]).start().await.unwrap();
    let names = [("OLD_NAME", "the-proxies")];
    site.follow("tokens.md", kept.add, &names).await;
    site.follow("tokens.md", "Move the proxies", &names).await;
    site.follow("tokens.md", kept.remove, &names).await;
    put(&site.api(), "after", &respond("/after", "after")).await;
    until_served(&site, 1, "/after", "after").await;
    load.finish().assert_flawless(100);
    assert_eq!(statuses(&site, &proxies).await, [StatusCode::UNAUTHORIZED; 2]);

    let auth = format!("Authorization: Bearer {ann}");
    let variables = [("OLD_NAME", "ann"), ("TOKEN", &ann), ("AUTH", &auth)];
    site.follow("tokens.md", "Rotate an administrator's token in the store", &variables).await;
    assert_eq!(statuses(&site, &ann).await, [StatusCode::UNAUTHORIZED; 2]);
    assert_eq!(statuses(&site, &new_token(&site)).await, [StatusCode::OK; 2]);
}
