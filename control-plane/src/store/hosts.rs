//! The PostgreSQL servers that a URL names, and which of them is to be used: `postgres://h1:5432,h2:5432/db`, with
//! `target_session_attrs` as libpq has it.
//!
//! <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS>

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgExecutor};
use sqlx::{ConnectOptions, Connection, query_as};
use tokio::time::timeout;

use signalbox_process::ErrorChain;

use super::interface::StoreError;
use super::postgres_error::failed;

/// The servers of a URL.
pub(super) struct Hosts {
    /// As the URL has them, with how to connect to each.
    servers: Vec<Server>,
    wanted: Wanted,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Server {
    /// `HOST:PORT`
    name: String,
    options: PgConnectOptions,
}

/// Which server is used.
#[derive(Debug, Clone, Copy)]
struct Current {
    index: usize,
    /// Since when; `None`: from the start.
    since: Option<Instant>,
}

/// The kind of server that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// It answers.
    Any,
    /// It is no standby, and sessions may write. This is the default, for a control plane cannot do without.
    ReadWrite,
    /// It is no standby.
    Primary,
}

/// Why a server is not used.
enum Unfit {
    ReadOnly,
    Failed(StoreError),
}

impl Hosts {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let (urls, wanted) = split(url).map_err(StoreError::Url)?;
        let servers = urls.into_iter().map(|url| {
            let mut options = PgConnectOptions::from_str(&url)
                .map_err(|error| StoreError::Url(format!("cannot be read: {error}")))?
                .disable_statement_logging();
            if options.get_application_name().is_none() {
                options = options.application_name("signalbox");
            }
            Ok(Server { name: format!("{}:{}", options.get_host(), options.get_port()), options })
        });
        let servers: Vec<_> = servers.collect::<Result<_, StoreError>>()?;
        if servers.is_empty() {
            return Err(StoreError::Url("names no server".into()));
        }
        Ok(Self { servers, wanted, current: Mutex::new(Current { index: 0, since: None }) })
    }

    /// True if there is another server to go to.
    pub(super) fn are_several(&self) -> bool {
        self.servers.len() > 1
    }

    /// How to connect to the server that is used.
    pub(super) fn current(&self) -> PgConnectOptions {
        let index = self.lock().index;
        // The index is always that of a server, and there is one.
        self.servers
            .get(index)
            .or(self.servers.first())
            .map(|server| server.options.clone())
            .unwrap_or_default()
    }

    /// True if a connection of this age is to another server than the one that is used.
    pub(super) fn is_outdated(&self, age: Duration) -> bool {
        self.lock().since.is_some_and(|since| age > since.elapsed())
    }

    /// Connects to the first server that is fit, beginning with the one that is used; that is the one from now on.
    pub(super) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let first = self.lock().index;
        let count = self.servers.len();
        let mut unfit = Vec::with_capacity(count);
        for offset in 0..count {
            let index = (first + offset) % count;
            let Some(server) = self.servers.get(index) else { continue };
            match self.try_server(server).await {
                Ok(connection) => {
                    self.use_server(index);
                    return Ok(connection);
                }
                Err(reason) => unfit.push((&*server.name, reason)),
            }
        }
        Err(why_none(unfit))
    }

    async fn try_server(&self, server: &Server) -> Result<PgConnection, Unfit> {
        let checked = async {
            let mut connection =
                server.options.connect().await.map_err(|error| Unfit::Failed(failed(error)))?;
            let fit = self.is_fit(&mut connection).await.map_err(|error| Unfit::Failed(failed(error)))?;
            if fit {
                Ok(connection)
            } else {
                let _ = connection.close().await;
                Err(Unfit::ReadOnly)
            }
        };
        let deadline = if self.are_several() { CONNECT_ONE } else { CONNECT };
        match timeout(deadline, checked).await {
            Ok(result) => result,
            Err(_) => {
                let text = format!("cannot connect within {deadline:?}");
                Err(Unfit::Failed(StoreError::Unavailable(text.into())))
            }
        }
    }

    fn use_server(&self, index: usize) {
        let mut current = self.lock();
        if current.index != index {
            *current = Current { index, since: Some(Instant::now()) };
            drop(current);
            let server = self.servers.get(index).map_or("", |server| &*server.name);
            tracing::warn!(server, "the database is at another server now");
        }
    }

    /// Checks that the server of a connection may be used, or used further.
    pub(super) async fn is_fit(&self, connection: impl PgExecutor<'_>) -> Result<bool, sqlx::Error> {
        if self.wanted == Wanted::Any {
            return query_as::<_, (i32,)>("SELECT 1").fetch_one(connection).await.map(|_| true);
        }
        let (standby, read_only) = match query_as(SESSION).fetch_one(connection).await {
            Ok(answer) => answer,
            // A database that only speaks like PostgreSQL has no standbys either.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NO_SUCH_FUNCTION) => {
                (false, false)
            }
            Err(error) => return Err(error),
        };
        Ok(!(standby || read_only && self.wanted == Wanted::ReadWrite))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn why_none(mut unfit: Vec<(&str, Unfit)>) -> StoreError {
    if unfit.iter().any(|(_, reason)| matches!(reason, Unfit::ReadOnly)) {
        return StoreError::ReadOnly;
    }
    if unfit.len() == 1
        && let Some((_, Unfit::Failed(error))) = unfit.pop()
    {
        return error;
    }
    let mut texts = Vec::with_capacity(unfit.len());
    let mut all_broken = true;
    for (name, reason) in unfit {
        if let Unfit::Failed(error) = reason {
            all_broken &= matches!(error, StoreError::Broken(_));
            texts.push(format!("{name}: {}", ErrorChain(&error)));
        }
    }
    let text = texts.join("; ");
    if all_broken { StoreError::Broken(text) } else { StoreError::Unavailable(text.into()) }
}

