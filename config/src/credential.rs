//! The credentials of consumers: one type for each way to authenticate.

use std::collections::HashSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Errors;
use crate::password::{Password, PasswordSpec};
use crate::public_key::{PublicKey, TokenAlgorithm};
use crate::secret::{REDACTED, ReferenceSpec, Secret, SecretSpec, hex};
use crate::shared_secret::{SharedSecret, SharedSecretSpec};

/// One credential: an object with one field, which names its type.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CredentialSpec {
    /// An API key.
    KeyAuth(KeyAuthSpec),
    /// A user name and a password.
    BasicAuth(BasicAuthSpec),
    /// A key that verifies the consumer's tokens (JWT).
    Jwt(JwtSpec),
    /// A secret by which the consumer signs requests.
    HmacAuth(HmacAuthSpec),
    /// A client certificate.
    Mtls(MtlsSpec),
}

/// An API key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyAuthSpec {
    /// An identifier of the key, unique among the consumer's keys. It is sent to targets as `X-Credential-Identifier`. Absent: it is
    /// derived from the key's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The key, or a reference: `{env: NAME}` or `{file: PATH}` on the proxy's host. Of a literal key only the SHA-256 is stored and
    /// sent.
    pub key: SecretSpec,
}

/// A user name and a password, for HTTP Basic authentication.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BasicAuthSpec {
    /// An identifier, unique among the consumer's credentials of the type. It is sent to targets as `X-Credential-Identifier`. Absent:
    /// the user name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The user name, without a colon. No other consumer has it.
    pub username: String,
    /// The password, or a reference: `{env: NAME}` or `{file: PATH}` on the proxy's host, or `{hash: HASH}` of argon2id or bcrypt. Of a
    /// literal password only a hash of argon2id is stored and sent.
    pub password: PasswordSpec,
}

/// A key that verifies tokens.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtSpec {
    /// An identifier, unique among the consumer's credentials of the type. It is sent to targets as `X-Credential-Identifier`. Absent:
    /// `key_id`, or `issuer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The issuer of the consumer's tokens, by which the credential is found: their claim `iss`.
    pub issuer: String,
    /// The identifier of the key in the header of tokens, `kid`. Tokens with another one are not verified with the key. Absent: the key
    /// verifies all of the issuer's tokens for which there is no key with their `kid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The only algorithm that tokens may be signed by.
    pub algorithm: TokenAlgorithm,
    /// The secret, for the algorithms HS256, HS384 and HS512: at least 32, 48 or 64 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SharedSecretSpec>,
    /// The public key in PEM, for the other algorithms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
}

/// A secret by which requests are signed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacAuthSpec {
    /// An identifier, unique among the consumer's credentials of the type. It is sent to targets as `X-Credential-Identifier`. Absent:
    /// `key_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The name of the key, which clients send with a signature. No other consumer has it.
    pub key_id: String,
    /// The secret, at least 16 bytes, or a reference: `{env: NAME}` or `{file: PATH}` on the proxy's host.
    pub secret: SharedSecretSpec,
}

/// A client certificate, by one of its names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MtlsSpec {
    /// An identifier, unique among the consumer's credentials of the type. It is sent to targets as `X-Credential-Identifier`. Absent:
    /// the name of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The subject, as RFC 4514 writes it in the order of the certificate: `CN=alice,O=Example`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// One of its other names: `DNS:alice.example`, `URI:spiffe://example/alice`, `email:alice@example.com` or `IP:192.0.2.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub san: Option<String>,
    /// The SHA-256 of the certificate, 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// A credential.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credential {
    /// Sent as `X-Credential-Identifier`.
    pub id: Box<str>,
    /// The proof that the consumer has to give.
    pub proof: Proof,
}

/// The proof of who one is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Proof {
    /// An API key.
    Key(Secret),
    /// A user name and a password.
    Password {
        /// The user name.
        username: Box<str>,
        /// The password.
        password: Password,
    },
    /// A signed token.
    Token {
        /// The issuer of the token.
        issuer: Box<str>,
        /// The identifier of the key in the token's header; `None`: any.
        key_id: Option<Box<str>>,
        /// The algorithm of the signature.
        algorithm: TokenAlgorithm,
        /// The key that verifies the signature.
        key: TokenKey,
    },
    /// A signed request.
    Signature {
        /// The name of the key.
        key_id: Box<str>,
        /// The key.
        secret: SharedSecret,
    },
    /// A certificate.
    Certificate(CertificateName),
}

