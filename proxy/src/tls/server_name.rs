//! Server names with a port, `example.com:8443`, as some clients send them: the port is ignored.
//!
//! rustls refuses such a ClientHello, because a port is no part of a name (RFC 6066, section 3); other servers take it. So the
//! port is taken out of the message before rustls reads it. Both sides prove at the end of the handshake that they have seen
//! the same messages, by a hash over all of them; therefore the hash functions given to rustls put the original message back
//! in the place of the one that was changed.

use std::cell::RefCell;
use std::sync::{Arc, LazyLock};

use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CryptoProvider, ring};
use rustls::{SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};

/// A ClientHello whose server name had a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Renamed {
    /// All that the client has sent, without the port.
    pub(super) bytes: Vec<u8>,
    message: Message,
}

/// The handshake message, as the client sent it and as rustls reads it.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    original: Vec<u8>,
    changed: Vec<u8>,
    /// Where the name ends in `changed`.
    name_end: usize,
}

impl Renamed {
    /// `sent` without the port of its server name. `None`: it is no whole ClientHello in one record, or its name has none.
    pub(super) fn of(sent: &[u8]) -> Option<Self> {
        let (record, rest) = sent.split_at_checked(RECORD_HEAD)?;
        let &[22, _, _, high, low] = record else { return None };
        let (message, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        let place = Place::of(message)?;
        let name = message.get(place.name..place.name_end)?;
        let port = port_length(name)?;
        let mut changed = message.to_vec();
        changed.drain(place.name_end - port..place.name_end);
        for (at, bytes) in place.lengths {
            shorten(changed.get_mut(at..at + bytes)?, port)?;
        }
        let mut bytes = vec![22, record[1], record[2]];
        bytes.extend(u16::try_from(changed.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(&changed);
        bytes.extend_from_slice(rest);
        let message = Message { original: message.to_vec(), changed, name_end: place.name_end - port };
        Some(Self { bytes, message })
    }

    /// Has `handle` handle the message, with the original one in every hash.
    pub(super) fn hashing_the_original<T>(self, handle: impl FnOnce() -> T) -> T {
        /// Clears it also when `handle` panics: other connections use this thread.
        struct Clear;
        impl Drop for Clear {
            fn drop(&mut self) {
                CHANGED.set(None);
            }
        }
        let _clear = Clear;
        CHANGED.set(Some(self.message));
        handle()
    }
}

impl Message {
    /// What is to be hashed in the place of `data`, in two parts. `data` may be the message without its end, where that holds
    /// what was computed over the rest (RFC 8446, section 4.2.11.2).
    fn original_of<'a>(&'a self, data: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let taken = self.original.len() - self.changed.len();
        if data.len() >= self.name_end && self.changed.starts_with(data) {
            return Some((self.original.get(..data.len() + taken)?, &[]));
        }
        Some((&self.original, data.strip_prefix(&*self.changed)?))
    }
}

thread_local! {
    /// The message that is being handled on this thread, if it was changed.
    static CHANGED: RefCell<Option<Message>> = const { RefCell::new(None) };
}

/// Where the server name is in a ClientHello.
struct Place {
    name: usize,
    name_end: usize,
    /// Where lengths are that count the name, and how many bytes each has.
    lengths: [(usize, usize); 5],
}

impl Place {
    /// `None`: it is malformed, or has no server name, or more than one.
    fn of(message: &[u8]) -> Option<Self> {
        let number = |at: usize, bytes: usize| -> Option<usize> {
            Some(message.get(at..at + bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        };
        // The type, and the length of all.
        if message.first() != Some(&1) || number(1, 3)? != message.len().checked_sub(4)? {
            return None;
        }
        // Version and random, then session, cipher suites and compressions, each with its length.
        let mut at = 4 + 2 + 32;
        at += 1 + number(at, 1)?;
        at += 2 + number(at, 2)?;
        at += 1 + number(at, 1)?;
        let extensions = at;
        let end = at + 2 + number(at, 2)?;
        at += 2;
        while at < end {
            let (kind, length) = (number(at, 2)?, number(at + 2, 2)?);
            if kind == 0 {
                // The list's length, the kind of name (0: a host's), and the name's length.
                let name = at + 4 + 2 + 1 + 2;
                let name_length = number(name - 2, 2)?;
                let is_alone = number(at + 4, 2)? == name_length + 3 && length == name_length + 5;
                let lengths = [(1, 3), (extensions, 2), (at + 2, 2), (at + 4, 2), (name - 2, 2)];
                let place = Self { name, name_end: name + name_length, lengths };
                return (is_alone && number(name - 3, 1)? == 0).then_some(place);
            }
            at += 4 + length;
        }
        None
    }
}

/// How long the port at the end of a name is, its colon included.
fn port_length(name: &[u8]) -> Option<usize> {
    let colon = name.iter().rposition(|byte| *byte == b':')?;
    let (host, port) = (name.get(..colon)?, name.get(colon + 1..)?);
    let is_port = (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    (is_port && !host.is_empty() && !host.contains(&b':')).then_some(name.len() - colon)
}

/// Takes `by` from a number in network byte order.
fn shorten(number: &mut [u8], by: usize) -> Option<()> {
    let value = number.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)).checked_sub(by)?;
    let bytes = value.to_be_bytes();
    number.copy_from_slice(bytes.get(bytes.len() - number.len()..)?);
    Some(())
}

/// Of a TLS record: its type, version and length.
const RECORD_HEAD: usize = 5;

/// The cryptography of ring, with hash functions that know of changed messages.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = ring::default_provider();
        provider.cipher_suites = provider.cipher_suites.into_iter().map(with_originals).collect();
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// The same suite. rustls wants it to live for ever, and this is done once.
fn with_originals(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    let hash = |inner| -> &'static dyn Hash { Box::leak(Box::new(Originals(inner))) };
    match suite {
        SupportedCipherSuite::Tls13(suite) => {
            let mut common = common_of(&suite.common);
            common.hash_provider = hash(suite.common.hash_provider);
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite { common, ..*suite })))
        }
        SupportedCipherSuite::Tls12(suite) => {
            let mut common = common_of(&suite.common);
            common.hash_provider = hash(suite.common.hash_provider);
            SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite { common, ..*suite })))
        }
    }
}

