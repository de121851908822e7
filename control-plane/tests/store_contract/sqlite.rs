//! SQLite beyond the contract: files.

use std::path::{Path, PathBuf};
use std::process::Command;

use signalbox_control_plane::store::{self, StoreError};

use crate::contract::put;
use crate::places::{OnSqlite, Place};

#[tokio::test]
async fn the_directory_of_the_file_is_made_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a/b");
    open(&new.join("store.db")).await.unwrap();
    assert!(new.join("store.db").is_file());
    assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_relative_path_starts_at_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    let up: PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
    let relative = up.join(file.strip_prefix("/").unwrap());
    assert!(relative.is_relative());
    open(&relative).await.unwrap();
    assert!(file.is_file());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "not a database at all, but long enough to be looked at as one. ".repeat(20))
        .unwrap();
    let before = std::fs::read(&file).unwrap();
    assert_broken(open(&file).await, "notes.txt is not a SQLite database");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn another_programs_database_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.db");
    sql(&file, "CREATE TABLE theirs (x)").await;
    let before = std::fs::read(&file).unwrap();
    assert_broken(open(&file).await, "other.db is a SQLite database of another program");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_says_that_this_version_can_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    open(&file).await.unwrap();
    sql(&file, "PRAGMA user_version = 99").await;
    sql(&file, "UPDATE schema_compatibility SET oldest = 99").await;
    let refused = open(&file).await;
    assert_broken(refused, "has schema version 99, made by a newer Signalbox; this one knows 8");
    // One that only added to the tables says so.
    sql(&file, "UPDATE schema_compatibility SET oldest = 3").await;
    assert_eq!(open(&file).await.unwrap().head().await.unwrap().number, 0);
    // A version that says nothing is not to be trusted.
    sql(&file, "DROP TABLE schema_compatibility").await;
    assert_broken(open(&file).await, "has schema version 99");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    assert_broken(open(&dir.path().join("file/data/store.db")).await, "file/data cannot be made");
}

#[tokio::test]
async fn a_url_without_a_file_is_refused() {
    for url in ["sqlite::memory:", "sqlite://", "sqlite://x.db?mode=memory"] {
        assert_eq!(url_error(url).await, "the database URL names no file");
    }
}

#[tokio::test]
async fn a_url_of_a_wrong_scheme_is_refused_by_its_scheme_and_without_its_password() {
    for (url, why) in [
        ("mysql://ann:secret-1@localhost/x", "has the scheme \"mysql\""),
        ("Postgres://ann:secret-1@localhost/x", "has the scheme \"Postgres\""),
        ("ann:secret-1@localhost/x", "has no scheme"),
        ("secret-1", "has no scheme"),
        ("postgres://ann:secret-1@localhost:many/x", "cannot be read: "),
    ] {
        let error = url_error(url).await;
        assert!(error.starts_with(&format!("the database URL {why}")), "{error}");
        assert!(!error.contains("secret"), "{error}");
        let names_those_that_work =
            error.contains("sqlite://PATH") && error.contains("postgres://USER:PASSWORD@HOST");
        assert!(names_those_that_work || !why.contains("scheme"), "{error}");
    }
}

async fn url_error(url: &str) -> String {
    match store::open(url).await {
        Err(error @ StoreError::Url(_)) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("{url} was opened"),
    }
}

#[tokio::test]
async fn a_lock_that_another_process_keeps_is_unavailable() {
    let place = OnSqlite::new();
    let store = place.open().await;
    put(&*store, 0, &[("route/a", "1")]).await;

    let mut other = connect(&place.file()).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let error = store.append_audit("ann", "x", "").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    // Reading goes on meanwhile.
    assert_eq!(store.head().await.unwrap().number, 1);
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(put(&*store, 1, &[("route/a", "2")]).await, 2);
}

#[tokio::test]
async fn the_key_for_secrets_is_made_beside_the_file_and_missed() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = OnSqlite::new();
    let path = store::key_beside(&place.url()).unwrap();
    assert_eq!(path, PathBuf::from(format!("{}.secrets-key", place.file().display())));
    let made = || store::KeySource::Made(path.clone());
    store::seal(place.open().await, made()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    store::seal(place.open().await, made()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    std::fs::remove_file(&path).unwrap();
    assert_broken(store::seal(place.open().await, made()).await, "which is gone");
    assert!(!path.exists(), "no other is made in its place");
    store::seal(place.open().await, store::KeySource::Given(text)).await.unwrap();
    assert!(store::key_beside("postgres://localhost/x").is_none());
}

/// This test program runs itself as the writer, and kills it.
#[tokio::test]
async fn a_killed_writer_leaves_every_commit_that_it_was_told_of() {
    let place = OnSqlite::new();
    if let Ok(url) = std::env::var(WRITE_TO) {
        let store = store::open(&url).await.unwrap();
        for base in store.head().await.unwrap().number.. {
            let spec = format!("{base}");
            let number = put(&*store, base, &[("route/a", &spec), ("route/b", &spec)]).await;
            println!("{TOLD}{number}");
        }
    }
    let mut told = 0;
    for _ in 0..5 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sqlite::a_killed_writer_leaves_every_commit_that_it_was_told_of",
                "--nocapture",
            ])
            .env(WRITE_TO, place.url())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(writer.stdout.take().unwrap());
        let enough = told + fastrand::u64(1..40);
        for line in std::io::BufRead::lines(output) {
            let line = line.unwrap();
            let Some((_, number)) = line.split_once(TOLD) else { continue };
            told = number.parse().unwrap();
            if told >= enough {
                writer.kill().unwrap();
            }
        }
        assert!(!writer.wait().unwrap().success());
        assert!(told >= enough, "it was to be killed, and did not end by itself");

        let store = place.open().await;
        let head = store.head().await.unwrap().number;
        assert!(head == told || head == told + 1, "told of {told}, the head is {head}");
        let log = store.revisions_after(0, 1_000).await.unwrap();
        assert!(log.iter().map(|revision| revision.summary.number).eq(1..=head));
        assert!(log.iter().all(|revision| revision.changes.len() == 2));
        assert_eq!(
            store.load().await.unwrap().resources,
            store.set_at(head).await.unwrap().unwrap().resources
        );
    }
}

const WRITE_TO: &str = "SIGNALBOX_TEST_WRITE_TO";
const TOLD: &str = "told of ";

impl OnSqlite {
    fn file(&self) -> PathBuf {
        self.url().trim_start_matches("sqlite://").into()
    }
}

async fn open(file: &Path) -> Result<std::sync::Arc<dyn store::Store>, StoreError> {
    store::open(&format!("sqlite://{}", file.display())).await
}

async fn connect(file: &Path) -> sqlx::SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).create_if_missing(true);
    sqlx::ConnectOptions::connect(&options).await.unwrap()
}

async fn sql(file: &Path, statement: &'static str) {
    let mut connection = connect(file).await;
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
}

fn assert_broken<T>(result: Result<T, StoreError>, expected: &str) {
    match result {
        Err(StoreError::Broken(message)) => assert!(message.contains(expected), "{message:?}"),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it was opened"),
    }
}
