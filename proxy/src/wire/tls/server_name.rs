//! Server names with a port, `example.com:8443`, as some clients send them: the port is ignored.
//!
//! rustls refuses such a ClientHello, because a port is no part of a name (RFC 6066, section 3); other servers take it. So the
//! port is taken out of the message before rustls reads it, and of the second ClientHello, which a client sends when it is asked
//! for another key share (RFC 8446, section 4.1.4). Both sides prove at the end of the handshake that they have seen the same
//! messages, by a hash over all of them, and clients sign them with their certificates; therefore the hash functions and the
//! verifier given to rustls put the original messages back in the place of those that were changed.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Accepted, Acceptor};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, ServerConnection, SignatureScheme,
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{StartHandshake, server};

/// The most that a client may send before its ClientHello is complete, bytes: the most that a handshake message may have, and its
/// records.
pub(super) const MAX_HELLO: usize = 80 << 10;

/// A ClientHello whose server name had a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RewrittenHello {
    /// All bytes of the client so far, without the port.
    pub(super) bytes: Vec<u8>,
    message: Message,
}

/// The handshake message, as the client sent it and as rustls reads it.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    original: Vec<u8>,
    changed: Vec<u8>,
    /// The position in `changed` at which the name ends.
    name_end: usize,
}

impl RewrittenHello {
    /// `sent` without the port of its server name. `None`: it is no whole ClientHello, or its name has none.
    pub(super) fn of(sent: &[u8]) -> Option<Self> {
        let Hello::Whole { message, version, length } = Hello::read(sent) else { return None };
        let place = Place::of(&message)?;
        let name = message.get(place.name..place.name_end)?;
        let port = port_length(name)?;
        let mut changed = message.clone();
        changed.drain(place.name_end - port..place.name_end);
        for (at, bytes) in place.lengths {
            shorten(changed.get_mut(at..at + bytes)?, port)?;
        }
        let mut bytes = Vec::with_capacity(sent.len());
        for fragment in changed.chunks(MAX_FRAGMENT) {
            bytes.extend([HANDSHAKE, version[0], version[1]]);
            bytes.extend(u16::try_from(fragment.len()).ok()?.to_be_bytes());
            bytes.extend_from_slice(fragment);
        }
        bytes.extend_from_slice(sent.get(length..)?);
        let message = Message { original: message, changed, name_end: place.name_end - port };
        Some(Self { bytes, message })
    }

    /// The message as rustls takes it. `None`: something else is wrong with it.
    pub(super) fn accepted(&self) -> Option<Accepted> {
        let mut acceptor = Acceptor::default();
        let mut bytes = self.bytes.as_slice();
        while !bytes.is_empty() {
            acceptor.read_tls(&mut bytes).ok()?;
            if let Some(accepted) = acceptor.accept().ok()? {
                return Some(accepted);
            }
        }
        None
    }

    /// Shakes hands with the client that sent it over `stream`. `accepted` is [`RewrittenHello::accepted`].
    pub(super) async fn shake_hands(
        self,
        accepted: Accepted,
        config: Arc<ServerConfig>,
        mut stream: TcpStream,
    ) -> io::Result<server::TlsStream<TcpStream>> {
        // A stream of tokio-rustls is made from an accepted message only, and then gets the finished connection.
        let template = self.accepted().ok_or(io::ErrorKind::InvalidData)?;
        let mut messages = vec![self.message];
        let connection =
            hashing_the_originals(&mut messages, || accepted.into_connection(Arc::clone(&config)));
        let mut connection = match connection {
            Ok(connection) => connection,
            Err((error, mut alert)) => {
                let mut bytes = Vec::new();
                let _ = alert.write_all(&mut bytes);
                // The client is told why, if it still listens.
                let _ = stream.write_all(&bytes).await;
                return Err(invalid(error));
            }
        };
        let mut received = Vec::new();
        let mut may_hello_again = true;
        loop {
            write(&mut connection, &mut stream).await?;
            if !connection.is_handshaking() {
                break;
            }
            if stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if may_hello_again {
                let Some(renamed) = second_hello(&received) else { continue };
                may_hello_again = false;
                if let Some(RewrittenHello { bytes, message }) = renamed {
                    received = bytes;
                    messages.push(message);
                }
            }
            let read = hashing_the_originals(&mut messages, || read(&mut connection, &received));
            received.clear();
            if let Err(error) = read {
                // The client is told why, if it still listens.
                let _ = write(&mut connection, &mut stream).await;
                return Err(error);
            }
        }
        let start = StartHandshake::from_parts(template, stream);
        start.into_stream_with(config, |made| *made = connection).await
    }
}

