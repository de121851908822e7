use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue};
use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdMap};
use signalbox_config::arrival::{
    self, X_ANONYMOUS_CONSUMER, X_CONSUMER_CUSTOM_ID, X_CONSUMER_GROUPS, X_CONSUMER_ID, X_CONSUMER_USERNAME,
    X_CREDENTIAL_IDENTIFIER,
};
use signalbox_config::{
    CertificateName, Consumer, Name, PasswordHash, Proof, PublicKey, TokenAlgorithm, sha256,
};
use smallvec::SmallVec;

type Map<K, V, S> = GenericHashMap<K, V, S, DefaultSharedPtr>;

/// All consumers of a revision, by name and by credential. Persistent: a clone is cheap, a change costs itself.
#[derive(Debug, Clone, Default)]
pub struct Consumers {
    by_name: Map<Name, Arc<KnownConsumer>, RandomState>,
    keys: Index<[u8; 32], (), BuildHasherDefault<HashedAlready>>,
    passwords: Index<Box<str>, PasswordSecret, RandomState>,
    tokens: Index<Box<str>, TokenSecret, RandomState>,
    signing_keys: Index<Box<str>, Box<[u8]>, RandomState>,
    subjects: Index<Box<str>, (), RandomState>,
    other_names: Index<Box<str>, (), RandomState>,
    fingerprints: Index<Box<str>, (), RandomState>,
    /// The costs of all passwords, each with a decoy, and the number of passwords that have it.
    password_costs: OrdMap<u64, (PasswordHash, u32)>,
}

/// A consumer, ready for requests.
#[derive(Debug)]
pub struct KnownConsumer {
    /// Its name.
    pub name: Name,
    groups: Box<[Box<str>]>,
    headers: Box<[(HeaderName, HeaderValue)]>,
    /// The SHA-256 of its API keys.
    keys: Box<[[u8; 32]]>,
}

/// A client's identity, and the credential that proved it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The consumer.
    pub consumer: Arc<KnownConsumer>,
    /// `X-Credential-Identifier`; `None`: let in without a credential, as the anonymous consumer.
    pub credential: Option<HeaderValue>,
}

/// A credential of a consumer, and the secret that goes with it.
#[derive(Debug, Clone)]
pub struct KnownCredential<S> {
    /// The identity of who proves to have the secret.
    pub identity: Identity,
    /// The secret.
    pub secret: S,
}

/// The secret part of a [`Credential`](signalbox_config::Credential), as far as a proxy has to know it.
#[derive(Debug, Clone)]
pub enum ResolvedSecret {
    /// The SHA-256 of an API key.
    Key([u8; 32]),
    /// A password.
    Password(PasswordSecret),
    /// The key of tokens.
    Token(TokenSecret),
    /// The secret that requests are signed with.
    Signature(Box<[u8]>),
    /// A certificate has no secret that a proxy could know.
    Certificate,
}

/// A password.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordSecret {
    /// Its hash.
    Hash(PasswordHash),
    /// The SHA-256 of a password that lies on the proxy's host in clear.
    Digest([u8; 32]),
}

/// The key of tokens.
#[derive(Clone)]
pub struct TokenSecret {
    /// The `kid` of the tokens; `None`: any.
    pub key_id: Option<Box<str>>,
    /// The algorithm of the signatures.
    pub algorithm: TokenAlgorithm,
    /// The key.
    pub key: VerificationKey,
}

/// The key that verifies a signature.
#[derive(Clone, PartialEq, Eq)]
pub enum VerificationKey {
    /// The secret of an HMAC.
    Secret(Box<[u8]>),
    /// A public key.
    Public(PublicKey),
}

impl Consumers {
    /// The headers that only plugins vouch for; the proxy strips them from what clients send.
    pub const HEADERS: [HeaderName; 6] = arrival::CONSUMER;

