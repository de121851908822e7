//! The runbook of a failover: the standby lacks a revision, and the procedure says so, and gets it back.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use signalbox_tests::{Load, Postgres, eventually};

use super::{DEADLINE, Site, epoch, put, until_served};
use crate::fixture::respond;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_standby_is_promoted_and_what_it_lacked_is_applied_again() {
    let mut primary = Postgres::new().unwrap();
    let standby = primary.standby().unwrap();
    let url = format!("postgres://postgres@{},{}/postgres", primary.address(), standby.address());
    let mut site = Site::new(2, 2);
    site.configure_control_planes(&url, "");
    site.configure_proxies("http", "");
    site.start().await;
    let kept = put(&site.api(), "kept", &respond("/kept", "kept")).await;
    let has = async || standby.sql("SELECT revision FROM head").is_ok_and(|head| head == kept.to_string());
    assert!(eventually(DEADLINE, has).await);
    // From now on the standby receives nothing, and knows nothing of the next revision.
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    standby.sql("SELECT pg_reload_conf()").unwrap();
    let alone =
        async || primary.sql("SELECT count(*) FROM pg_stat_replication").is_ok_and(|count| count == "0");
    assert!(eventually(DEADLINE, alone).await);
    let lost = put(&site.api(), "lost", &respond("/lost", "lost")).await;
    for proxy in 0..2 {
        until_served(&site, proxy, "/lost", "lost").await;
    }
    let before = epoch(&site, 0).await;
    let load = Load::on([site.http(0), site.http(1)]).request(|_| ask("/kept")).start().await.unwrap();

    primary.kill9();
    let standby_url = standby.url();
    let variables = [("PRIMARY", "db-1"), ("STANDBY_URL", standby_url.as_str())];
    site.follow("failover.md", "Fail over to the standby", &variables).await;
    let numbers = std::fs::read_to_string(site.path("work/lost-revisions")).unwrap();
    assert_eq!(numbers, format!("{lost}\n"));
    for proxy in 0..2 {
        until_served(&site, proxy, "/kept", "kept").await;
        let gone = eventually(DEADLINE, async || super::served(&site, proxy, "/lost").await != "lost");
        assert!(gone.await, "{}", site.logs());
    }
    assert_ne!(epoch(&site, 0).await, before);

    site.follow("failover.md", "Apply what was lost", &variables).await;
    for proxy in 0..2 {
        until_served(&site, proxy, "/lost", "lost").await;
    }
    put(&site.api(), "after", &respond("/after", "after")).await;
    until_served(&site, 1, "/after", "after").await;
    load.finish().assert_flawless(100);
}

fn ask(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "a").body(Full::default()).unwrap()
}
