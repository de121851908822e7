use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use imbl::GenericHashMap;
use imbl::shared_ptr::DefaultSharedPtr;
use signalbox_config::{Consumer, Name};

type Map<K, V> = GenericHashMap<K, V, foldhash::fast::RandomState, DefaultSharedPtr>;

/// All consumers of a revision, by name and by credential. Persistent: a clone is cheap, a change costs itself.
#[derive(Debug, Clone, Default)]
pub struct Consumers {
    by_name: Map<Name, Arc<KnownConsumer>>,
    by_key: Map<[u8; 32], Identity>,
}

/// A consumer, ready for requests.
#[derive(Debug)]
pub struct KnownConsumer {
    /// Its name.
    pub name: Name,
    headers: Box<[(HeaderName, HeaderValue)]>,
    keys: Box<[[u8; 32]]>,
}

/// Who a client is, and by which credential.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The consumer.
    pub consumer: Arc<KnownConsumer>,
    /// `X-Credential-Identifier`; `None`: let in without a credential, as the anonymous consumer.
    pub credential: Option<HeaderValue>,
}

const X_CONSUMER_ID: HeaderName = HeaderName::from_static("x-consumer-id");
const X_CONSUMER_USERNAME: HeaderName = HeaderName::from_static("x-consumer-username");
const X_CONSUMER_CUSTOM_ID: HeaderName = HeaderName::from_static("x-consumer-custom-id");
const X_CONSUMER_GROUPS: HeaderName = HeaderName::from_static("x-consumer-groups");
const X_CREDENTIAL_IDENTIFIER: HeaderName = HeaderName::from_static("x-credential-identifier");
const X_ANONYMOUS_CONSUMER: HeaderName = HeaderName::from_static("x-anonymous-consumer");

impl Consumers {
    /// The headers that only plugins vouch for; the proxy strips them from what clients send.
    pub const HEADERS: [HeaderName; 6] = [
        X_CONSUMER_ID,
        X_CONSUMER_USERNAME,
        X_CONSUMER_CUSTOM_ID,
        X_CONSUMER_GROUPS,
        X_CREDENTIAL_IDENTIFIER,
        X_ANONYMOUS_CONSUMER,
    ];

    /// Adds a consumer that is not there. `keys` are the SHA-256 of its API keys, in the order of
    /// [`Consumer::keys`], references resolved.
    pub fn insert(&mut self, consumer: &Consumer, keys: &[[u8; 32]]) {
        let mut headers = Vec::with_capacity(4);
        let mut push = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.push((name, value));
            }
        };
        push(X_CONSUMER_ID, consumer.name.as_str());
        push(X_CONSUMER_USERNAME, consumer.name.as_str());
        if let Some(custom_id) = &consumer.custom_id {
            push(X_CONSUMER_CUSTOM_ID, custom_id);
        }
        if !consumer.groups.is_empty() {
            push(X_CONSUMER_GROUPS, &consumer.groups.join(","));
        }
        let known = Arc::new(KnownConsumer {
            name: consumer.name.clone(),
            headers: headers.into(),
            keys: keys.into(),
        });
        for (hash, credential) in keys.iter().zip(&consumer.keys) {
            let identity = Identity {
                consumer: Arc::clone(&known),
                credential: HeaderValue::from_str(&credential.id).ok(),
            };
            self.by_key.insert(*hash, identity);
        }
        self.by_name.insert(known.name.clone(), known);
    }

    /// Takes out a consumer.
    pub fn remove(&mut self, name: &Name) {
        let Some(known) = self.by_name.remove(name) else { return };
        for key in &known.keys {
            if self.by_key.get(key).is_some_and(|identity| identity.consumer.name == known.name) {
                self.by_key.remove(key);
            }
        }
    }

    /// Whose API key has this SHA-256. Hashing first makes the look-up's time say nothing of a key's text.
    pub fn by_key(&self, sha256: &[u8; 32]) -> Option<&Identity> {
        self.by_key.get(sha256)
    }

    /// The consumer of this name, as who comes without a credential.
    pub fn anonymous(&self, name: &str) -> Option<Identity> {
        self.by_name.get(name).map(|consumer| Identity { consumer: Arc::clone(consumer), credential: None })
    }
}

impl Identity {
    /// Tells the upstream who the client is.
    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.consumer.headers {
            headers.insert(name.clone(), value.clone());
        }
        match &self.credential {
            Some(credential) => headers.insert(X_CREDENTIAL_IDENTIFIER, credential.clone()),
            None => headers.insert(X_ANONYMOUS_CONSUMER, HeaderValue::from_static("true")),
        };
    }
}
