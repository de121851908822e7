//! All tokens and sessions, in memory.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use signalbox_config::sha256;
use tokio::sync::watch;

use super::given::{GivenToken, TokenFlags};
use super::principal::{Principal, Use};
use super::session::{LIFETIME, Session, binding, micros};
use crate::clock::now_us;
use crate::metrics::Metrics;
use crate::store::{Role, SessionRow, Store, StoreError, TokenRow, TokenSource};

/// All tokens and sessions, in memory. Looking one up asks no database, and goes on when that is away.
pub struct Credentials {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) flags: TokenFlags,
    pub(super) state: ArcSwap<State>,
    /// Held while `state` is replaced by one that is made from it.
    pub(super) replacing: Mutex<()>,
    /// Held from reading the store to replacing the state, so that what was read first does not replace what was
    /// read later.
    pub(super) refreshing: tokio::sync::Mutex<()>,
    /// Ids of sessions that were ended here, and may still be in the store.
    pub(super) ended: Mutex<BTreeSet<String>>,
    /// Told when a token came, went, or changed.
    pub(super) tokens_changed: watch::Sender<()>,
    /// Told of that as well, and when a session came or went.
    pub(super) changed: watch::Sender<()>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) given: Vec<GivenToken>,
    pub(super) stored: Vec<TokenRow>,
    /// By the hash of the text.
    pub(super) tokens: HashMap<[u8; 32], Principal>,
    /// The hashes of stored tokens, by name.
    pub(super) stored_hashes: HashMap<Arc<str>, [u8; 32]>,
    /// By the hash of the cookie.
    pub(super) sessions: HashMap<[u8; 32], Arc<Session>>,
}

/// A session that was opened.
pub struct OpenedSession {
    /// The value that the browser presents: 64 hexadecimal digits.
    pub cookie: String,
}

/// Why the tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Those that are given by hand.
    #[error("{0}")]
    Given(String),
    /// Those that are stored.
    #[error("the tokens cannot be read")]
    Store(#[from] StoreError),
}

impl State {
    fn index(&mut self) {
        let nobody = sha256(b"");
        for GivenToken { name, role, hash, source } in &self.given {
            let principal = Principal { name: name.clone(), role: (*role).into(), source: *source };
            self.tokens.insert(*hash, principal);
        }
        for row in &self.stored {
            let Ok(hash) = <[u8; 32]>::try_from(&*row.hash) else { continue };
            if hash == nobody {
                continue;
            }
            let name: Arc<str> = row.name.as_str().into();
            self.stored_hashes.insert(name.clone(), hash);
            let principal = Principal { name, role: row.role.clone(), source: TokenSource::Stored };
            self.tokens.entry(hash).or_insert(principal);
        }
    }
}

fn of_same_token(one: &SessionRow, other: &SessionRow) -> bool {
    (&one.token, one.token_source) == (&other.token, other.token_source)
}

/// A text that is given by hand and stored as well must not have two roles.
pub(super) fn check_against_stored(given: &[GivenToken], stored: &[TokenRow]) -> Result<(), String> {
    for token in given {
        let same = stored.iter().find(|row| row.hash == token.hash && row.role.known() != Some(token.role));
        if let Some(row) = same {
            return Err(format!(
                "the token that --{}-token gives is stored as {:?} with the role {}; give another, or delete that one",
                token.role,
                row.name,
                row.role.as_str()
            ));
        }
    }
    Ok(())
}

/// The text of a token; shown once, and never in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(pub String);

impl TokenText {
    /// 256 bits from the operating system: `sbx_` and 64 hexadecimal digits.
    pub fn random() -> Self {
        Self(format!("sbx_{}", random_hex()))
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(…)")
    }
}

/// 256 bits from the operating system, as 64 hexadecimal digits.
fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).expect("an operating system without randomness cannot run this program");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The most sessions of one token; beyond, the oldest is ended.
const MAX_SESSIONS: usize = 100;

impl Credentials {
    /// Reads the tokens that are given by `flags`, and the tokens and sessions of the store.
    pub async fn load(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        flags: TokenFlags,
    ) -> Result<Arc<Self>, CredentialsError> {
        let given = flags.read().map_err(CredentialsError::Given)?;
        let credentials = Arc::new(Self {
            store,
            metrics,
            flags,
            state: ArcSwap::default(),
            replacing: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            ended: Mutex::default(),
            tokens_changed: watch::Sender::new(()),
            changed: watch::Sender::new(()),
        });
        credentials.refresh().await?;
        check_against_stored(&given, &credentials.state.load().stored).map_err(CredentialsError::Given)?;
        for role in [Role::Admin, Role::Proxy] {
            let stored = credentials.state.load().stored.iter().any(|row| row.name == role.as_str());
            if stored && given.iter().any(|token| token.role == role) {
                tracing::warn!(
                    token = %role,
                    "a stored token of this name is valid beside those that are given; delete it with \
                     DELETE /api/v1/tokens/{role} when nobody uses it any more"
                );
            }
        }
        credentials.replace(|state| state.given = given);
        Ok(credentials)
    }