/// The key that verifies a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TokenKey {
    /// The secret of an HMAC.
    Secret(SharedSecret),
    /// A public key.
    Public(PublicKey),
}

/// A name of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// The subject.
    Subject(Box<str>),
    /// One of its other names.
    Other(Box<str>),
    /// The SHA-256 of the certificate.
    Fingerprint(Box<str>),
}

/// The shortest secret of an HMAC over requests, bytes.
pub const MIN_HMAC_SECRET: usize = 16;

/// The longest name of a credential, bytes.
const MAX_NAME: usize = 256;

impl Credential {
    /// The thing that no other consumer may have, and the field below `at` that claims it. `None`: only a proxy knows it.
    pub(crate) fn claim(&self, at: &str) -> Option<(String, String)> {
        Some(match &self.proof {
            Proof::Key(Secret::Hash(hash)) => {
                (format!("API key with SHA-256 {}", hex(hash)), format!("{at}.key_auth.key"))
            }
            Proof::Key(Secret::Env(_) | Secret::File(_)) => return None,
            Proof::Password { username, .. } => {
                (format!("the user name {username:?}"), format!("{at}.basic_auth.username"))
            }
            Proof::Token { issuer, key_id: Some(key_id), .. } => {
                (format!("the key {key_id:?} of the token issuer {issuer:?}"), format!("{at}.jwt.key_id"))
            }
            Proof::Token { issuer, key_id: None, .. } => {
                (format!("the token issuer {issuer:?}"), format!("{at}.jwt.issuer"))
            }
            Proof::Signature { key_id, .. } => {
                (format!("the signing key {key_id:?}"), format!("{at}.hmac_auth.key_id"))
            }
            Proof::Certificate(name) => (name.to_string(), format!("{at}.mtls.{}", name.field())),
        })
    }
}

impl CertificateName {
    fn field(&self) -> &'static str {
        match self {
            Self::Subject(_) => "subject",
            Self::Other(_) => "san",
            Self::Fingerprint(_) => "fingerprint",
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(text) => write!(f, "the certificate subject {text:?}"),
            Self::Other(text) => write!(f, "the certificate name {text:?}"),
            Self::Fingerprint(text) => write!(f, "the certificate with SHA-256 {text}"),
        }
    }
}