    /// Adds a consumer that is not there. `secrets` are those of its credentials, in their order.
    pub fn insert(&mut self, consumer: &Consumer, secrets: &[ResolvedSecret]) {
        let groups = consumer.groups.join(",");
        let texts = [
            (X_CONSUMER_ID, Some(consumer.name.as_str())),
            (X_CONSUMER_USERNAME, Some(consumer.name.as_str())),
            (X_CONSUMER_CUSTOM_ID, consumer.custom_id.as_deref()),
            (X_CONSUMER_GROUPS, Some(groups.as_str()).filter(|groups| !groups.is_empty())),
        ];
        let ids = consumer.credentials.iter().map(|credential| &*credential.id);
        let values = header_values(texts.iter().filter_map(|(_, text)| *text).chain(ids));
        let mut values = values.into_iter();
        let named = texts.into_iter().filter(|(_, text)| text.is_some());
        let headers = named.zip(&mut values).filter_map(|((name, _), value)| Some((name, value?))).collect();
        let keys = secrets.iter().filter_map(|secret| match secret {
            ResolvedSecret::Key(hash) => Some(*hash),
            _ => None,
        });
        let known = Arc::new(KnownConsumer {
            name: consumer.name.clone(),
            groups: consumer.groups.clone(),
            headers,
            keys: keys.collect(),
        });
        for ((credential, secret), id) in consumer.credentials.iter().zip(secrets).zip(values) {
            let identity = Identity { consumer: Arc::clone(&known), credential: id };
            self.insert_credential(&credential.proof, secret, identity);
        }
        self.by_name.insert(known.name.clone(), known);
    }

    fn insert_credential(&mut self, proof: &Proof, secret: &ResolvedSecret, identity: Identity) {
        match (proof, secret) {
            (Proof::Key(_), ResolvedSecret::Key(hash)) => self.keys.insert(*hash, identity, ()),
            (Proof::Password { username, .. }, ResolvedSecret::Password(password)) => {
                if let PasswordSecret::Hash(hash) = password {
                    let entry = self.password_costs.entry(hash.cost()).or_insert_with(|| (hash.decoy(), 0));
                    entry.1 += 1;
                }
                self.passwords.insert(username.clone(), identity, password.clone());
            }
            (Proof::Token { issuer, .. }, ResolvedSecret::Token(token)) => {
                self.tokens.insert(issuer.clone(), identity, token.clone());
            }
            (Proof::Signature { key_id, .. }, ResolvedSecret::Signature(key)) => {
                self.signing_keys.insert(key_id.clone(), identity, key.clone());
            }
            (Proof::Certificate(name), ResolvedSecret::Certificate) => {
                let (index, text) = self.certificates(name);
                index.insert(text.into(), identity, ());
            }
            // A secret of another type proves nothing.
            _ => {}
        }
    }

    /// Takes out a consumer, as it was put in.
    pub fn remove(&mut self, consumer: &Consumer) {
        let name = &consumer.name;
        let Some(known) = self.by_name.remove(name) else { return };
        for key in &known.keys {
            self.keys.remove(key, name);
        }
        for credential in &consumer.credentials {
            match &credential.proof {
                Proof::Key(_) => {}
                Proof::Password { username, .. } => {
                    let removed = self.passwords.remove(&**username, name);
                    for cost in removed.iter().filter_map(|removed| removed.secret.cost()) {
                        self.forget_cost(cost);
                    }
                }
                Proof::Token { issuer, .. } => drop(self.tokens.remove(&**issuer, name)),
                Proof::Signature { key_id, .. } => drop(self.signing_keys.remove(&**key_id, name)),
                Proof::Certificate(certificate) => {
                    let (index, text) = self.certificates(certificate);
                    index.remove(text, name);
                }
            }
        }
    }

    fn forget_cost(&mut self, cost: u64) {
        if let Some((_, count)) = self.password_costs.get_mut(&cost) {
            *count -= 1;
            if *count == 0 {
                self.password_costs.remove(&cost);
            }
        }
    }

