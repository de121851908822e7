//! The contract of every store, on SQLite and on a real PostgreSQL, and the behaviour of each alone.

// The functions that the checks call are test code as well, which the linter cannot see.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod contract;
mod kept;
mod places;
mod postgres;
mod rollouts;
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
    one_control_plane_leads_and_each_lead_has_its_own_term,
    a_decision_is_made_by_the_leader_and_from_the_one_before,
    a_commit_pins_a_fleet_unless_a_decision_has,
    a_command_is_answered_once_and_in_time,
    an_urgent_revision_is_noted_with_its_commit,
    counts_reach_the_other_control_planes,
    rollouts_that_ran_are_kept_by_id,
    tokens_are_kept_by_name,
    uploaded_files_are_kept_by_their_digest,
    purges_are_numbered_in_order_and_the_newest_are_kept,
    rows_of_traffic_are_read_in_their_order_and_deleted_by_age,
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
