//! A pooler between a control plane and its database.

use signalbox_tests::{ControlPlane, PgBouncer, PoolMode, Postgres};

use crate::fixture::respond;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_pooler_in_session_mode_is_no_matter_and_one_in_transaction_mode_is_refused_at_start() {
    let postgres = Postgres::new().unwrap();
    let pooler = PgBouncer::start(&postgres, PoolMode::Session).unwrap();
    let first = ControlPlane::builder().database(pooler.url()).start().await.unwrap();
    let second = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    // A notification reaches the one behind the pooler, or it reads the head soon.
    let revision = second.api().put("routes", "r", &respond("/r", "here")).await.unwrap();
    first.api().wait_default(revision).await.unwrap();

    let pooler = PgBouncer::start(&postgres, PoolMode::Transaction).unwrap();
    let refused = ControlPlane::builder().database(pooler.url()).start().await;
    let refused = refused.err().map(|error| format!("{error:#}")).expect("it does not start");
    assert!(refused.contains("pooler") && refused.contains("session mode"), "{refused}");
}