    fn certificates<'n>(
        &mut self,
        name: &'n CertificateName,
    ) -> (&mut Index<Box<str>, (), RandomState>, &'n str) {
        match name {
            CertificateName::Subject(text) => (&mut self.subjects, text),
            CertificateName::Other(text) => (&mut self.other_names, text),
            CertificateName::Fingerprint(text) => (&mut self.fingerprints, text),
        }
    }

    /// Whose API key has this SHA-256; of several, the consumer whose name sorts first. Hashing first makes the
    /// look-up's time say nothing of a key's text.
    pub fn by_key(&self, sha256: &[u8; 32]) -> Option<&Identity> {
        self.keys.get(sha256).first().map(|known| &known.identity)
    }

    /// The credential with this user name.
    pub fn by_username(&self, username: &str) -> Option<&KnownCredential<PasswordSecret>> {
        self.passwords.get(username).first()
    }

    /// A hash of no password that takes as long to verify as the one of the consumers' that takes longest. `None`: they have none.
    pub fn password_decoy(&self) -> Option<&PasswordHash> {
        self.password_costs.get_max().map(|(_, (decoy, _))| decoy)
    }

    /// The keys of the tokens of an issuer.
    pub fn by_issuer(&self, issuer: &str) -> &[KnownCredential<TokenSecret>] {
        self.tokens.get(issuer)
    }

    /// The credential with this signing key.
    pub fn by_signing_key(&self, key_id: &str) -> Option<&KnownCredential<Box<[u8]>>> {
        self.signing_keys.get(key_id).first()
    }

    /// Whose certificate has this subject.
    pub fn by_certificate_subject(&self, subject: &str) -> Option<&Identity> {
        self.subjects.get(subject).first().map(|known| &known.identity)
    }

    /// Whose certificate has this other name, as [`ClientCertificate::names`](signalbox_config::ClientCertificate) has it.
    pub fn by_certificate_name(&self, name: &str) -> Option<&Identity> {
        self.other_names.get(name).first().map(|known| &known.identity)
    }

    /// Whose certificate has this SHA-256 in hexadecimal digits.
    pub fn by_certificate_fingerprint(&self, fingerprint: &str) -> Option<&Identity> {
        self.fingerprints.get(fingerprint).first().map(|known| &known.identity)
    }

    /// The consumer of this name.
    pub fn named(&self, name: &str) -> Option<Arc<KnownConsumer>> {
        self.by_name.get(name).cloned()
    }

    /// The consumer of this name, as who comes without a credential.
    pub fn anonymous(&self, name: &str) -> Option<Identity> {
        self.by_name.get(name).map(|consumer| Identity { consumer: Arc::clone(consumer), credential: None })
    }
}

/// Credentials by what clients present of them.
#[derive(Debug, Clone)]
struct Index<K, V, S> {
    /// Sorted by the consumer's name, never empty: what was added first must not decide whose a credential is.
    owners: Map<K, SmallVec<[KnownCredential<V>; 1]>, S>,
}

impl<K, V, S: Default> Default for Index<K, V, S> {
    fn default() -> Self {
        Self { owners: Map::default() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone, S: BuildHasher + Clone + Default> Index<K, V, S> {
    fn insert(&mut self, key: K, identity: Identity, secret: V) {
        let mut owners = self.owners.get(&key).cloned().unwrap_or_default();
        let place = owners.partition_point(|owner| owner.identity.consumer.name <= identity.consumer.name);
        owners.insert(place, KnownCredential { identity, secret });
        self.owners.insert(key, owners);
    }

    /// Takes out those of a consumer, and returns them.
    fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, consumer: &Name) -> SmallVec<[KnownCredential<V>; 1]>
    where
        K: Borrow<Q>,
    {
        let Some(owners) = self.owners.get_mut(key) else { return SmallVec::new() };
        let all = std::mem::take(owners).into_iter();
        let (removed, kept) = all.partition(|owner| owner.identity.consumer.name == *consumer);
        *owners = kept;
        if owners.is_empty() {
            self.owners.remove(key);
        }
        removed
    }

    fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> &[KnownCredential<V>]
    where
        K: Borrow<Q>,
    {
        self.owners.get(key).map_or(&[], |owners| owners)
    }
}

impl PasswordSecret {
    /// The secret of a password that lies on the proxy's host in clear.
    pub fn of_clear(password: &[u8]) -> Self {
        Self::Digest(sha256(password))
    }

    fn cost(&self) -> Option<u64> {
        match self {
            Self::Hash(hash) => Some(hash.cost()),
            Self::Digest(_) => None,
        }
    }
}

/// Without what is secret.
impl fmt::Debug for PasswordSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSecret")
    }
}