    /// Finds the principal of a token.
    ///
    /// Looked up by its SHA-256, so that the time it takes says nothing of the texts that are known. An empty text is
    /// nobody's, whatever is stored.
    pub fn authenticate(&self, text: &str) -> Option<Principal> {
        if text.is_empty() {
            return None;
        }
        self.by_hash(&sha256(text.as_bytes()))
    }

    /// Finds the principal whose token has this hash.
    pub fn by_hash(&self, hash: &[u8; 32]) -> Option<Principal> {
        self.state.load().tokens.get(hash).cloned()
    }

    /// Finds the principal and the session of a cookie. The session stands for its token, so it is nobody's on a replica
    /// that does not have the token.
    pub fn authenticate_session(&self, cookie: &str, how: Use) -> Option<(Principal, Arc<Session>)> {
        let state = self.state.load();
        let session = state.sessions.get(&sha256(cookie.as_bytes()))?;
        let now = now_us();
        if !session.is_open(now) {
            return None;
        }
        let row = session.row();
        let given = state.given.iter().map(|token| &token.hash);
        let hash = given
            .chain(state.stored_hashes.get(row.token.as_str()))
            .find(|hash| binding(cookie, &hash[..]) == row.binding)?;
        let principal = state.tokens.get(hash)?.clone();
        if how == Use::Counts {
            session.use_at(now);
        }
        Some((principal, Arc::clone(session)))
    }

    /// Told when a token or a session came, went, or changed: whoever holds something open for one looks again.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Likewise, of tokens alone: a login wakes no proxy's stream.
    pub fn token_changes(&self) -> watch::Receiver<()> {
        self.tokens_changed.subscribe()
    }

    /// Opens a session for whoever presents the token `text`, who is `principal`.
    pub async fn open_session(&self, text: &str, principal: &Principal) -> Result<OpenedSession, StoreError> {
        let cookie = random_hex();
        let now = now_us();
        let row = SessionRow {
            id: uuid::Uuid::new_v4().simple().to_string(),
            hash: sha256(cookie.as_bytes()),
            token: principal.name.to_string(),
            token_source: principal.source,
            binding: binding(&cookie, &sha256(text.as_bytes())),
            created_at_us: now,
            last_used_at_us: now,
            expires_at_us: now.saturating_add(micros(LIFETIME)),
        };
        let mut same_token: Vec<Arc<Session>> = Vec::new();
        {
            // A read that runs meanwhile does not have it yet.
            let _refreshing = self.refreshing.lock().await;
            self.metrics.store_call("create_session", self.store.create_session(&row)).await?;
            self.replace(|state| {
                let session = Arc::new(Session::of(row.clone()));
                state.sessions.insert(row.hash, session);
                let same = state.sessions.values().filter(|other| of_same_token(other.row(), &row));
                same_token = same.cloned().collect();
            });
        }
        if same_token.len() > MAX_SESSIONS {
            same_token.sort_by_key(|session| session.row().created_at_us);
            let surplus = same_token.len() - MAX_SESSIONS;
            let ids = same_token.iter().take(surplus).map(|session| session.row().id.clone()).collect();
            self.end_sessions(ids).await?;
        }
        Ok(OpenedSession { cookie })
    }

