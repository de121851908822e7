//! Algorithms of signatures of tokens, and the public keys by which they are verified.

use rustls::pki_types::pem::{PemObject as _, SectionKind as Section};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey as Parsed;
use x509_parser::x509::SubjectPublicKeyInfo;

/// An algorithm by which tokens are signed (RFC 7518, section 3.1; RFC 8037). There is no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// RSA PKCS#1 v1.5 with SHA-384.
    RS384,
    /// RSA PKCS#1 v1.5 with SHA-512.
    RS512,
    /// RSA PSS with SHA-256.
    PS256,
    /// RSA PSS with SHA-384.
    PS384,
    /// RSA PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// ECDSA on P-521 with SHA-512.
    ES512,
    /// Ed25519.
    EdDSA,
}

impl TokenAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 13] = [
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
    ];

    /// Its name in the header of a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
        }
    }

    /// The length of the shortest secret, bytes (RFC 7518, section 3.2); `None`: its keys are public.
    pub fn min_secret(self) -> Option<usize> {
        match self {
            Self::HS256 => Some(32),
            Self::HS384 => Some(48),
            Self::HS512 => Some(64),
            _ => None,
        }
    }

    /// True if `key` is of the type that it needs.
    pub fn fits(self, key: KeyShape) -> bool {
        match self {
            Self::HS256 | Self::HS384 | Self::HS512 => false,
            Self::RS256 | Self::RS384 | Self::RS512 | Self::PS256 | Self::PS384 | Self::PS512 => {
                key == KeyShape::Rsa
            }
            Self::ES256 => key == KeyShape::P256,
            Self::ES384 => key == KeyShape::P384,
            Self::ES512 => key == KeyShape::P521,
            Self::EdDSA => key == KeyShape::Ed25519,
        }
    }
}

/// The type of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyShape {
    /// RSA.
    Rsa,
    /// A point on P-256.
    P256,
    /// A point on P-384.
    P384,
    /// A point on P-521.
    P521,
    /// Ed25519.
    Ed25519,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    /// Its type.
    pub shape: KeyShape,
    /// RSA: PKCS#1 in DER. A curve: the uncompressed point. Ed25519: its 32 bytes.
    pub bytes: Box<[u8]>,
}

/// The sizes of the modulus of an RSA key, bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

impl PublicKey {
    /// Reads a key in PEM (`PUBLIC KEY`, or a `CERTIFICATE` of it); or why it is none.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        let (kind, der) = <(Section, Vec<u8>)>::from_pem_slice(text.as_bytes())
            .map_err(|_| "is not a public key in PEM (-----BEGIN PUBLIC KEY-----)".to_owned())?;
        match kind {
            Section::PublicKey => Self::from_der(&der),
            Section::Certificate => {
                let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der)
                    .map_err(|_| "is not an X.509 certificate".to_owned())?;
                Self::of(certificate.public_key())
            }
            Section::PrivateKey | Section::RsaPrivateKey | Section::EcPrivateKey => {
                Err("is a private key; only the public one belongs here".to_owned())
            }
            _ => Err("is not a public key in PEM (-----BEGIN PUBLIC KEY-----)".to_owned()),
        }
    }

    /// Reads a key as a `SubjectPublicKeyInfo` in DER (RFC 5280, section 4.1); or why it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, String> {
        match SubjectPublicKeyInfo::from_der(der) {
            Ok(([], key)) => Self::of(&key),
            _ => Err("is not a public key".to_owned()),
        }
    }

    fn of(key: &SubjectPublicKeyInfo<'_>) -> Result<Self, String> {
        let bytes: Box<[u8]> = key.subject_public_key.data.as_ref().into();
        let algorithm = key.algorithm.algorithm.to_id_string();
        let curve =
            key.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok()).map(|it| it.to_id_string());
        let (shape, len) = match (algorithm.as_str(), curve.as_deref()) {
            ("1.2.840.113549.1.1.1", _) => {
                let Ok(Parsed::RSA(rsa)) = key.parsed() else {
                    return Err("is not an RSA key".to_owned());
                };
                // The modulus has a zero before it, so that it is not negative.
                let modulus = rsa.modulus.iter().position(|byte| *byte != 0).map_or(0, |zeros| {
                    (rsa.modulus.len() - zeros) * 8 - rsa.modulus[zeros].leading_zeros() as usize
                });
                if !RSA_BITS.contains(&modulus) {
                    return Err(format!("is an RSA key of {modulus} bits; from 2048 to 8192"));
                }
                (KeyShape::Rsa, bytes.len())
            }
            ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => (KeyShape::P256, 65),
            ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => (KeyShape::P384, 97),
            ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => (KeyShape::P521, 133),
            ("1.3.101.112", _) => (KeyShape::Ed25519, 32),
            _ => return Err("is a key of none of the types RSA, P-256, P-384, P-521 and Ed25519".to_owned()),
        };
        let is_point = matches!(shape, KeyShape::P256 | KeyShape::P384 | KeyShape::P521);
        if bytes.len() != len || (is_point && bytes.first() != Some(&4)) {
            return Err("is a public key with a point of the wrong length".to_owned());
        }
        Ok(Self { shape, bytes })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PublicKeyData as _, SignatureAlgorithm};

    use super::*;

    fn pem(algorithm: &'static SignatureAlgorithm) -> String {
        KeyPair::generate_for(algorithm).unwrap().public_key_pem()
    }

    #[test]
    fn public_keys_are_read_and_fit_their_algorithms() {
        for (algorithm, shape, fits) in [
            (&rcgen::PKCS_ECDSA_P256_SHA256, KeyShape::P256, TokenAlgorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, KeyShape::P384, TokenAlgorithm::ES384),
            (&rcgen::PKCS_ED25519, KeyShape::Ed25519, TokenAlgorithm::EdDSA),
        ] {
            let key = PublicKey::from_pem(&pem(algorithm)).unwrap();
            assert_eq!(key.shape, shape);
            let fitting: Vec<_> = TokenAlgorithm::ALL.into_iter().filter(|it| it.fits(key.shape)).collect();
            assert_eq!(fitting, [fits]);
        }
    }

    #[test]
    fn what_is_no_public_key_is_refused() {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let private = PublicKey::from_pem(&pair.serialize_pem()).unwrap_err();
        assert!(private.starts_with("is a private key"), "{private}");
        for bad in ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(PublicKey::from_pem(bad).is_err(), "{bad}");
        }
        let mut der = pair.subject_public_key_info();
        der.push(0);
        assert!(PublicKey::from_der(&der).is_err());
    }
}