impl CredentialSpec {
    /// The name of its type, which is its only field.
    fn tag(&self) -> &'static str {
        match self {
            Self::KeyAuth(_) => "key_auth",
            Self::BasicAuth(_) => "basic_auth",
            Self::Jwt(_) => "jwt",
            Self::HmacAuth(_) => "hmac_auth",
            Self::Mtls(_) => "mtls",
        }
    }

    fn given_id(&self) -> Option<&String> {
        match self {
            Self::KeyAuth(KeyAuthSpec { id, .. })
            | Self::BasicAuth(BasicAuthSpec { id, .. })
            | Self::Jwt(JwtSpec { id, .. })
            | Self::HmacAuth(HmacAuthSpec { id, .. })
            | Self::Mtls(MtlsSpec { id, .. }) => id.as_ref(),
        }
    }

    /// The identifier, as it is given or derived.
    fn id(&self) -> String {
        if let Some(id) = self.given_id() {
            return id.clone();
        }
        match self {
            Self::KeyAuth(spec) => derived_id(&spec.key),
            Self::BasicAuth(spec) => spec.username.clone(),
            Self::Jwt(spec) => spec.key_id.as_ref().unwrap_or(&spec.issuer).clone(),
            Self::HmacAuth(spec) => spec.key_id.clone(),
            Self::Mtls(MtlsSpec { subject, san, fingerprint, .. }) => {
                subject.as_ref().or(san.as_ref()).or(fingerprint.as_ref()).cloned().unwrap_or_default()
            }
        }
    }

    pub(crate) fn hash_password(&mut self) {
        if let Self::BasicAuth(spec) = self {
            spec.password.hash(None);
        }
    }

    pub(crate) fn make_canonical(&mut self) {
        match self {
            Self::KeyAuth(spec) => {
                spec.id = Some(spec.id.take().unwrap_or_else(|| derived_id(&spec.key)));
                spec.key = spec.key.hashed();
            }
            Self::Mtls(spec) => {
                if let Some(fingerprint) = &mut spec.fingerprint {
                    *fingerprint = plain_fingerprint(fingerprint);
                }
            }
            Self::BasicAuth(_) | Self::Jwt(_) | Self::HmacAuth(_) => {}
        }
    }

    pub(crate) fn redact(&mut self) {
        let redacted = || REDACTED.to_owned();
        match self {
            Self::KeyAuth(spec) => {
                if let SecretSpec::Reference(ReferenceSpec::Sha256(_)) | SecretSpec::Literal(_) = spec.key {
                    spec.key = SecretSpec::Literal(redacted());
                }
            }
            Self::BasicAuth(spec) => {
                if spec.password.stored_hash().is_some() || matches!(spec.password, PasswordSpec::Literal(_))
                {
                    spec.password = PasswordSpec::Literal(redacted());
                }
            }
            Self::Jwt(JwtSpec { secret: Some(secret), .. }) => secret.redact(),
            Self::HmacAuth(spec) => spec.secret.redact(),
            Self::Jwt(_) | Self::Mtls(_) => {}
        }
    }

    /// Reads it. The errors are below `at`, the field of its type.
    fn parse(&self, at: &str, errors: &mut Errors) -> Option<Proof> {
        match self {
            Self::KeyAuth(spec) => {
                let key =
                    spec.key.parse().map_err(|error| errors.push(format_args!("{at}.key"), error)).ok()?;
                Some(Proof::Key(key))
            }
            Self::BasicAuth(spec) => spec.parse(at, errors),
            Self::Jwt(spec) => spec.parse(at, errors),
            Self::HmacAuth(spec) => {
                let key_id = name(&spec.key_id, &format!("{at}.key_id"), errors);
                let secret = spec.secret.parse(MIN_HMAC_SECRET);
                let secret = secret.map_err(|error| errors.push(format_args!("{at}.secret"), error)).ok();
                Some(Proof::Signature { key_id: key_id?, secret: secret? })
            }
            Self::Mtls(spec) => spec.parse(at, errors).map(Proof::Certificate),
        }
    }
}

impl BasicAuthSpec {
    fn parse(&self, at: &str, errors: &mut Errors) -> Option<Proof> {
        let field = format!("{at}.username");
        let username = match self.username.as_str() {
            // RFC 7617, section 2.
            text if text.contains(':') => {
                errors.push(field, "must not have a colon, which ends it where clients send it");
                None
            }
            text => name(text, &field, errors),
        };
        let password = self.password.parse();
        let password = password.map_err(|error| errors.push(format_args!("{at}.password"), error)).ok();
        Some(Proof::Password { username: username?, password: password? })
    }
}

impl JwtSpec {
    fn parse(&self, at: &str, errors: &mut Errors) -> Option<Proof> {
        let issuer = name(&self.issuer, &format!("{at}.issuer"), errors);
        let key_id = self.key_id.as_ref().map(|text| name(text, &format!("{at}.key_id"), errors));
        let algorithm = self.algorithm;
        let key = parse_token_key(algorithm, self.secret.as_ref(), self.public_key.as_deref(), at, errors);
        Some(Proof::Token {
            issuer: issuer?,
            key_id: match key_id {
                None => None,
                Some(key_id) => Some(key_id?),
            },
            algorithm,
            key: key?,
        })
    }
}

/// The key of a token: the secret or the public key, as `algorithm` needs it. The errors are below `at`.
fn parse_token_key(
    algorithm: TokenAlgorithm,
    secret: Option<&SharedSecretSpec>,
    public_key: Option<&str>,
    at: &str,
    errors: &mut Errors,
) -> Option<TokenKey> {
    let (wants, not) = match algorithm.min_secret() {
        Some(_) => ("secret", "public_key"),
        None => ("public_key", "secret"),
    };
    let read = match (algorithm.min_secret(), secret, public_key) {
        (Some(min_len), Some(secret), None) => secret.parse(min_len).map(TokenKey::Secret),
        (None, None, Some(pem)) => PublicKey::from_pem(pem).and_then(|key| match algorithm.fits(key.shape) {
            true => Ok(TokenKey::Public(key)),
            false => Err(format!("is of another type than {} needs", algorithm.as_str())),
        }),
        (Some(_), Some(_), Some(_)) | (Some(_), None, Some(_)) | (None, Some(_), _) => {
            errors.push(format_args!("{at}.{not}"), format_args!("is not used by {}", algorithm.as_str()));
            return None;
        }
        (_, None, None) => Err(format!("is required by {}", algorithm.as_str())),
    };
    read.map_err(|error| errors.push(format_args!("{at}.{wants}"), error)).ok()
}

