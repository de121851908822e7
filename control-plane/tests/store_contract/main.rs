//! What every store must do, shown on SQLite and on a real PostgreSQL, and what only one of them can do.

// What the checks call is test code as well, which the linter cannot see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod contract;
mod places;
mod postgres;
mod sqlite;

use places::{OnPostgres, OnSqlite};

/// Makes a test on each kind of database of every check of the contract.
macro_rules! on_both {
    ($($check:ident,)*) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                crate::contract::$check(&crate::OnSqlite::new()).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $check() {
                crate::contract::$check(&crate::OnPostgres::new()).await;
            })*
        }
    };
}

on_both! {
    a_new_store_is_empty,
    what_was_written_is_there_when_it_is_opened_again,
    a_new_epoch_keeps_the_number,
    concurrent_commits_make_a_log_without_gaps,
    a_stale_commit_writes_nothing,
    who_holds_the_head_commits_next,
    a_failed_commit_writes_nothing_and_leaves_no_gap,
    changes_hold_what_was_before_and_after,
    the_time_of_creation_lasts_until_deletion,
    a_set_of_the_past_is_what_the_log_adds_up_to,
    specifications_come_back_byte_for_byte,
    revisions_come_in_pages,
    proxies_are_kept_by_id,
    a_proxy_is_changed_only_by_the_control_plane_that_has_it,
    a_control_plane_that_was_silent_for_long_is_dead_until_it_says_otherwise,
    rollouts_are_kept_by_id,
    tokens_are_kept_by_name,
    sessions_are_kept_and_end_with_their_token,
    what_a_newer_version_wrote_is_kept_as_unknown,
    the_audit_trail_has_commits_and_notes,
    a_dropped_commit_is_there_wholly_or_not_at_all,
    a_hundred_thousand_resources_are_one_commit,
    secrets_cannot_be_read_in_the_database,
    a_secret_is_not_stored_without_a_key,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn commit_latency() {
    println!("SQLite");
    contract::the_latency_of_a_commit(&OnSqlite::new()).await;
    println!("PostgreSQL");
    contract::the_latency_of_a_commit(&OnPostgres::durable()).await;
}