/// One URL for each server, and what a server must be.
fn split(url: &str) -> Result<(Vec<String>, Wanted), String> {
    let (scheme, rest) = url.split_once("://").ok_or("has no ://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let mut wanted = Wanted::ReadWrite;
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("target_session_attrs", value) => {
                wanted = match value {
                    "any" => Wanted::Any,
                    "read-write" => Wanted::ReadWrite,
                    "primary" => Wanted::Primary,
                    other => {
                        return Err(format!(
                            "has target_session_attrs={other:?}; known are read-write, primary and any, for a \
                             control plane writes"
                        ));
                    }
                };
            }
            ("host" | "hostaddr" | "port", value) if value.contains(',') || value.contains("%2C") => {
                return Err("must name several servers before the path: postgres://h1:5432,h2:5432/db".into());
            }
            _ => kept.push(pair),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    let hosts: Vec<&str> = hosts.split(',').collect();
    if hosts.len() > 1 && hosts.iter().any(|host| host.is_empty()) {
        return Err("has a server without a name".into());
    }
    if hosts.len() > MAX_SERVERS {
        return Err(format!("names more than {MAX_SERVERS} servers"));
    }
    Ok((hosts.iter().map(|host| format!("{scheme}://{user}{host}{path}{query}")).collect(), wanted))
}

const SESSION: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";

const NO_SUCH_FUNCTION: &str = "42883";

/// To connect, where there is one server.
const CONNECT: Duration = Duration::from_secs(5);
/// To connect to one of several.
const CONNECT_ONE: Duration = Duration::from_secs(2);
const MAX_SERVERS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(url: &str) -> Vec<String> {
        split(url).unwrap().0
    }

    #[test]
    fn a_url_names_one_server_or_several() {
        assert_eq!(urls("postgres://u:p@h/db"), ["postgres://u:p@h/db"]);
        assert_eq!(
            urls("postgresql://u:p,w@h1:1,h2,[::1]:3/db?sslmode=require&target_session_attrs=any"),
            [
                "postgresql://u:p,w@h1:1/db?sslmode=require",
                "postgresql://u:p,w@h2/db?sslmode=require",
                "postgresql://u:p,w@[::1]:3/db?sslmode=require",
            ]
        );
        assert_eq!(urls("postgres://h1,h2"), ["postgres://h1", "postgres://h2"]);
        let hosts = Hosts::parse("postgres://u@h1:1,h2,[::1]:3/db?connect_timeout=3").unwrap();
        let names: Vec<_> = hosts.servers.iter().map(|server| &*server.name).collect();
        assert_eq!(names, ["h1:1", "h2:5432", "[::1]:3"]);
    }

    #[test]
    fn the_default_is_a_server_that_takes_writes() {
        for (query, wanted) in [
            ("", Wanted::ReadWrite),
            ("?target_session_attrs=read-write", Wanted::ReadWrite),
            ("?target_session_attrs=primary", Wanted::Primary),
            ("?x=y&target_session_attrs=any", Wanted::Any),
        ] {
            assert_eq!(split(&format!("postgres://h/db{query}")).unwrap().1, wanted, "{query}");
        }
    }

    #[test]
    fn what_cannot_be_is_an_error_that_says_so() {
        for (url, expected) in [
            ("postgres://h/db?target_session_attrs=standby", "\"standby\"; known are"),
            ("postgres://h/db?target_session_attrs=", "\"\"; known are"),
            ("postgres://h1,,h2/db", "a server without a name"),
            ("postgres:///db?host=h1,h2", "before the path"),
            ("postgres:db", "no ://"),
        ] {
            let error = split(url).unwrap_err();
            assert!(error.contains(expected), "{url}: {error}");
        }
    }
}
