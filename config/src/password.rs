//! Passwords: how people write them, how they are stored, and how one is verified.

use std::borrow::Cow;
use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as BASE64;
use ring::rand::{SecureRandom as _, SystemRandom};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::secret::{REDACTED, sha256};

/// A password as people write it. A literal is replaced by its hash when it is stored.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PasswordSpec {
    /// The password itself, or [`REDACTED`].
    Literal(String),
    /// A reference, or the hash of a password.
    Reference(PasswordReference),
}

/// The place where a proxy finds a password, or its hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PasswordReference {
    /// An environment variable of the proxy; a line break at its end is not part of the password.
    Env(String),
    /// A file on the proxy's host; likewise.
    File(String),
    /// The hash of the password, as [`PasswordHash`] has it.
    Hash(String),
}

/// A password, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Password {
    /// Its hash.
    Hash(PasswordHash),
    /// An environment variable of the proxy that holds it.
    Env(String),
    /// A file on the proxy's host that holds it.
    File(String),
}

/// The hash of a password: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`, or `$2b$12$…` of bcrypt, which is accepted as it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PasswordHash(Box<str>);

/// The longest password, bytes.
const MAX_PASSWORD: usize = 1024;

impl PasswordSpec {
    /// Replaces a literal by its hash, which takes a moment: by `stored`, if that is a hash of the same password. The placeholder
    /// stays, and so does what is no password.
    pub(crate) fn hash(&mut self, stored: Option<PasswordHash>) {
        if let Self::Literal(text) = self
            && text != REDACTED
            && check_password(text.as_bytes()).is_ok()
        {
            let kept = stored.filter(|stored| stored.verifies(text.as_bytes()));
            let hash = kept.unwrap_or_else(|| PasswordHash::of(text.as_bytes()));
            *self = Self::Reference(PasswordReference::Hash(hash.0.into()));
        }
    }

    /// The stored hash; `None`: it has none.
    pub(crate) fn stored_hash(&self) -> Option<PasswordHash> {
        match self {
            Self::Reference(PasswordReference::Hash(text)) => PasswordHash::parse(text).ok(),
            Self::Literal(_) | Self::Reference(_) => None,
        }
    }

    /// The parsed password, or why it is none.
    pub(crate) fn parse(&self) -> Result<Password, String> {
        match self {
            Self::Literal(text) if text == REDACTED => {
                Err("is \"<redacted>\", but nothing is stored that could be kept".to_owned())
            }
            Self::Literal(text) => {
                check_password(text.as_bytes())?;
                Ok(Password::Hash(PasswordHash::of(text.as_bytes())))
            }
            Self::Reference(PasswordReference::Env(name)) if name.is_empty() => {
                Err("env must not be empty".to_owned())
            }
            Self::Reference(PasswordReference::File(path)) if path.is_empty() => {
                Err("file must not be empty".to_owned())
            }
            Self::Reference(PasswordReference::Env(name)) => Ok(Password::Env(name.clone())),
            Self::Reference(PasswordReference::File(path)) => Ok(Password::File(path.clone())),
            Self::Reference(PasswordReference::Hash(text)) => PasswordHash::parse(text).map(Password::Hash),
        }
    }
}

/// Says why nobody could authenticate with `password`.
pub fn check_password(password: &[u8]) -> Result<(), String> {
    match password {
        [] => Err("must not be empty".to_owned()),
        _ if password.len() > MAX_PASSWORD => {
            Err(format!("has {} bytes; at most {MAX_PASSWORD}", password.len()))
        }
        // RFC 7617, section 2: user-id and password must not have any control characters.
        _ if password.iter().any(u8::is_ascii_control) => {
            Err("has a control character, which no client can send".to_owned())
        }
        _ => Ok(()),
    }
}

/// The parameters of new hashes, which OWASP's "Password Storage Cheat Sheet" asks for: 19 MiB, two passes, one lane.
const MEMORY: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// Bounds of the hashes that are accepted: a proxy verifies each of them.
const MAX_MEMORY: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 8;
const MAX_BCRYPT_COST: u32 = 14;

const SALT_LEN: usize = 16;
const HASH_LEN: usize = 32;

/// The longest password that bcrypt looks at, bytes; it ignores what follows.
const MAX_BCRYPT_PASSWORD: usize = 71;

impl PasswordHash {
    /// Hashes a password with argon2id and a new salt. It takes some 20 ms.
    pub fn of(password: &[u8]) -> Self {
        let mut salt = [0; SALT_LEN];
        if SystemRandom::new().fill(&mut salt).is_err() {
            // Without randomness the salt is at least another one for each password.
            salt.copy_from_slice(&sha256(password)[..SALT_LEN]);
        }
        let mut hash = [0; HASH_LEN];
        let parameters = Argon2Hash { memory: MEMORY, passes: PASSES, lanes: LANES, salt: &salt, hash: &[] };
        // The parameters are within the bounds of the algorithm; the empty hash of a failure would verify nothing.
        let made = parameters.hash_into(password, &mut hash);
        let hash = BASE64.encode(if made { &hash[..] } else { &[] });
        let salt = BASE64.encode(salt);
        Self(format!("$argon2id$v=19$m={MEMORY},t={PASSES},p={LANES}${salt}${hash}").into())
    }