/// Looks for another ClientHello in what a client sent after its first. `None`: more has to come. `Some(None)`: there is none, or its
/// name has no port.
#[expect(clippy::option_option, reason = "more has to come, or there is nothing to be changed")]
fn second_hello(received: &[u8]) -> Option<Option<RewrittenHello>> {
    // A record for the sake of old middleboxes may precede it (RFC 8446, appendix D.4).
    let skipped = if received.starts_with(&CHANGE_CIPHER_SPEC) { CHANGE_CIPHER_SPEC.len() } else { 0 };
    if CHANGE_CIPHER_SPEC.starts_with(received) {
        return None;
    }
    let (before, rest) = received.split_at_checked(skipped)?;
    match Hello::read(rest) {
        Hello::Partial if received.len() < MAX_HELLO => None,
        Hello::Partial | Hello::Other => Some(None),
        Hello::Whole { .. } => Some(RewrittenHello::of(rest).map(|mut renamed| {
            renamed.bytes.splice(..0, before.iter().copied());
            renamed
        })),
    }
}

/// Passes the client's bytes to a connection.
fn read(connection: &mut ServerConnection, mut received: &[u8]) -> io::Result<()> {
    while !received.is_empty() {
        connection.read_tls(&mut received)?;
        connection.process_new_packets().map_err(invalid)?;
    }
    Ok(())
}

/// Writes what a connection has to say.
async fn write(connection: &mut ServerConnection, stream: &mut TcpStream) -> io::Result<()> {
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes)?;
    }
    stream.write_all(&bytes).await
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Calls `handle` for bytes of the client, with the original messages in every hash and signature.
fn hashing_the_originals<T>(messages: &mut Vec<Message>, handle: impl FnOnce() -> T) -> T {
    /// Takes the messages back also when `handle` panics: other connections use this thread.
    struct TakeBack<'a>(&'a mut Vec<Message>);
    impl Drop for TakeBack<'_> {
        fn drop(&mut self) {
            *self.0 = CHANGED.take();
        }
    }
    CHANGED.set(std::mem::take(messages));
    let _messages = TakeBack(messages);
    handle()
}

/// `data`, which is a sequence of handshake messages, with the original ones in the place of those that were changed. `None`: there
/// are none of these. `data` may end with a changed message without its end, where that holds what was computed over the rest
/// (RFC 8446, section 4.2.11.2).
fn with_originals(data: &[u8]) -> Option<Vec<u8>> {
    CHANGED.with_borrow(|changed| {
        if changed.is_empty() {
            return None;
        }
        let mut restored: Option<Vec<u8>> = None;
        let (mut rest, mut kept) = (data, 0);
        while !rest.is_empty() {
            let part = changed.iter().find_map(|message| message.at_beginning_of(rest));
            let taken = match part {
                Some((taken, original)) => {
                    let restored = restored.get_or_insert_default();
                    restored.extend_from_slice(data.get(kept..data.len() - rest.len())?);
                    restored.extend_from_slice(original);
                    kept = data.len() - rest.len() + taken;
                    taken
                }
                None => match whole_message(rest) {
                    Some(message) => message.len(),
                    None => break,
                },
            };
            rest = rest.get(taken..)?;
        }
        restored.as_mut()?.extend_from_slice(data.get(kept..)?);
        restored
    })
}

/// The handshake message that `data` begins with.
fn whole_message(data: &[u8]) -> Option<&[u8]> {
    let &[_, high, middle, low, ..] = data else { return None };
    data.get(..4 + u32::from_be_bytes([0, high, middle, low]) as usize)
}

impl Message {
    /// How much of `data`, whose beginning this message is, or which is the message without its end, is to be replaced, and by what.
    fn at_beginning_of(&self, data: &[u8]) -> Option<(usize, &[u8])> {
        if data.starts_with(&self.changed) {
            return Some((self.changed.len(), &self.original));
        }
        let port = self.original.len() - self.changed.len();
        let is_truncated = data.len() >= self.name_end && self.changed.starts_with(data);
        is_truncated.then(|| Some((data.len(), self.original.get(..data.len() + port)?))).flatten()
    }
}