impl MtlsSpec {
    fn parse(&self, at: &str, errors: &mut Errors) -> Option<CertificateName> {
        match (&self.subject, &self.san, &self.fingerprint) {
            (Some(subject), None, None) => {
                name(subject, &format!("{at}.subject"), errors).map(CertificateName::Subject)
            }
            (None, Some(san), None) => {
                let kinds = ["DNS:", "URI:", "email:", "IP:"];
                if !kinds.iter().any(|kind| san.strip_prefix(kind).is_some_and(|rest| !rest.is_empty())) {
                    errors.push(format_args!("{at}.san"), "must begin with DNS:, URI:, email: or IP:");
                    return None;
                }
                name(san, &format!("{at}.san"), errors).map(CertificateName::Other)
            }
            (None, None, Some(fingerprint)) => {
                let digits = plain_fingerprint(fingerprint);
                if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                    errors.push(format_args!("{at}.fingerprint"), "must be a SHA-256, 64 hexadecimal digits");
                    return None;
                }
                Some(CertificateName::Fingerprint(digits.into()))
            }
            _ => {
                errors.push(at, "needs exactly one of subject, san and fingerprint");
                None
            }
        }
    }
}

/// A fingerprint as it is compared. Some tools write colons between the bytes.
fn plain_fingerprint(text: &str) -> String {
    text.replace(':', "").to_ascii_lowercase()
}

/// A name that clients send.
fn name(text: &str, field: &str, errors: &mut Errors) -> Option<Box<str>> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        errors.push(field, format_args!("must have 1 to {MAX_NAME} bytes, and no control characters"));
        return None;
    }
    Some(text.into())
}

/// Reads the credentials of a consumer. Each has an identifier that no other of its type has, and so has each thing that is
/// claimed.
pub(crate) fn parse_credentials(specs: &[CredentialSpec], errors: &mut Errors) -> Box<[Credential]> {
    let mut parsed: Vec<Credential> = Vec::with_capacity(specs.len());
    let mut ids: HashSet<(&str, String)> = HashSet::new();
    let mut keys: HashSet<Secret> = HashSet::new();
    let mut claims: HashSet<String> = HashSet::new();
    for (index, spec) in specs.iter().enumerate() {
        let entry = format!("credentials[{index}]");
        let field = format!("{entry}.{}", spec.tag());
        let proof = match spec.parse(&field, errors) {
            Some(Proof::Key(key)) if !keys.insert(key.clone()) => {
                errors.push(format_args!("{field}.key"), "is the key of another of its credentials");
                None
            }
            proof => proof,
        };
        // An identifier that is derived from what is wrong is as wrong as that.
        if spec.given_id().is_none() && proof.is_none() {
            continue;
        }
        let id = spec.id();
        if !is_header_text(&id) {
            errors.push(format_args!("{field}.id"), "must be 1 to 256 printable ASCII characters");
        } else if !ids.insert((spec.tag(), id.clone())) {
            errors.push(format_args!("{field}.id"), format_args!("{id:?} is used twice"));
        }
        let Some(credential) = proof.map(|proof| Credential { id: id.into(), proof }) else { continue };
        if !matches!(credential.proof, Proof::Key(_))
            && let Some((claim, claimed)) = credential.claim(&entry)
            && !claims.insert(claim)
        {
            errors.push(claimed, "is that of another of its credentials");
        }
        parsed.push(credential);
    }
    parsed.into()
}

/// The secret fields of each type, and the fields from which an identifier is derived, the first that is there.
const TYPES: [(&str, &str, &[&str]); 4] = [
    ("key_auth", "key", &[]),
    ("basic_auth", "password", &["username"]),
    ("jwt", "secret", &["key_id", "issuer"]),
    ("hmac_auth", "secret", &["key_id"]),
];

