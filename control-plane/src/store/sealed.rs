//! Secrets at rest: a specification that holds one is encrypted on its way into the store, and decrypted on its way out.
//!
//! The whole specification is: AES-256-GCM with a random nonce for each, bound to the resource's kind and name, so that
//! none can be put in the place of another. Canonical JSON begins with a brace, what is encrypted with [`VERSION`].

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use signalbox_config::{BlobId, ResourceKey, RevisionId};
use tokio::sync::Notify;

use super::access_row::{AuditRow, SessionRow, TokenRow};
use super::blob_row::BlobRow;
use super::hint::ProxyHints;
use super::interface::{BlobStore, Held, PurgeStore, RolloutStore, StatsStore, Store, StoreError};
use super::proxy_row::{ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp};
use super::purge_row::PurgeRow;
use super::revision::{
    Committed, Loaded, NewChange, NewRevision, Revision, RevisionSummary, StoredResource, StoredSet,
};
use super::rollout_row::{
    Command, CountsRow, Decided, Decisions, FleetState, FleetTargets, RolloutRun, Term, UrgentRevision,
};
use super::stats_row::StatsRow;

/// A key for secrets: 256 bits.
pub struct SecretsKey(LessSafeKey);

/// Where the key for secrets comes from.
#[derive(Debug)]
pub enum KeySource {
    /// As it was given: 64 hexadecimal digits.
    Given(String),
    /// A file, which is made when it is not there.
    Made(PathBuf),
    /// There is none, so no secret can be stored.
    None,
}

/// A store that keeps secrets encrypted.
struct Sealed {
    inner: Arc<dyn Store>,
    key: Option<SecretsKey>,
}

/// The first byte of what is encrypted.
const VERSION: u8 = 1;

/// A text that is encrypted to tell later if a key is the same.
const CHECK: &[u8] = b"signalbox";

/// Makes `store` keep secrets encrypted with the key of `source`, which must be the one it was used with before.
pub async fn seal(store: Arc<dyn Store>, source: KeySource) -> Result<Arc<dyn Store>, StoreError> {
    let known = store.key_check().await?;
    let key = match source {
        KeySource::Given(text) => Some(SecretsKey::parse(&text)?),
        KeySource::Made(path) => Some(read_or_make(&path, known.is_some())?),
        KeySource::None if known.is_some() => {
            return Err(StoreError::Broken(
                "secrets in it are encrypted; their key is needed: --secrets-key or --secrets-key-file"
                    .into(),
            ));
        }
        KeySource::None => None,
    };
    if let Some(key) = &key {
        let known = match known {
            Some(known) => known,
            // Another control plane may be faster; then its key counts.
            None => store.keep_key_check(&key.seal(CHECK, CHECK)?).await?,
        };
        if key.open(&known, CHECK).is_none_or(|opened| opened != CHECK) {
            return Err(StoreError::Broken(
                "its secrets are encrypted with another key than that of --secrets-key or --secrets-key-file"
                    .into(),
            ));
        }
    }
    Ok(Arc::new(Sealed { inner: store, key }))
}

impl SecretsKey {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        let digit = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = (0..64).step_by(2).map(digit).collect();
        let valid = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        bytes
            .filter(|_| valid)
            .and_then(|bytes| UnboundKey::new(&AES_256_GCM, &bytes).ok())
            .map(|key| Self(LessSafeKey::new(key)))
            .ok_or_else(|| {
                StoreError::Broken(
                    "the key of --secrets-key or --secrets-key-file must be 64 hexadecimal digits (openssl rand -hex 32)".into(),
                )
            })
    }

    fn seal(&self, plain: &[u8], bound_to: &[u8]) -> Result<Vec<u8>, StoreError> {
        let failed = || StoreError::Broken("a secret cannot be encrypted".into());
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| failed())?;
        let mut text = plain.to_vec();
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound_to), &mut text)
            .map_err(|_| failed())?;
        Ok([&[VERSION][..], &nonce, &text, tag.as_ref()].concat())
    }

    fn open(&self, sealed: &[u8], bound_to: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.strip_prefix(&[VERSION])?.split_first_chunk::<NONCE_LEN>()?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self.0.open_in_place(nonce, Aad::from(bound_to), &mut text).ok()?.len();
        text.truncate(length);
        Some(text)
    }
}