/// The beginning of a client's bytes.
enum Hello {
    /// More has to come.
    Partial,
    Whole {
        message: Vec<u8>,
        /// The version of the record layer.
        version: [u8; 2],
        /// How many bytes it has with its records.
        length: usize,
    },
    /// No ClientHello, or a malformed one.
    Other,
}

impl Hello {
    fn read(sent: &[u8]) -> Self {
        let mut message = Vec::new();
        let mut at = 0;
        loop {
            let Some((record, rest)) = sent.get(at..).and_then(|rest| rest.split_at_checked(RECORD_HEAD))
            else {
                return if sent.get(at).is_none_or(|kind| *kind == HANDSHAKE) {
                    Self::Partial
                } else {
                    Self::Other
                };
            };
            let &[HANDSHAKE, major, minor, high, low] = record else { return Self::Other };
            let length = usize::from(u16::from_be_bytes([high, low]));
            let fragment = rest.get(..length.min(rest.len())).unwrap_or_default();
            message.extend_from_slice(fragment);
            if !(1..=MAX_FRAGMENT).contains(&length)
                || message.first().is_some_and(|kind| *kind != CLIENT_HELLO)
            {
                return Self::Other;
            }
            if fragment.len() < length {
                return Self::Partial;
            }
            at += RECORD_HEAD + length;
            match whole_message(&message) {
                Some(whole) if whole.len() == message.len() => {
                    return Self::Whole { message, version: [major, minor], length: at };
                }
                Some(_) => return Self::Other,
                None => {}
            }
        }
    }
}

thread_local! {
    /// The changed messages of the connection that is being handled on this thread.
    static CHANGED: RefCell<Vec<Message>> = const { RefCell::new(Vec::new()) };
}

/// The position of the server name in a ClientHello.
struct Place {
    name: usize,
    name_end: usize,
    /// The positions and sizes in bytes of the lengths that include the name.
    lengths: [(usize, usize); 5],
}

impl Place {
    /// Finds the name. Returns `None` if the message is malformed, or has no server name, or more than one.
    fn of(message: &[u8]) -> Option<Self> {
        let number = |at: usize, bytes: usize| -> Option<usize> {
            Some(message.get(at..at + bytes)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        };
        // The message begins with its type and its length.
        if message.first() != Some(&1) || number(1, 3)? != message.len().checked_sub(4)? {
            return None;
        }
        // Version and random are followed by session id, cipher suites and compression methods, each with its length.
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

/// The length of the port at the end of a name, including its colon.
fn port_length(name: &[u8]) -> Option<usize> {
    let colon = name.iter().rposition(|byte| *byte == b':')?;
    let (host, port) = (name.get(..colon)?, name.get(colon + 1..)?);
    let is_port = (1..=5).contains(&port.len()) && port.iter().all(u8::is_ascii_digit);
    (is_port && !host.is_empty() && !host.contains(&b':')).then_some(name.len() - colon)
}

/// Subtracts `by` from a number in network byte order.
fn shorten(number: &mut [u8], by: usize) -> Option<()> {
    let value = number.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)).checked_sub(by)?;
    let bytes = value.to_be_bytes();
    number.copy_from_slice(bytes.get(bytes.len() - number.len()..)?);
    Some(())
}

/// Bytes of a TLS record before its content: type, version and length.
const RECORD_HEAD: usize = 5;

/// The most that a record may have in the clear, bytes.
const MAX_FRAGMENT: usize = 16 << 10;

/// The type of records with handshake messages, and of the message.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

const CHANGE_CIPHER_SPEC: [u8; 6] = [20, 3, 3, 0, 1, 1];

/// The ring provider, with hash functions that handle changed messages.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = ring::default_provider();
        provider.cipher_suites = provider.cipher_suites.into_iter().map(restoring).collect();
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

/// The same suite. rustls requires a static lifetime, and this runs once.
fn restoring(suite: SupportedCipherSuite) -> SupportedCipherSuite {
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

/// A hash function that uses the original of a changed message.
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
        match with_originals(data) {
            Some(restored) => self.0.update(&restored),
            None => self.0.update(data),
        }
    }
}