    /// Reads a hash as people have it; or why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$argon2id$") {
            let mut buffers = Default::default();
            let hash = Argon2Hash::parse(text, &mut buffers)
                .ok_or("is not a hash of argon2id: $argon2id$v=19$m=19456,t=2,p=1$SALT$HASH")?;
            if hash.memory > MAX_MEMORY || hash.passes > MAX_PASSES || hash.lanes > MAX_LANES {
                return Err(format!(
                    "would take a proxy too much to verify; at most m={MAX_MEMORY},t={MAX_PASSES},p={MAX_LANES}"
                ));
            }
        } else {
            let cost = bcrypt_cost(text)
                .ok_or("is neither a hash of argon2id ($argon2id$…) nor one of bcrypt ($2b$…)")?;
            if cost > MAX_BCRYPT_COST {
                return Err(format!(
                    "would take a proxy too long to verify; at most the cost {MAX_BCRYPT_COST}"
                ));
            }
        }
        Ok(Self(text.into()))
    }

    /// True if it is the hash of `password`. It takes as long as hashing.
    pub fn verifies(&self, password: &[u8]) -> bool {
        if bcrypt_cost(&self.0).is_some() {
            // The hash of a longer password is that of many others as well.
            let is_whole = password.len() <= MAX_BCRYPT_PASSWORD && !password.contains(&0);
            return bcrypt::verify(&password[..password.len().min(MAX_BCRYPT_PASSWORD)], &self.0)
                .unwrap_or(false)
                && is_whole;
        }
        let mut buffers = Default::default();
        let Some(hash) = Argon2Hash::parse(&self.0, &mut buffers) else { return false };
        let mut computed = vec![0; hash.hash.len()];
        hash.hash_into(password, &mut computed) && is_equal(&computed, hash.hash)
    }

    /// How long it takes to verify, roughly, as the memory in KiB that is gone through.
    pub fn cost(&self) -> u64 {
        if let Some(cost) = bcrypt_cost(&self.0) {
            // A step up doubles it; measured, the cost 10 takes as long as 96 MiB do.
            return 96_u64 << cost.min(40);
        }
        let mut buffers = Default::default();
        Argon2Hash::parse(&self.0, &mut buffers)
            .map_or(0, |hash| u64::from(hash.memory) * u64::from(hash.passes))
    }

    /// A hash of no password that takes as long to verify as this one.
    pub fn decoy(&self) -> Self {
        let text = match bcrypt_cost(&self.0) {
            Some(cost) => format!("$2b${cost:02}${}", ".".repeat(53)),
            None => {
                let mut buffers = Default::default();
                let Some(hash) = Argon2Hash::parse(&self.0, &mut buffers) else { return self.clone() };
                let Argon2Hash { memory, passes, lanes, .. } = hash;
                let (salt, hash) = (BASE64.encode([0; SALT_LEN]), BASE64.encode([0; HASH_LEN]));
                format!("$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}${hash}")
            }
        };
        Self(text.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Without the hash, from which a weak password can be found.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Debug for PasswordSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) | Self::Reference(PasswordReference::Hash(_)) => f.write_str(REDACTED),
            Self::Reference(reference) => reference.fmt(f),
        }
    }
}

/// The parts of a hash of argon2id in the "PHC string format".
struct Argon2Hash<'b> {
    memory: u32,
    passes: u32,
    lanes: u32,
    salt: &'b [u8],
    hash: &'b [u8],
}

impl<'b> Argon2Hash<'b> {
    fn parse(text: &str, (salt_buffer, hash_buffer): &'b mut (Vec<u8>, Vec<u8>)) -> Option<Self> {
        let mut parts = text.strip_prefix("$argon2id$v=19$")?.split('$');
        let (parameters, salt, hash) = (parts.next()?, parts.next()?, parts.next()?);
        let mut numbers = parameters.split(',');
        let mut number = |name: &str| -> Option<u32> { numbers.next()?.strip_prefix(name)?.parse().ok() };
        let (memory, passes, lanes) = (number("m=")?, number("t=")?, number("p=")?);
        if parts.next().is_some() || numbers.next().is_some() || text.len() > 256 {
            return None;
        }
        *salt_buffer = BASE64.decode(salt).ok()?;
        *hash_buffer = BASE64.decode(hash).ok()?;
        let parsed = Self { memory, passes, lanes, salt: salt_buffer, hash: hash_buffer };
        let fits = (8..=64).contains(&parsed.salt.len()) && (16..=64).contains(&parsed.hash.len());
        (fits && parsed.parameters().is_some()).then_some(parsed)
    }

