use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;
use signalbox_config::arrival::{
    self, X_ANONYMOUS_CONSUMER, X_CONSUMER_CUSTOM_ID, X_CONSUMER_GROUPS, X_CONSUMER_ID, X_CONSUMER_USERNAME,
    X_CREDENTIAL_IDENTIFIER,
};
use signalbox_config::{Consumer, Name};
use smallvec::SmallVec;

type Map<K, V, S> = GenericHashMap<K, V, S, DefaultSharedPtr>;

/// All consumers of a revision, by name and by credential. Persistent: a clone is cheap, a change costs itself.
#[derive(Debug, Clone, Default)]
pub struct Consumers {
    by_name: Map<Name, Arc<KnownConsumer>, foldhash::fast::RandomState>,
    /// Sorted by the consumer's name, never empty: what was added first must not decide whose a key is.
    by_key: Map<[u8; 32], SmallVec<[Identity; 1]>, BuildHasherDefault<HashedAlready>>,
}

/// A consumer, ready for requests.
#[derive(Debug)]
pub struct KnownConsumer {
    /// Its name.
    pub name: Name,
    headers: Box<[(HeaderName, HeaderValue)]>,
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

impl Consumers {
    /// The headers that only plugins vouch for; the proxy strips them from what clients send.
    pub const HEADERS: [HeaderName; 6] = arrival::CONSUMER;

    /// Adds a consumer that is not there. `keys` are the SHA-256 of its API keys, in the order of
    /// [`Consumer::keys`], references resolved.
    pub fn insert(&mut self, consumer: &Consumer, keys: &[[u8; 32]]) {
        let groups = consumer.groups.join(",");
        let texts = [
            (X_CONSUMER_ID, Some(consumer.name.as_str())),
            (X_CONSUMER_USERNAME, Some(consumer.name.as_str())),
            (X_CONSUMER_CUSTOM_ID, consumer.custom_id.as_deref()),
            (X_CONSUMER_GROUPS, Some(groups.as_str()).filter(|groups| !groups.is_empty())),
        ];
        let values = header_values(
            texts.iter().filter_map(|(_, text)| *text).chain(consumer.keys.iter().map(|key| &*key.id)),
        );
        let mut values = values.into_iter();
        let named = texts.into_iter().filter(|(_, text)| text.is_some());
        let headers = named.zip(&mut values).filter_map(|((name, _), value)| Some((name, value?))).collect();
        let known = Arc::new(KnownConsumer { name: consumer.name.clone(), headers, keys: keys.into() });
        for (hash, credential) in keys.iter().zip(values) {
            let identity = Identity { consumer: Arc::clone(&known), credential };
            let mut owners = self.by_key.get(hash).cloned().unwrap_or_default();
            let place = owners.partition_point(|owner| owner.consumer.name <= known.name);
            owners.insert(place, identity);
            self.by_key.insert(*hash, owners);
        }
        self.by_name.insert(known.name.clone(), known);
    }

    /// Takes out a consumer.
    pub fn remove(&mut self, name: &Name) {
        let Some(known) = self.by_name.remove(name) else { return };
        for key in &known.keys {
            let Some(mut owners) = self.by_key.remove(key) else { continue };
            owners.retain(|owner| owner.consumer.name != known.name);
            if !owners.is_empty() {
                self.by_key.insert(*key, owners);
            }
        }
    }

    /// Whose API key has this SHA-256; of several, the consumer whose name sorts first. Hashing first makes the
    /// look-up's time say nothing of a key's text.
    pub fn by_key(&self, sha256: &[u8; 32]) -> Option<&Identity> {
        self.by_key.get(sha256)?.first()
    }

    /// The consumer of this name, as who comes without a credential.
    pub fn anonymous(&self, name: &str) -> Option<Identity> {
        self.by_name.get(name).map(|consumer| Identity { consumer: Arc::clone(consumer), credential: None })
    }
}

impl Identity {
    /// The headers that tell the upstream who the client is.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
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
    use super::*;
    use crate::testing::{consumer, consumers, name};

    fn owner(consumers: &Consumers, key: &str) -> Option<String> {
        let identity = consumers.by_key(&signalbox_config::sha256(key.as_bytes()))?;
        Some(identity.consumer.name.as_str().to_owned())
    }

    #[test]
    fn whose_a_shared_key_is_does_not_depend_on_the_order_of_changes() {
        let mut one =
            consumers(&[("bob", &["shared", "bobs"]), ("alice", &["shared"]), ("carol", &["shared"])]);
        let mut other =
            consumers(&[("carol", &["shared"]), ("alice", &["shared"]), ("bob", &["shared", "bobs"])]);
        for consumers in [&mut one, &mut other] {
            assert_eq!(owner(consumers, "shared").as_deref(), Some("alice"));
            consumers.remove(&name("alice"));
            assert_eq!(owner(consumers, "shared").as_deref(), Some("bob"));
            consumers.remove(&name("carol"));
            assert_eq!(owner(consumers, "shared").as_deref(), Some("bob"));
            consumers.remove(&name("bob"));
            assert_eq!(owner(consumers, "shared"), None);
            assert_eq!(owner(consumers, "bobs"), None);
            assert!(consumers.anonymous("bob").is_none());
        }
    }

    #[test]
    fn a_consumer_that_is_changed_leaves_no_old_key() {
        let mut consumers = consumers(&[("alice", &["old", "kept"])]);
        let before = consumers.clone();
        consumers.remove(&name("alice"));
        let (alice, keys) = consumer("alice", &["kept", "new"]);
        consumers.insert(&alice, &keys);
        assert_eq!(owner(&consumers, "old"), None);
        assert_eq!(owner(&consumers, "kept").as_deref(), Some("alice"));
        assert_eq!(owner(&consumers, "new").as_deref(), Some("alice"));
        assert_eq!(owner(&before, "old").as_deref(), Some("alice"));
    }
}