    /// The open sessions, oldest first.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        let now = now_us();
        let mut sessions: Vec<_> =
            self.state.load().sessions.values().filter(|session| session.is_open(now)).cloned().collect();
        sessions
            .sort_by(|a, b| (a.row().created_at_us, &a.row().id).cmp(&(b.row().created_at_us, &b.row().id)));
        sessions
    }

    /// Ends sessions, by id. With the database away they end on this replica at once, and on the others when it is
    /// back, which is tried again until it is done.
    pub async fn end_sessions(&self, ids: Vec<String>) -> Result<(), StoreError> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).extend(ids.iter().cloned());
        self.replace(|state| state.sessions.retain(|_, session| !ids.contains(&session.row().id)));
        self.delete_ended().await
    }

    pub(super) async fn delete_ended(&self) -> Result<(), StoreError> {
        let ids: Vec<String> = {
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.iter().cloned().collect()
        };
        if ids.is_empty() {
            return Ok(());
        }
        // A read that runs meanwhile may still have them.
        let _refreshing = self.refreshing.lock().await;
        self.metrics.store_call("delete_sessions", self.store.delete_sessions(&ids)).await?;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|id| !ids.contains(id));
        Ok(())
    }

    /// Makes a token of a text, stored by its hash; whether the name was free.
    pub async fn create(&self, name: &str, role: Role, text: &TokenText) -> Result<bool, StoreError> {
        let row = TokenRow {
            name: name.to_owned(),
            role: role.into(),
            hash: sha256(text.0.as_bytes()).to_vec(),
            created_at_us: now_us(),
        };
        let created = self.metrics.store_call("create_token", self.store.create_token(&row)).await?;
        self.refresh().await?;
        Ok(created)
    }

    /// Revokes a stored token, and ends what was opened with it; whether there was one.
    pub async fn revoke(&self, name: &str) -> Result<bool, StoreError> {
        let revoked = self.metrics.store_call("delete_token", self.store.delete_token(name)).await?;
        self.refresh().await?;
        Ok(revoked)
    }

    /// The stored tokens, by name.
    pub async fn stored(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.metrics.store_call("tokens", self.store.tokens()).await
    }

    /// The tokens that are given by hand on this replica, administrators' first.
    pub fn given(&self) -> Vec<GivenToken> {
        self.state.load().given.clone()
    }

    /// The names of stored tokens whose role this version does not know.
    pub fn unknown_roles(&self) -> Vec<String> {
        let state = self.state.load();
        let unknown = state.stored.iter().filter(|row| row.role.known().is_none());
        unknown.map(|row| row.name.clone()).collect()
    }

    /// Makes the tokens without which nobody could do anything, and gives their names and texts, which are known only
    /// now: at the first start both, later the administrator's if there is no other.
    pub async fn bootstrap(&self) -> Result<Vec<(&'static str, TokenText)>, StoreError> {
        let stored = self.stored().await?;
        let has_admin = stored.iter().any(|row| row.role.known() == Some(Role::Admin));
        let wanted = [
            ("admin", Role::Admin, !has_admin && !self.flags.gives(Role::Admin)),
            ("proxy", Role::Proxy, stored.is_empty() && !self.flags.gives(Role::Proxy)),
        ];
        let mut made = Vec::new();
        for (name, role, _) in wanted.into_iter().filter(|(_, _, is_wanted)| *is_wanted) {
            let text = TokenText::random();
            // Another control plane may have been faster; then it has printed its own.
            if self.create(name, role, &text).await? {
                made.push((name, text));
            } else if !stored.is_empty() {
                tracing::warn!(
                    name,
                    "no administrator's token is stored, and none is made, for a token of another role has its \
                     name; start with --admin-token"
                );
            }
        }
        Ok(made)
    }

    pub(super) async fn refresh(&self) -> Result<(), StoreError> {
        let _refreshing = self.refreshing.lock().await;
        let stored = self.stored().await?;
        let sessions = self.metrics.store_call("sessions", self.store.sessions()).await?;
        for row in &stored {
            let known = self.state.load().stored.iter().any(|known| known == row);
            if !known && row.role.known().is_none() {
                tracing::warn!(
                    token = row.name,
                    role = row.role.as_str(),
                    "a token has a role that this version does not know, and may do nothing here"
                );
            }
            if !known && row.hash == sha256(b"") {
                tracing::warn!(
                    token = row.name,
                    "the stored text of a token is empty, so it opens nothing; delete it"
                );
            }
        }
        self.replace(|state| {
            state.stored = stored;
            let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = std::mem::take(&mut state.sessions);
            for row in sessions.into_iter().filter(|row| !ended.contains(&row.id)) {
                // Its last use may be known better here.
                let session = match kept.get(&row.hash) {
                    Some(known) if known.row().id == row.id => {
                        known.set_saved(row.last_used_at_us);
                        Arc::clone(known)
                    }
                    _ => Arc::new(Session::of(row)),
                };
                state.sessions.insert(session.row().hash, session);
            }
        });
        Ok(())
    }

    /// Replaces the state by one that `change` makes of it, and tells if that matters to anybody.
    pub(super) fn replace(&self, change: impl FnOnce(&mut State)) {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state.load_full();
        let mut after = State {
            given: before.given.clone(),
            stored: before.stored.clone(),
            sessions: before.sessions.clone(),
            ..State::default()
        };
        change(&mut after);
        after.index();
        let same_tokens = before.tokens == after.tokens;
        let same_sessions = before.sessions.len() == after.sessions.len()
            && before.sessions.keys().all(|hash| after.sessions.contains_key(hash));
        self.state.store(Arc::new(after));
        if !same_tokens {
            self.tokens_changed.send_replace(());
        }
        if !same_tokens || !same_sessions {
            self.changed.send_replace(());
        }
    }
}