fn read_or_make(path: &Path, in_use: bool) -> Result<SecretsKey, StoreError> {
    let shown = path.display();
    match fs::read_to_string(path) {
        Ok(text) => SecretsKey::parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound && in_use => Err(StoreError::Broken(format!(
            "secrets in it are encrypted with the key in {shown}, which is gone: put it back, or give it with --secrets-key"
        ))),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let mut key = [0; 32];
            let made = getrandom::fill(&mut key).map_err(|error| error.to_string()).and_then(|()| {
                let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                let mut options = fs::OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(|it| it.to_string())?;
                writeln!(file, "{digits}").and_then(|()| file.sync_all()).map_err(|it| it.to_string())?;
                Ok(digits)
            });
            let digits = made.map_err(|error| {
                StoreError::Broken(format!("a key for its secrets cannot be made at {shown}: {error}"))
            })?;
            SecretsKey::parse(&digits)
        }
        Err(error) => Err(StoreError::Broken(format!("the key in {shown} cannot be read: {error}"))),
    }
}

impl Sealed {
    /// Encrypts the secrets of a revision.
    fn close(&self, mut revision: NewRevision) -> Result<NewRevision, StoreError> {
        for change in &mut revision.changes {
            if let Some(spec) = &mut change.spec
                && change.key.kind.holds_secret(spec)
            {
                let key = self.key.as_ref().ok_or(StoreError::NoSecretsKey)?;
                *spec = key.seal(spec, change.key.to_string().as_bytes())?.into();
            }
        }
        Ok(revision)
    }

    fn open(&self, key: &ResourceKey, stored: Bytes) -> Result<Bytes, StoreError> {
        if stored.first() != Some(&VERSION) {
            return Ok(stored);
        }
        let opened = self.key.as_ref().and_then(|secret| secret.open(&stored, key.to_string().as_bytes()));
        opened.map(Bytes::from).ok_or_else(|| {
            StoreError::Broken(format!("{key} is encrypted with another key, or was changed in the database"))
        })
    }

    fn open_all(&self, resources: &mut [StoredResource]) -> Result<(), StoreError> {
        for resource in resources {
            resource.spec = self.open(&resource.key, std::mem::take(&mut resource.spec))?;
        }
        Ok(())
    }

