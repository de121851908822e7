//! Plugin types of one's own: both planes are started with the registry of `examples/custom-plugins`.

use serde_json::json;
use signalbox_plugins::builtin;

use crate::harness::*;

#[path = "../../../examples/custom-plugins/acme-plugins/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is written for a crate of its own")]
mod acme;

#[tokio::test(flavor = "multi_thread")]
async fn a_type_of_ones_own_reaches_the_proxies_that_know_it() {
    let database = Database::new();
    let acme = acme::registry().unwrap();
    let plane = Plane::start_with(&database, Settings { types: acme.clone(), ..Settings::default() }).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let new = Proxy::knowing(&acme, &plane.url(), dirs[0].path(), "new");
    let old = Proxy::knowing(builtin(), &plane.url(), dirs[1].path(), "old");
    for proxy in [&new, &old] {
        proxy.until_serves(0).await;
    }
    assert_eq!(plane.board.proxies_without("stamp", |fleet| fleet == "default"), 1);
    assert_eq!(plane.board.proxies_without("stamp", |_| false), 0);
    assert_eq!(plane.board.proxies_without("cors", |_| true), 0);
    let number =
        plane.put("plugin/s", json!({"name": "s", "type": "stamp", "config": {"header": "x-n"}})).await;
    new.until_serves(number).await;
    eventually("the other rejects it by name", || {
        plane.board.proxy("old").and_then(|proxy| proxy.error).is_some_and(|error| {
            let text = format!("{error:?}");
            text.contains("unknown plugin type") && text.contains("stamp")
        })
    })
    .await;
    // It is there after a restart without a control plane, too.
    new.stop().await.unwrap();
    let url = plane.url();
    plane.stop().await;
    let new = Proxy::knowing(&acme, &url, dirs[0].path(), "new");
    new.until_serves(number).await;
}