fn common_of(common: &rustls::crypto::CipherSuiteCommon) -> rustls::crypto::CipherSuiteCommon {
    rustls::crypto::CipherSuiteCommon { ..*common }
}

/// A hash function that takes the original of a changed message.
struct Originals(&'static dyn Hash);

impl Hash for Originals {
    fn start(&self) -> Box<dyn Context> {
        Box::new(OriginalsContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        let mut context = self.start();
        context.update(data);
        context.finish()
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }
}

struct OriginalsContext(Box<dyn Context>);

impl Context for OriginalsContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        CHANGED.with_borrow(|changed| match changed.as_ref().and_then(|message| message.original_of(data)) {
            Some((original, rest)) => {
                self.0.update(original);
                self.0.update(rest);
            }
            None => self.0.update(data),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with a ClientHello for this server name, with an extension on either side.
    fn hello(name: &[u8]) -> Vec<u8> {
        let counted = |bytes: usize, content: &[u8]| {
            let length = content.len().to_be_bytes();
            [&length[length.len() - bytes..], content].concat()
        };
        let entry = [&[0][..], &counted(2, name)].concat();
        let names = [&[0, 0][..], &counted(2, &counted(2, &entry))].concat();
        let other = [&[0, 23][..], &counted(2, &[])].concat();
        let extensions = [&other[..], &names, &other].concat();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &counted(1, &[9; 32]),
            &counted(2, &[0x13, 1, 0x13, 2]),
            &counted(1, &[0]),
            &counted(2, &extensions),
        ];
        let message = [&[1][..], &counted(3, &body.concat())].concat();
        [&[22, 3, 1][..], &counted(2, &message)].concat()
    }

    #[test]
    fn the_port_is_taken_out_and_every_length_follows() {
        for (with, without) in [("a.example:8443", "a.example"), ("b:1", "b"), ("10.0.0.1:65535", "10.0.0.1")]
        {
            let renamed = Renamed::of(&hello(with.as_bytes())).unwrap();
            assert_eq!(renamed.bytes, hello(without.as_bytes()), "{with}");
        }
        let with_more = [hello(b"a:1"), vec![1, 2, 3]].concat();
        assert_eq!(Renamed::of(&with_more).unwrap().bytes, [hello(b"a"), vec![1, 2, 3]].concat());
    }

    #[test]
    fn what_has_no_port_or_is_no_whole_hello_stays() {
        for name in ["a.example", ":8443", "a:", "a:x", "a:123456", "::1", "a:1:2", ""] {
            assert_eq!(Renamed::of(&hello(name.as_bytes())), None, "{name}");
        }
        let whole = hello(b"a.example:8443");
        for length in 0..whole.len() {
            assert_eq!(Renamed::of(&whole[..length]), None, "{length} bytes");
        }
        // Whatever is wrong in it, it is looked at within its bounds.
        for index in 0..whole.len() {
            for value in [0, 1, 127, 255] {
                let mut spoilt = whole.clone();
                spoilt[index] = value;
                let _ = Renamed::of(&spoilt);
            }
        }
    }

    #[test]
    fn hashes_are_those_of_the_original_while_the_message_is_handled() {
        let sent = hello(b"a.example:8443");
        let original = &sent[RECORD_HEAD..];
        let renamed = Renamed::of(&sent).unwrap();
        let changed = renamed.message.changed.clone();
        let suite = provider().cipher_suites[0];
        let hash = |data: &[&[u8]]| {
            let mut context = match suite {
                SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.start(),
                SupportedCipherSuite::Tls12(suite) => suite.common.hash_provider.start(),
            };
            data.iter().for_each(|part| context.update(part));
            context.finish().as_ref().to_vec()
        };
        let expected = [hash(&[original, b"more"]), hash(&[&original[..original.len() - 2]])];
        let outside = hash(&[&changed]);
        let inside = renamed.hashing_the_original(|| {
            assert_eq!(hash(&[b"another"]), hash(&[b"ano", b"ther"]));
            let joined = [&changed[..], b"more"].concat();
            assert_eq!(hash(&[&joined]), hash(&[&changed, b"more"]));
            [hash(&[&changed, b"more"]), hash(&[&changed[..changed.len() - 2]])]
        });
        assert_eq!(inside, expected);
        assert_eq!(hash(&[&changed]), outside, "afterwards nothing is replaced");
        assert_ne!(outside, hash(&[original]));
    }
}
