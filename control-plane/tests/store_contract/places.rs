//! Databases for a test.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use signalbox_control_plane::store::{self, Store};
use signalbox_tests::Postgres;
use signalbox_tests::postgres::Durability;
use tempfile::TempDir;

/// An empty database, which can be opened more than once.
#[async_trait]
pub(crate) trait Place: Send + Sync {
    fn url(&self) -> String;

    /// All that is in it, as somebody sees it who has the disk or a dump.
    fn raw(&self) -> Vec<u8>;

    /// Runs a statement in it.
    async fn run(&self, statement: &str);

    /// Opens it, as one more control plane would.
    async fn open(&self) -> Arc<dyn Store> {
        store::open(&self.url()).await.unwrap()
    }
}

/// A file.
pub(crate) struct OnSqlite {
    dir: TempDir,
}

impl OnSqlite {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
}

#[async_trait]
impl Place for OnSqlite {
    fn url(&self) -> String {
        format!("sqlite://{}/store.db", self.dir.path().display())
    }

    fn raw(&self) -> Vec<u8> {
        let files = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        files.flat_map(|file| std::fs::read(file).unwrap()).collect()
    }

    async fn run(&self, statement: &str) {
        let mut connection =
            <sqlx::SqliteConnection as sqlx::Connection>::connect(&self.url()).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
    }
}

/// A database of the server that the tests running at the time share.
pub(crate) struct OnPostgres {
    server: Arc<Postgres>,
    url: String,
    database: String,
}

impl OnPostgres {
    pub(crate) fn new() -> Self {
        static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        let server = shared.upgrade().unwrap_or_else(|| Arc::new(Postgres::new().unwrap()));
        *shared = Arc::downgrade(&server);
        Self::on(server)
    }

    /// On a server of its own that waits for the disk.
    pub(crate) fn durable() -> Self {
        Self::on(Arc::new(Postgres::with(Durability::Machine).unwrap()))
    }

    fn on(server: Arc<Postgres>) -> Self {
        static DATABASES: AtomicU32 = AtomicU32::new(0);
        let database = format!("store{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let url = server.database(&database).unwrap();
        Self { server, url, database }
    }

    /// Runs a statement in the database.
    pub(crate) fn sql(&self, statement: &str) -> String {
        self.server.sql_in(&self.database, statement).unwrap()
    }
}

#[async_trait]
impl Place for OnPostgres {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn raw(&self) -> Vec<u8> {
        let tables = ["resources", "resource_versions", "revisions", "audit", "secrets"];
        let rows = |table: &str| {
            // A row as text has its bytes in hexadecimal digits.
            let text = self.sql(&format!("COPY (SELECT * FROM {table}) TO STDOUT"));
            text.split("\\\\x").flat_map(from_hex).collect::<Vec<u8>>()
        };
        tables.into_iter().flat_map(rows).collect()
    }

    async fn run(&self, statement: &str) {
        self.sql(statement);
    }
}

/// The bytes of the digits that `text` begins with, and then the rest as it is.
fn from_hex(text: &str) -> Vec<u8> {
    let end = text.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let pairs = digits.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).chain(rest.bytes()).collect()
}
