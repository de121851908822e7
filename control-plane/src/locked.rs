//! Secrets in a document that leaves the control plane: encrypted under a passphrase, so that the document can be applied
//! elsewhere by whoever knows it.
//!
//! AES-256-GCM with a key that PBKDF2 makes of the passphrase and of a salt that one document has. Each secret is bound to
//! the field of the resource that it belongs to, so that none can be put in the place of another. As text it is base64 of
//! [`VERSION`], salt, nonce, what is encrypted, and the tag.

use std::collections::HashMap;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;

/// The first byte.
const VERSION: u8 = 1;

const SALT_LEN: usize = 16;

/// The number that OWASP's "Password Storage Cheat Sheet" asks of PBKDF2 with HMAC-SHA-256.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not zero");

/// How many salts the secrets of one document may have: parts of several exports may be joined, but each salt takes a
/// quarter of a second of a processor.
const MAX_SALTS: usize = 4;

type Salt = [u8; SALT_LEN];

/// Encrypts the secrets of one document.
pub(crate) struct Locker {
    salt: Salt,
    key: LessSafeKey,
}

/// Decrypts secrets of one document.
pub(crate) struct Unlocker<'p> {
    passphrase: Option<&'p str>,
    /// The keys made so far, by salt.
    keys: HashMap<Salt, LessSafeKey>,
}

/// There is no randomness, or the cipher failed.
#[derive(Debug, thiserror::Error)]
#[error("a secret cannot be encrypted")]
pub(crate) struct CannotEncrypt;

impl Locker {
    /// Takes a moment: the passphrase is hashed many times.
    pub(crate) fn new(passphrase: &str) -> Result<Self, CannotEncrypt> {
        let mut salt = Salt::default();
        getrandom::fill(&mut salt).map_err(|_| CannotEncrypt)?;
        Ok(Self { salt, key: key_of(passphrase, &salt).ok_or(CannotEncrypt)? })
    }

    /// `secret`, encrypted; `bound_to` names the field that it belongs to.
    pub(crate) fn lock(&self, secret: &str, bound_to: &str) -> Result<String, CannotEncrypt> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| CannotEncrypt)?;
        let mut text = secret.as_bytes().to_vec();
        let aad = Aad::from(bound_to.as_bytes());
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text)
            .map_err(|_| CannotEncrypt)?;
        Ok(BASE64_STANDARD.encode([&[VERSION][..], &self.salt, &nonce, &text].concat()))
    }
}

impl<'p> Unlocker<'p> {
    pub(crate) fn new(passphrase: Option<&'p str>) -> Self {
        Self { passphrase, keys: HashMap::new() }
    }

    /// The secret, or why it cannot be told.
    pub(crate) fn unlock(&mut self, locked: &str, bound_to: &str) -> Result<String, &'static str> {
        let Some(passphrase) = self.passphrase else {
            return Err("is encrypted: send the passphrase of its export in X-Signalbox-Passphrase");
        };
        let bytes = BASE64_STANDARD.decode(locked).map_err(|_| NOT_LOCKED)?;
        let (salt, rest) = bytes
            .strip_prefix(&[VERSION])
            .and_then(<[u8]>::split_first_chunk::<SALT_LEN>)
            .ok_or(NOT_LOCKED)?;
        let (nonce, text) = rest.split_first_chunk::<NONCE_LEN>().ok_or(NOT_LOCKED)?;
        if !self.keys.contains_key(salt) {
            if self.keys.len() >= MAX_SALTS {
                return Err("is of another export: the secrets of one document may be of four exports");
            }
            self.keys.insert(*salt, key_of(passphrase, salt).ok_or(NOT_LOCKED)?);
        }
        let key = self.keys.get(salt).ok_or(NOT_LOCKED)?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.open_in_place(nonce, Aad::from(bound_to.as_bytes()), &mut text);
        let secret = opened.map_err(|_| {
            "cannot be decrypted: the passphrase is another, or the resource was renamed, or the text was changed"
        })?;
        String::from_utf8(secret.to_vec()).map_err(|_| NOT_LOCKED)
    }
}

const NOT_LOCKED: &str = "is not what an export with secrets=encrypted gives";

fn key_of(passphrase: &str, salt: &Salt) -> Option<LessSafeKey> {
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, salt, passphrase.as_bytes(), &mut key);
    UnboundKey::new(&AES_256_GCM, &key).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_told_to_who_knows_the_passphrase_and_only_for_its_field() {
        let locker = Locker::new("correct horse battery").unwrap();
        let locked = locker.lock("the key", "certificate/a private_key").unwrap();
        assert_ne!(locked, locker.lock("the key", "certificate/a private_key").unwrap());
        let unlock = |passphrase, locked: &str, field| Unlocker::new(passphrase).unlock(locked, field);
        let known = Some("correct horse battery");
        let mut damaged = BASE64_STANDARD.decode(&locked).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        let damaged = BASE64_STANDARD.encode(damaged);
        assert_eq!(unlock(known, &locked, "certificate/a private_key").as_deref(), Ok("the key"));
        for (passphrase, locked, field, reason) in [
            (None, &*locked, "certificate/a private_key", "X-Signalbox-Passphrase"),
            (Some("another passphrase"), &locked, "certificate/a private_key", "cannot be decrypted"),
            (known, &locked, "certificate/b private_key", "cannot be decrypted"),
            (known, &damaged, "certificate/a private_key", "cannot be decrypted"),
            (known, "", "certificate/a private_key", "is not what"),
            (known, "AQID", "certificate/a private_key", "is not what"),
            (known, "not base64", "certificate/a private_key", "is not what"),
        ] {
            let error = unlock(passphrase, locked, field).expect_err("it is refused");
            assert!(error.contains(reason), "{locked} {field}: {error}");
        }
    }

    #[test]
    fn a_document_of_very_many_exports_is_refused() {
        let passphrase = "correct horse battery";
        let mut unlocker = Unlocker::new(Some(passphrase));
        let each: Vec<bool> = (0..MAX_SALTS + 2)
            .map(|_| {
                let locked = Locker::new(passphrase).unwrap().lock("x", "f").unwrap();
                unlocker.unlock(&locked, "f").is_ok()
            })
            .collect();
        assert_eq!(each, [true, true, true, true, false, false]);
    }
}