/// Without what is secret.
impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("TokenSecret");
        out.field("key_id", &self.key_id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl KnownConsumer {
    /// Its groups.
    pub fn groups(&self) -> &[Box<str>] {
        &self.groups
    }

    /// True if the consumer is in the group.
    pub fn is_in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|one| **one == *group)
    }
}

impl Identity {
    /// The headers that tell the upstream who the client is.
    pub fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        let proof = match &self.credential {
            Some(credential) => (&CREDENTIAL, credential),
            None => (&ANONYMOUS, &TRUE),
        };
        self.consumer.headers.iter().map(|(name, value)| (name, value)).chain([proof])
    }
}

static CREDENTIAL: HeaderName = X_CREDENTIAL_IDENTIFIER;
static ANONYMOUS: HeaderName = X_ANONYMOUS_CONSUMER;
static TRUE: HeaderValue = HeaderValue::from_static("true");

/// The texts as the values of headers; `None` for what cannot be one. All lie in one piece of memory with one count of
/// references, so that a request touches few cache lines.
fn header_values<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Vec<Option<HeaderValue>> {
    let whole = Bytes::from(texts.clone().collect::<String>());
    let mut end = 0;
    texts
        .map(|text| {
            let start = end;
            end += text.len();
            HeaderValue::from_maybe_shared(whole.slice(start..end)).ok()
        })
        .collect()
}

/// Hashes what is a hash already, and not a client's choice: by its first eight bytes.
#[derive(Default)]
struct HashedAlready(u64);

impl Hasher for HashedAlready {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The length, which is always the same.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{consumer_of, consumers};

    fn owner(consumers: &Consumers, key: &str) -> Option<String> {
        let identity = consumers.by_key(&sha256(key.as_bytes()))?;
        Some(identity.consumer.name.as_str().to_owned())
    }

    fn remove(consumers: &mut Consumers, name: &str) {
        consumers.remove(&consumer_of(&json!({"name": name})).0);
    }

    #[test]
    fn whose_a_shared_key_is_does_not_depend_on_the_order_of_changes() {
        let mut one =
            consumers(&[("bob", &["shared", "bobs"]), ("alice", &["shared"]), ("carol", &["shared"])]);
        let mut other =
            consumers(&[("carol", &["shared"]), ("alice", &["shared"]), ("bob", &["shared", "bobs"])]);
        for consumers in [&mut one, &mut other] {
            assert_eq!(owner(consumers, "shared").as_deref(), Some("alice"));
            remove(consumers, "alice");
            assert_eq!(owner(consumers, "shared").as_deref(), Some("bob"));
            remove(consumers, "carol");
            assert_eq!(owner(consumers, "shared").as_deref(), Some("bob"));
            remove(consumers, "bob");
            assert_eq!(owner(consumers, "shared"), None);
            assert_eq!(owner(consumers, "bobs"), None);
            assert!(consumers.anonymous("bob").is_none());
        }
    }