    fn open_revision(&self, revision: &mut Revision) -> Result<(), StoreError> {
        for change in &mut revision.changes {
            for spec in [&mut change.before, &mut change.after].into_iter().flatten() {
                *spec = self.open(&change.key, std::mem::take(spec))?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl RolloutStore for Sealed {
    async fn fleet_targets(&self, known: u64) -> Result<Option<FleetTargets>, StoreError> {
        self.inner.fleet_targets(known).await
    }

    async fn lead(&self, holder: &str, lease: Duration) -> Result<Option<Term>, StoreError> {
        self.inner.lead(holder, lease).await
    }

    async fn leader(&self) -> Result<Option<String>, StoreError> {
        self.inner.leader().await
    }

    async fn step_down(&self, holder: &str, term: Term) -> Result<(), StoreError> {
        self.inner.step_down(holder, term).await
    }

    async fn decide(&self, holder: &str, term: Term, decisions: &Decisions) -> Result<Decided, StoreError> {
        self.inner.decide(holder, term, decisions).await
    }

    async fn unfinished_runs(&self) -> Result<Vec<RolloutRun>, StoreError> {
        self.inner.unfinished_runs().await
    }

    async fn rollout_run(&self, id: &str) -> Result<Option<RolloutRun>, StoreError> {
        self.inner.rollout_run(id).await
    }

    async fn urgent_revisions(&self, number: u64) -> Result<Vec<UrgentRevision>, StoreError> {
        self.inner.urgent_revisions(number).await
    }

    async fn add_command(&self, fleet: &str, command: &str, lifetime: Duration) -> Result<u64, StoreError> {
        self.inner.add_command(fleet, command, lifetime).await
    }

    async fn commands(&self) -> Result<Vec<Command>, StoreError> {
        self.inner.commands().await
    }

    async fn command_answer(&self, id: u64) -> Result<Option<String>, StoreError> {
        self.inner.command_answer(id).await
    }

    async fn add_counts(&self, instance: &str, counts: &str) -> Result<(), StoreError> {
        self.inner.add_counts(instance, counts).await
    }

    async fn counts_after(&self, instance: &str, id: Option<u64>) -> Result<Vec<CountsRow>, StoreError> {
        self.inner.counts_after(instance, id).await
    }

    async fn delete_old_rollout_rows(&self) -> Result<(), StoreError> {
        self.inner.delete_old_rollout_rows().await
    }

    async fn cancel_command(&self, id: u64) -> Result<bool, StoreError> {
        self.inner.cancel_command(id).await
    }

    async fn rollout_runs(&self, fleet: Option<&str>, limit: u32) -> Result<Vec<RolloutRun>, StoreError> {
        self.inner.rollout_runs(fleet, limit).await
    }

    async fn fleet_states(&self) -> Result<Vec<FleetState>, StoreError> {
        self.inner.fleet_states().await
    }
}

#[async_trait]
impl BlobStore for Sealed {
    async fn save_blob(&self, row: &BlobRow, content: &[u8]) -> Result<bool, StoreError> {
        self.inner.save_blob(row, content).await
    }

    async fn blob(&self, id: BlobId) -> Result<Option<Bytes>, StoreError> {
        self.inner.blob(id).await
    }

    async fn blobs(&self) -> Result<Vec<BlobRow>, StoreError> {
        self.inner.blobs().await
    }

    async fn delete_blob(&self, held: Held, id: BlobId) -> Result<bool, StoreError> {
        self.inner.delete_blob(held, id).await
    }
}

#[async_trait]
impl PurgeStore for Sealed {
    async fn add_purge(&self, at_us: i64, purge: &str, created_by: &str) -> Result<u64, StoreError> {
        self.inner.add_purge(at_us, purge, created_by).await
    }

    async fn last_purge(&self) -> Result<u64, StoreError> {
        self.inner.last_purge().await
    }

    async fn purges_after(&self, after: u64) -> Result<Vec<PurgeRow>, StoreError> {
        self.inner.purges_after(after).await
    }
}

#[async_trait]
impl StatsStore for Sealed {
    async fn save_stats_row(&self, row: &StatsRow) -> Result<(), StoreError> {
        self.inner.save_stats_row(row).await
    }

    async fn stats_rows_of(
        &self,
        resolution: u64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StatsRow>, StoreError> {
        self.inner.stats_rows_of(resolution, after, limit).await
    }

    async fn stats_rows_after(
        &self,
        after: i64,
        except: &str,
        limit: u32,
    ) -> Result<Vec<StatsRow>, StoreError> {
        self.inner.stats_rows_after(after, except, limit).await
    }

    async fn delete_stats_rows(&self, resolution: u64, before: u64) -> Result<(), StoreError> {
        self.inner.delete_stats_rows(resolution, before).await
    }
}

#[async_trait]
impl Store for Sealed {
    async fn head(&self) -> Result<RevisionId, StoreError> {
        self.inner.head().await
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    async fn load(&self) -> Result<Loaded, StoreError> {
        let mut loaded = self.inner.load().await?;
        self.open_all(&mut loaded.resources)?;
        Ok(loaded)
    }

    async fn revisions_after(&self, number: u64, limit: u32) -> Result<Vec<Revision>, StoreError> {
        let mut revisions = self.inner.revisions_after(number, limit).await?;
        revisions.iter_mut().try_for_each(|revision| self.open_revision(revision))?;
        Ok(revisions)
    }

    async fn commit(&self, base: u64, revision: NewRevision) -> Result<Committed, StoreError> {
        self.inner.commit(base, self.close(revision)?).await
    }

    fn check(&self, changes: &[NewChange]) -> Result<(), StoreError> {
        let is_secret =
            |change: &NewChange| change.spec.as_ref().is_some_and(|spec| change.key.kind.holds_secret(spec));
        if self.key.is_none() && changes.iter().any(is_secret) {
            return Err(StoreError::NoSecretsKey);
        }
        self.inner.check(changes)
    }

    async fn hold(&self) -> Result<Held, StoreError> {
        self.inner.hold().await
    }

    async fn commit_held(
        &self,
        held: Held,
        base: u64,
        revision: NewRevision,
    ) -> Result<Committed, StoreError> {
        self.inner.commit_held(held, base, self.close(revision)?).await
    }

    async fn revisions(&self, before: Option<u64>, limit: u32) -> Result<Vec<RevisionSummary>, StoreError> {
        self.inner.revisions(before, limit).await
    }

    async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        let mut revision = self.inner.revision(number).await?;
        revision.iter_mut().try_for_each(|revision| self.open_revision(revision))?;
        Ok(revision)
    }

    async fn set_at(&self, number: u64) -> Result<Option<StoredSet>, StoreError> {
        let mut set = self.inner.set_at(number).await?;
        set.iter_mut().try_for_each(|set| self.open_all(&mut set.resources))?;
        Ok(set)
    }

    fn hint(&self) -> Arc<Notify> {
        self.inner.hint()
    }

    fn access_hint(&self) -> Arc<Notify> {
        self.inner.access_hint()
    }

    fn purge_hint(&self) -> Arc<Notify> {
        self.inner.purge_hint()
    }

    async fn new_epoch(&self) -> Result<RevisionId, StoreError> {
        self.inner.new_epoch().await
    }

    async fn save_proxies(&self, rows: &ProxyRows) -> Result<(), StoreError> {
        self.inner.save_proxies(rows).await
    }

    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError> {
        self.inner.proxies().await
    }

    async fn proxies_of(&self, ids: &[String]) -> Result<Vec<ProxyRow>, StoreError> {
        self.inner.proxies_of(ids).await
    }

    async fn proxy_stamps(&self) -> Result<Vec<(String, Stamp)>, StoreError> {
        self.inner.proxy_stamps().await
    }

    fn proxy_hints(&self) -> Arc<ProxyHints> {
        self.inner.proxy_hints()
    }

    async fn renew_replica(&self, instance: &str, lease: Duration) -> Result<bool, StoreError> {
        self.inner.renew_replica(instance, lease).await
    }

    async fn save_replica(&self, instance: &str, name: &str) -> Result<(), StoreError> {
        self.inner.save_replica(instance, name).await
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        self.inner.replicas().await
    }

    async fn delete_replica(&self, instance: &str) -> Result<(), StoreError> {
        self.inner.delete_replica(instance).await
    }

    async fn delete_proxy(&self, id: &str) -> Result<bool, StoreError> {
        self.inner.delete_proxy(id).await
    }

    async fn save_rollouts(&self, rollouts: &[RolloutRow]) -> Result<(), StoreError> {
        self.inner.save_rollouts(rollouts).await
    }

    async fn rollouts(&self, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
        self.inner.rollouts(limit).await
    }

    async fn create_token(&self, token: &TokenRow) -> Result<bool, StoreError> {
        self.inner.create_token(token).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.inner.tokens().await
    }

    async fn delete_token(&self, name: &str) -> Result<bool, StoreError> {
        self.inner.delete_token(name).await
    }

    async fn create_session(&self, session: &SessionRow) -> Result<(), StoreError> {
        self.inner.create_session(session).await
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        self.inner.sessions().await
    }

    async fn touch_sessions(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        self.inner.touch_sessions(used).await
    }

    async fn delete_sessions(&self, ids: &[String]) -> Result<(), StoreError> {
        self.inner.delete_sessions(ids).await
    }

    async fn audit(&self, before: Option<i64>, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.inner.audit(before, limit).await
    }

    async fn append_audit(&self, actor: &str, action: &str, detail: &str) -> Result<(), StoreError> {
        self.inner.append_audit(actor, action, detail).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }

    async fn key_check(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.key_check().await
    }

    async fn keep_key_check(&self, check: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.inner.keep_key_check(check).await
    }
}
