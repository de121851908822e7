//! Resolves the secrets of credentials: those that lie on this host are read.

use signalbox_config::{
    Consumer, Credential, MIN_HMAC_SECRET, Password, Proof, ResourceKey, Secret, SharedSecret, TokenKey,
    check_key, check_password, check_shared_secret, sha256, without_line_break,
};
use signalbox_plugin::{PasswordSecret, ResolvedSecret, TokenSecret, VerificationKey};

use super::revision::rejected;
use crate::secrets::{SecretReader, SecretSource};
use crate::source::Rejected;

/// The secrets of a consumer's credentials, in their order.
pub(super) fn resolve(
    key: &ResourceKey,
    consumer: &Consumer,
    secrets: &dyn SecretReader,
) -> Result<Vec<ResolvedSecret>, Vec<Rejected>> {
    let mut resolved = Vec::with_capacity(consumer.credentials.len());
    let mut rejections = Vec::new();
    for (index, credential) in consumer.credentials.iter().enumerate() {
        match resolve_one(credential, secrets) {
            Ok(secret) => resolved.push(secret),
            Err((field, message)) => {
                rejections.push(rejected(key, format!("credentials[{index}].{field}"), message));
            }
        }
    }
    if rejections.is_empty() { Ok(resolved) } else { Err(rejections) }
}

/// An error has the field of the secret within the credential.
fn resolve_one(
    credential: &Credential,
    secrets: &dyn SecretReader,
) -> Result<ResolvedSecret, (&'static str, String)> {
    Ok(match &credential.proof {
        Proof::Key(Secret::Hash(hash)) => ResolvedSecret::Key(*hash),
        Proof::Key(Secret::Env(name)) => ResolvedSecret::Key(read_key(SecretSource::Env(name), secrets)?),
        Proof::Key(Secret::File(path)) => ResolvedSecret::Key(read_key(SecretSource::File(path), secrets)?),
        Proof::Password { password, .. } => ResolvedSecret::Password(match password {
            Password::Hash(hash) => PasswordSecret::Hash(hash.clone()),
            Password::Env(name) => read_password(SecretSource::Env(name), secrets)?,
            Password::File(path) => read_password(SecretSource::File(path), secrets)?,
        }),
        Proof::Token { key_id, algorithm, key, .. } => ResolvedSecret::Token(TokenSecret {
            key_id: key_id.clone(),
            algorithm: *algorithm,
            key: match key {
                TokenKey::Public(key) => VerificationKey::Public(key.clone()),
                TokenKey::Secret(secret) => {
                    let min_len = algorithm.min_secret().unwrap_or(1);
                    let read = shared_secret(secret, min_len, secrets);
                    VerificationKey::Secret(read.map_err(|message| ("jwt.secret", message))?)
                }
            },
        }),
        Proof::Signature { secret, .. } => {
            let read = shared_secret(secret, MIN_HMAC_SECRET, secrets);
            ResolvedSecret::Signature(read.map_err(|message| ("hmac_auth.secret", message))?)
        }
        Proof::Certificate(_) => ResolvedSecret::Certificate,
    })
}

/// The hash of the API key that lies at `source`.
fn read_key(
    source: SecretSource<'_>,
    secrets: &dyn SecretReader,
) -> Result<[u8; 32], (&'static str, String)> {
    let key = read(source, secrets, check_key).map_err(|message| ("key_auth.key", message))?;
    Ok(sha256(&key))
}

fn read_password(
    source: SecretSource<'_>,
    secrets: &dyn SecretReader,
) -> Result<PasswordSecret, (&'static str, String)> {
    let password =
        read(source, secrets, check_password).map_err(|message| ("basic_auth.password", message))?;
    Ok(PasswordSecret::of_clear(&password))
}

fn shared_secret(
    secret: &SharedSecret,
    min_len: usize,
    secrets: &dyn SecretReader,
) -> Result<Box<[u8]>, String> {
    let source = match secret {
        SharedSecret::Text(text) => return Ok(text.as_bytes().into()),
        SharedSecret::Env(name) => SecretSource::Env(name),
        SharedSecret::File(path) => SecretSource::File(path),
    };
    read(source, secrets, |secret| check_shared_secret(secret, min_len)).map(Into::into)
}

/// The secret at `source`, without the line break that ends it. The error is for people.
fn read(
    source: SecretSource<'_>,
    secrets: &dyn SecretReader,
    check: impl Fn(&[u8]) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let read = secrets.read(source).map_err(|error| format!("{source} {error}"))?;
    let secret = without_line_break(&read);
    if secret.is_empty() {
        return Err(format!("{source} is empty"));
    }
    check(secret).map_err(|error| format!("{source} {error}"))?;
    Ok(secret.to_vec())
}