    #[test]
    fn a_consumer_that_is_changed_leaves_no_old_key() {
        let mut consumers = consumers(&[("alice", &["old", "kept"])]);
        let before = consumers.clone();
        remove(&mut consumers, "alice");
        let (alice, keys) = crate::testing::consumer("alice", &["kept", "new"]);
        consumers.insert(&alice, &keys);
        assert_eq!(owner(&consumers, "old"), None);
        assert_eq!(owner(&consumers, "kept").as_deref(), Some("alice"));
        assert_eq!(owner(&consumers, "new").as_deref(), Some("alice"));
        assert_eq!(owner(&before, "old").as_deref(), Some("alice"));
    }

    #[test]
    fn credentials_of_every_type_are_found_until_their_consumer_is_gone() {
        let (alice, secrets) = consumer_of(&json!({"name": "alice", "credentials": [
            {"basic_auth": {"username": "al", "password": {"hash": "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"}}},
            {"jwt": {"issuer": "shop", "key_id": "1", "algorithm": "HS256", "secret": "x".repeat(32)}},
            {"jwt": {"issuer": "shop", "key_id": "2", "algorithm": "HS512", "secret": "x".repeat(64)}},
            {"hmac_auth": {"key_id": "signer", "secret": "x".repeat(16)}},
            {"mtls": {"subject": "CN=alice"}},
            {"mtls": {"san": "DNS:alice.example"}},
            {"mtls": {"fingerprint": "AB:".repeat(32).trim_end_matches(':')}},
        ]}));
        let mut consumers = Consumers::default();
        consumers.insert(&alice, &secrets);
        for gone in [false, true] {
            let id = |identity: Option<&Identity>| {
                identity.map(|identity| identity.credential.as_ref().unwrap().to_str().unwrap().to_owned())
            };
            let found = [
                id(consumers.by_username("al").map(|known| &known.identity)),
                id(consumers.by_issuer("shop").first().map(|known| &known.identity)),
                id(consumers.by_issuer("shop").get(1).map(|known| &known.identity)),
                id(consumers.by_signing_key("signer").map(|known| &known.identity)),
                id(consumers.by_certificate_subject("CN=alice")),
                id(consumers.by_certificate_name("DNS:alice.example")),
                id(consumers.by_certificate_fingerprint(&"ab".repeat(32)))
                    .map(|id| id.to_lowercase().replace(':', "")),
            ];
            let fingerprint = "ab".repeat(32);
            let expected = ["al", "1", "2", "signer", "CN=alice", "DNS:alice.example", &fingerprint];
            match gone {
                false => assert_eq!(found.map(|id| id.unwrap()), expected),
                true => assert_eq!(found, [const { None }; 7]),
            }
            assert_eq!(consumers.password_decoy().is_none(), gone);
            consumers.remove(&alice);
        }
        assert!(consumers.tokens.owners.is_empty() && consumers.passwords.owners.is_empty());
    }

    #[test]
    fn the_decoy_takes_as_long_as_the_password_that_takes_longest() {
        let hash = |cost: &str| format!("$2b${cost}$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW");
        let with = |name: &str, cost: &str| {
            consumer_of(&json!({"name": name, "credentials": [
                {"basic_auth": {"username": name, "password": {"hash": hash(cost)}}},
            ]}))
        };
        let mut consumers = Consumers::default();
        let mut decoy_after = |change: &mut dyn FnMut(&mut Consumers)| {
            change(&mut consumers);
            consumers.password_decoy().map(|decoy| decoy.as_str()[..7].to_owned())
        };
        let (low, high) = (with("low", "05"), with("high", "12"));
        assert_eq!(decoy_after(&mut |all| all.insert(&low.0, &low.1)).as_deref(), Some("$2b$05$"));
        assert_eq!(decoy_after(&mut |all| all.insert(&high.0, &high.1)).as_deref(), Some("$2b$12$"));
        assert_eq!(decoy_after(&mut |all| all.remove(&high.0)).as_deref(), Some("$2b$05$"));
        assert_eq!(decoy_after(&mut |all| all.remove(&low.0)), None);
    }
}
