//! Seals what cookies hold, so that only this gateway can read and write it.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};

/// The keys of cookies: the first seals, and all open.
pub(super) struct Sealer {
    keys: Box<[hmac::Key]>,
    /// The text that the cookies of this configuration have in common, and others have not.
    scope: Box<[u8]>,
    random: SystemRandom,
}

/// The form of what is sealed: a change makes all that was sealed before invalid.
const VERSION: u8 = 1;
/// The length of the number from which the key of each cookie is made, bytes.
const SALT: usize = 24;

/// There is no randomness.
#[derive(Debug)]
pub(super) struct NoRandomness;

impl Sealer {
    /// `scope`: the parts of the configuration to which cookies are bound.
    pub(super) fn new<'s>(secrets: impl IntoIterator<Item = &'s [u8]>, scope: &[&str]) -> Self {
        let keys = secrets.into_iter().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self { keys: keys.collect(), scope: framed(scope).into(), random: SystemRandom::new() }
    }

    /// Seals `content` for the cookie `name`, as text that a cookie can hold.
    pub(super) fn seal(&self, name: &str, content: &[u8]) -> Result<String, NoRandomness> {
        let mut salt = [0; SALT];
        self.random.fill(&mut salt).map_err(|_| NoRandomness)?;
        let key = self.keys.first().and_then(|key| cookie_key(key, &salt)).ok_or(NoRandomness)?;
        let mut sealed = content.to_vec();
        key.seal_in_place_append_tag(nonce(), self.bound_to(name), &mut sealed).map_err(|_| NoRandomness)?;
        Ok(BASE64.encode([&[VERSION], &salt[..], &sealed].concat()))
    }

    /// Opens what was sealed for the cookie `name`. `None`: it was not, or not under these keys and this configuration.
    pub(super) fn open(&self, name: &str, text: &[u8]) -> Option<Vec<u8>> {
        let bytes = BASE64.decode(text).ok()?;
        let (salt, sealed) = bytes.strip_prefix(&[VERSION])?.split_at_checked(SALT)?;
        self.keys.iter().find_map(|key| {
            let mut opened = sealed.to_vec();
            let len =
                cookie_key(key, salt)?.open_in_place(nonce(), self.bound_to(name), &mut opened).ok()?.len();
            opened.truncate(len);
            Some(opened)
        })
    }

    /// A text that nobody can guess: 256 bits.
    pub(super) fn random_text(&self) -> Result<String, NoRandomness> {
        let mut bytes = [0; 32];
        self.random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(BASE64.encode(bytes))
    }

    fn bound_to(&self, name: &str) -> Aad<Vec<u8>> {
        Aad::from([framed(&[name]), self.scope.to_vec()].concat())
    }
}

/// The key of one cookie. It seals nothing else, so its nonce may be the same as that of others.
fn cookie_key(key: &hmac::Key, salt: &[u8]) -> Option<LessSafeKey> {
    let mut context = hmac::Context::with_key(key);
    context.update(b"signalbox oidc cookie");
    context.update(salt);
    UnboundKey::new(&AES_256_GCM, context.sign().as_ref()).ok().map(LessSafeKey::new)
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// Texts with their lengths before them, so that no two lists have one form.
fn framed(texts: &[&str]) -> Vec<u8> {
    let frame = |text: &&str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    texts.iter().flat_map(frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &[u8] = b"the first secret, which is long enough";
    const TWO: &[u8] = b"another secret, which is long enough too";
    const SCOPE: [&str; 2] = ["https://login.example", "shop"];

    fn sealer(secrets: &[&'static [u8]]) -> Sealer {
        Sealer::new(secrets.iter().copied(), &SCOPE)
    }

    #[test]
    fn only_the_same_keys_name_and_configuration_open_what_was_sealed() {
        let sealed = sealer(&[ONE]).seal("session", b"content").unwrap();
        for (sealer, name, opens) in [
            (sealer(&[ONE]), "session", true),
            // Rotated: the old key still opens, as long as it is there.
            (sealer(&[TWO, ONE]), "session", true),
            (sealer(&[TWO]), "session", false),
            (sealer(&[ONE]), "session-flow", false),
            (Sealer::new([ONE], &["https://login.example", "other"]), "session", false),
            (Sealer::new([ONE], &["https://login.examples", "hop"]), "session", false),
        ] {
            let opened = sealer.open(name, sealed.as_bytes());
            assert_eq!(opened.as_deref(), opens.then_some(&b"content"[..]), "{name}");
        }
    }

    #[test]
    fn what_is_changed_or_cut_off_does_not_open() {
        let sealer = sealer(&[ONE]);
        let sealed = sealer.seal("session", b"content").unwrap();
        assert_ne!(sealed, sealer.seal("session", b"content").unwrap());
        let bytes = BASE64.decode(&sealed).unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert_eq!(sealer.open("session", BASE64.encode(changed).as_bytes()), None, "{place}");
            assert_eq!(sealer.open("session", BASE64.encode(&bytes[..place]).as_bytes()), None, "{place}");
        }
        for text in ["", "A", "AQ", "=", "%"] {
            assert_eq!(sealer.open("session", text.as_bytes()), None, "{text}");
        }
    }
}