/// Puts the secret of the `stored` credentials in the place of [`REDACTED`] in a new one: the one of the same type with its `id`,
/// or the only one of the type where no `id` is given. What has no counterpart stays, and is an error when it is parsed. The new
/// one may be wrong in any way: what is not understood stays too.
///
/// An `id` that was made from a stored key is taken out beside another key, so that one is made from that.
pub(crate) fn restore(stored: &[CredentialSpec], new: &mut Value) {
    for (tag, field, derived_from) in TYPES {
        let Some(spec) = new.get_mut(tag).and_then(Value::as_object_mut) else { continue };
        if spec.get(field).and_then(Value::as_str) != Some(REDACTED) {
            if tag == "key_auth" && has_derived_id_of_another_key(stored, spec) {
                spec.remove("id");
            }
            continue;
        }
        if let Some(counterpart) = counterpart(stored, spec, tag, derived_from) {
            let kept = serde_json::to_value(counterpart).unwrap_or_default();
            if let Some(secret) = kept.get(tag).and_then(|kept| kept.get(field)) {
                spec.insert(field.to_owned(), secret.clone());
            }
            if tag == "key_auth" {
                spec.insert("id".to_owned(), counterpart.id().into());
            }
        }
    }
}

/// Hashes the password of a credential that was not read yet. If it is the stored one, the stored hash is kept.
pub(crate) fn hash_password_of(stored: &[CredentialSpec], new: &mut Value) {
    let [_, (tag, field, derived_from), ..] = TYPES;
    let Some(spec) = new.get_mut(tag).and_then(Value::as_object_mut) else { return };
    let before = match counterpart(stored, spec, tag, derived_from) {
        Some(CredentialSpec::BasicAuth(stored)) => stored.password.stored_hash(),
        _ => None,
    };
    let Some(value) = spec.get_mut(field) else { return };
    if let Some(text) = value.as_str() {
        let mut password = PasswordSpec::Literal(text.to_owned());
        password.hash(before);
        *value = serde_json::to_value(password).unwrap_or_default();
    }
}

/// The stored credential that a new one of the type `tag` replaces.
fn counterpart<'s>(
    stored: &'s [CredentialSpec],
    new: &Map<String, Value>,
    tag: &str,
    derived_from: &[&str],
) -> Option<&'s CredentialSpec> {
    let mut same_type = stored.iter().filter(|stored| stored.tag() == tag);
    let given = new.get("id").filter(|id| !id.is_null());
    let id = given.or_else(|| derived_from.iter().find_map(|field| new.get(*field)));
    let found = id.and_then(Value::as_str).and_then(|id| same_type.clone().find(|stored| stored.id() == id));
    match (found, given, same_type.next(), same_type.next()) {
        (None, None, Some(only), None) => Some(only),
        (found, ..) => found,
    }
}

/// True if the `id` of a new key was derived from a stored key, but its own key is another one.
fn has_derived_id_of_another_key(stored: &[CredentialSpec], new: &Map<String, Value>) -> bool {
    let Some(id) = new.get("id").and_then(Value::as_str) else { return false };
    let key = new.get("key").and_then(|key| serde_json::from_value::<SecretSpec>(key.clone()).ok());
    let Some(key) = key else { return false };
    let mut derived = stored.iter().filter_map(|stored| match stored {
        CredentialSpec::KeyAuth(stored) => Some(derived_id(&stored.key)),
        _ => None,
    });
    derived.any(|derived| derived == id) && derived_id(&key) != id
}

/// The identifier of a key for which none is given.
fn derived_id(key: &SecretSpec) -> String {
    match key.hashed() {
        SecretSpec::Reference(ReferenceSpec::Sha256(digits)) => digits.chars().take(12).collect(),
        SecretSpec::Reference(ReferenceSpec::Env(name)) => format!("env:{name}"),
        SecretSpec::Reference(ReferenceSpec::File(path)) => format!("file:{path}"),
        SecretSpec::Literal(_) => String::new(),
    }
}

/// True if a header can have `text` as its value.
pub(crate) fn is_header_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
}
