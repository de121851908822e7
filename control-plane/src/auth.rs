//! Who may do what: tokens, and the principals they stand for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use signalbox_config::sha256;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::store::{Role, Store, StoreError, TokenRow};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The name of its token; the author of what it does.
    pub name: Arc<str>,
    /// What it may do.
    pub role: Role,
}

/// All tokens, in memory. Looking one up asks no database, and goes on when that is away.
pub struct Tokens {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    by_hash: ArcSwap<HashMap<[u8; 32], Principal>>,
}

/// How soon a token that another replica made or revoked is known here.
const REFRESH: Duration = Duration::from_secs(1);

impl Tokens {
    /// Reads the tokens of the store.
    pub async fn load(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Result<Arc<Self>, StoreError> {
        let tokens = Arc::new(Self { store, metrics, by_hash: ArcSwap::default() });
        tokens.refresh().await?;
        Ok(tokens)
    }

    /// Who presents this text.
    ///
    /// Looked up by its SHA-256, so that the time it takes says nothing of the texts that are known.
    pub fn authenticate(&self, text: &str) -> Option<Principal> {
        self.by_hash.load().get(&sha256(text.as_bytes())).cloned()
    }

    /// Makes a token of a text, stored by its hash; whether the name was free.
    pub async fn create(&self, name: &str, role: Role, text: &TokenText) -> Result<bool, StoreError> {
        let row = TokenRow {
            name: name.to_owned(),
            role,
            hash: sha256(text.0.as_bytes()),
            created_at_us: jiff::Timestamp::now().as_microsecond(),
        };
        let created = self.metrics.store_call("create_token", self.store.create_token(&row)).await?;
        self.refresh().await?;
        Ok(created)
    }

    /// Revokes a token; whether there was one.
    pub async fn revoke(&self, name: &str) -> Result<bool, StoreError> {
        let revoked = self.metrics.store_call("delete_token", self.store.delete_token(name)).await?;
        self.refresh().await?;
        Ok(revoked)
    }

    /// All tokens, by name.
    pub async fn list(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.metrics.store_call("tokens", self.store.tokens()).await
    }

    /// Makes `name` stand for the text that was configured, whatever it stood for before.
    pub async fn ensure(&self, name: &str, role: Role, text: &TokenText) -> Result<(), StoreError> {
        let hash = sha256(text.0.as_bytes());
        let known = self.list().await?.into_iter().find(|row| row.name == name);
        if known.as_ref().is_some_and(|row| row.hash == hash && row.role == role) {
            return Ok(());
        }
        if known.is_some() {
            self.revoke(name).await?;
        }
        self.create(name, role, text).await?;
        Ok(())
    }

    /// Makes a random token unless there is one of this name; its text, which is known only now.
    pub async fn ensure_any(&self, name: &str, role: Role) -> Result<Option<TokenText>, StoreError> {
        if self.list().await?.iter().any(|row| row.name == name) {
            return Ok(None);
        }
        let text = TokenText::random();
        Ok(self.create(name, role, &text).await?.then_some(text))
    }

    /// Follows what other replicas do, until `shutdown`. While the database is away, what was known stays.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(REFRESH) => {}
            }
            if let Err(error) = self.refresh().await {
                tracing::debug!(%error, "tokens were not refreshed");
            }
        }
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        let rows = self.list().await?;
        let by_hash = rows
            .into_iter()
            .map(|row| (row.hash, Principal { name: row.name.into(), role: row.role }))
            .collect();
        self.by_hash.store(Arc::new(by_hash));
        Ok(())
    }
}

/// The text of a token; shown once, and never in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText(pub String);

impl TokenText {
    /// 256 bits from the operating system: `sbx_` and 64 hexadecimal digits.
    pub fn random() -> Self {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).expect("an operating system without randomness cannot run this program");
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sbx_{digits}"))
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(…)")
    }
}