/// The same verifier, for messages of which some were changed. Only clients of TLS 1.2 sign messages as they are.
pub(super) fn verifier(inner: Arc<dyn ClientCertVerifier>) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Verifier(inner))
}

#[derive(Debug)]
struct Verifier(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let restored = with_originals(message);
        self.0.verify_tls12_signature(restored.as_deref().unwrap_or(message), cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a record with a ClientHello for this server name, with an extension on either side.
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
            let renamed = RewrittenHello::of(&hello(with.as_bytes())).unwrap();
            assert_eq!(renamed.bytes, hello(without.as_bytes()), "{with}");
        }
        let with_more = [hello(b"a:1"), vec![1, 2, 3]].concat();
        assert_eq!(RewrittenHello::of(&with_more).unwrap().bytes, [hello(b"a"), vec![1, 2, 3]].concat());
    }

    #[test]
    fn a_hello_may_lie_in_several_records() {
        let whole = hello(b"a.example:8443");
        for size in [1, 3, 7, 50] {
            let fragments = whole[RECORD_HEAD..].chunks(size);
            let split: Vec<u8> = fragments
                .flat_map(|fragment| [&[22, 3, 1, 0, fragment.len() as u8][..], fragment].concat())
                .collect();
            assert_eq!(RewrittenHello::of(&split).unwrap().bytes, hello(b"a.example"), "{size}");
            for length in 0..split.len() {
                assert!(matches!(Hello::read(&split[..length]), Hello::Partial), "{size}: {length} bytes");
            }
        }
    }

    #[test]
    fn a_second_hello_is_looked_for_behind_the_record_for_middleboxes() {
        let again = hello(b"a:1");
        let (with, without) =
            ([&CHANGE_CIPHER_SPEC[..], &again].concat(), [&CHANGE_CIPHER_SPEC[..], &hello(b"a")].concat());
        for length in 0..with.len() {
            assert!(second_hello(&with[..length]).is_none(), "{length} bytes");
        }
        assert_eq!(second_hello(&with).unwrap().unwrap().bytes, without);
        assert_eq!(second_hello(&again).unwrap().unwrap().bytes, hello(b"a"));
        for none in
            [&hello(b"a")[..], &[23, 3, 3, 0, 1, 0], &[&CHANGE_CIPHER_SPEC[..], &[23]].concat(), &[21]]
        {
            assert_eq!(second_hello(none), Some(None), "{none:?}");
        }
    }

    #[test]
    fn what_has_no_port_or_is_no_whole_hello_stays() {
        for name in ["a.example", ":8443", "a:", "a:x", "a:123456", "::1", "a:1:2", ""] {
            assert_eq!(RewrittenHello::of(&hello(name.as_bytes())), None, "{name}");
        }
        let whole = hello(b"a.example:8443");
        for length in 0..whole.len() {
            assert_eq!(RewrittenHello::of(&whole[..length]), None, "{length} bytes");
        }
        // Whatever is wrong in it, it is parsed within its bounds.
        for index in 0..whole.len() {
            for value in [0, 1, 127, 255] {
                let mut spoilt = whole.clone();
                spoilt[index] = value;
                let _ = RewrittenHello::of(&spoilt);
            }
        }
    }

    #[test]
    fn hashes_are_those_of_the_original_while_the_message_is_handled() {
        let sent = hello(b"a.example:8443");
        let original = &sent[RECORD_HEAD..];
        let renamed = RewrittenHello::of(&sent).unwrap();
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
        // Another message before it, as after a HelloRetryRequest.
        let other = [254, 0, 0, 2, 7, 7];
        let expected = [
            hash(&[original, b"more"]),
            hash(&[&original[..original.len() - 2]]),
            hash(&[&other, original, &other]),
        ];
        let outside = hash(&[&changed]);
        let mut messages = vec![renamed.message];
        let inside = hashing_the_originals(&mut messages, || {
            assert_eq!(hash(&[b"another"]), hash(&[b"ano", b"ther"]));
            [
                hash(&[&changed, b"more"]),
                hash(&[&changed[..changed.len() - 2]]),
                hash(&[&[&other[..], &changed, &other].concat()]),
            ]
        });
        assert_eq!(inside, expected);
        assert_eq!(messages.len(), 1);
        assert_eq!(hash(&[&changed]), outside, "afterwards nothing is replaced");
        assert_ne!(outside, hash(&[original]));
    }
}