    fn parameters(&self) -> Option<Params> {
        Params::new(self.memory, self.passes, self.lanes, None).ok()
    }

    /// Fills `out` with the hash of `password`. False: the parameters are not those of a hash.
    fn hash_into(&self, password: &[u8], out: &mut [u8]) -> bool {
        self.parameters().is_some_and(|parameters| {
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
            argon2.hash_password_into(password, self.salt, out).is_ok()
        })
    }
}

/// The cost of a hash of bcrypt: `$2b$12$` and 53 characters. `None`: it is none.
fn bcrypt_cost(text: &str) -> Option<u32> {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| text.strip_prefix(version))?;
    let (cost, rest) = rest.split_once('$')?;
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/');
    let cost: u32 = if cost.len() == 2 { cost.parse().ok()? } else { return None };
    (rest.len() == 53 && rest.bytes().all(is_base64) && (4..=31).contains(&cost)).then_some(cost)
}

/// Compares in a time that does not depend on where the two differ.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

impl JsonSchema for PasswordSpec {
    fn schema_name() -> Cow<'static, str> {
        "Password".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let reference = |name: &str, example: &str| {
            json_schema!({
                "type": "object",
                "properties": {name: {"type": "string", "examples": [example]}},
                "required": [name],
                "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "The password, of which only a hash is stored; or a reference: {env: NAME} or {file: PATH} on the proxy's host; or a hash of argon2id or bcrypt. The API returns \"<redacted>\" in its place",
            "anyOf": [
                {"type": "string", "format": "password"},
                reference("env", "NAME"),
                reference("file", "/run/secrets/name"),
                reference("hash", "$2b$12$"),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_verifies_only_against_its_own_hash() {
        let hash = PasswordHash::of("Geheim\u{df}".as_bytes());
        assert!(PasswordHash::parse(hash.as_str()).is_ok(), "{}", hash.as_str());
        for (password, expected) in
            [("Geheim\u{df}", true), ("geheim\u{df}", false), ("", false), ("Geheim", false)]
        {
            assert_eq!(hash.verifies(password.as_bytes()), expected, "{password}");
        }
        assert_ne!(hash, PasswordHash::of("Geheim\u{df}".as_bytes()), "each has a salt of its own");
        assert!(!hash.decoy().verifies("Geheim\u{df}".as_bytes()));
        assert_eq!(hash.decoy().cost(), hash.cost());
    }

    #[test]
    fn hashes_of_others_are_accepted() {
        for (text, password) in [
            // The reference implementation's `argon2 somesalt -id -t 2 -m 16 -p 1`.
            (
                "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
                "password",
            ),
            // `htpasswd -B`, and the test vectors of OpenBSD.
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U"),
            ("$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U"),
        ] {
            let hash = PasswordHash::parse(text).unwrap();
            assert!(hash.verifies(password.as_bytes()), "{text}");
            assert!(!hash.verifies(b"U*V"));
            assert!(!hash.decoy().verifies(password.as_bytes()));
            assert!(PasswordHash::parse(hash.decoy().as_str()).is_ok());
        }
    }

    #[test]
    fn bcrypt_does_not_verify_what_it_would_cut_off() {
        let long = "x".repeat(80);
        let hash = PasswordHash::parse(&bcrypt::hash(&long[..71], 4).unwrap()).unwrap();
        assert!(hash.verifies(&long.as_bytes()[..71]));
        assert!(!hash.verifies(&long.as_bytes()[..72]) && !hash.verifies(long.as_bytes()));
    }

    #[test]
    fn what_is_no_hash_or_would_take_too_long_is_refused() {
        let good = PasswordHash::of(b"x");
        let good = good.as_str();
        for bad in [
            "",
            "password",
            "$1$abc$def",
            "$argon2i$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
            "$2b$15$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            "$2b$5$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe",
            &good.replace("m=19456", "m=999999999"),
            &good.replace("t=2", "t=99"),
            &good.replace("p=1", "p=0"),
            &good.replace("p=1", "p=1,x=1"),
            &good[..good.len() - 40],
            &format!("{good}$"),
        ] {
            assert!(PasswordHash::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_that_no_client_could_send_is_refused() {
        for bad in ["", "a\nb", "a\0", &"x".repeat(1025), REDACTED] {
            assert!(PasswordSpec::Literal(bad.to_owned()).parse().is_err(), "{bad:?}");
        }
        for good in ["x", "a:b", " spaces ", "Gr\u{fc}n", &"x".repeat(1024)] {
            assert!(
                matches!(PasswordSpec::Literal(good.to_owned()).parse(), Ok(Password::Hash(_))),
                "{good:?}"
            );
        }
    }
}
