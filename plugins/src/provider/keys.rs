//! Reads key sets (JWKS, RFC 7517) as providers publish them.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;
use serde_json::Value;
use signalbox_config::{KeyShape, PublicKey, TokenAlgorithm};

use crate::token_key::TokenKey;

/// The most keys of a set that are used.
const MAX_KEYS: usize = 100;

/// The size of the modulus of an RSA key, bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// A set of keys. Its entries are read one by one, so that one of a new kind does no harm to the others.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

/// A key, as far as it matters for signatures.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// Why there are no keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoKeys {
    #[error("the key set is not JSON with a list `keys`")]
    Malformed,
    #[error("the key set has no public key that verifies signatures")]
    Empty,
}

/// Reads the keys that verify signatures: RSA, EC on P-256, P-384 or P-521, and Ed25519. Others are left out, secrets too.
pub(super) fn read(json: &[u8]) -> Result<Box<[TokenKey]>, NoKeys> {
    let set: KeySet = serde_json::from_slice(json).map_err(|_| NoKeys::Malformed)?;
    let keys = set.keys.into_iter().filter_map(|entry| serde_json::from_value::<Jwk>(entry).ok());
    let keys: Box<[TokenKey]> = keys.filter_map(|key| key.parse()).take(MAX_KEYS).collect();
    if keys.is_empty() { Err(NoKeys::Empty) } else { Ok(keys) }
}

impl Jwk {
    fn parse(&self) -> Option<TokenKey> {
        let is_for_signatures = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|uses| uses.iter().any(|usage| usage == "verify"));
        if !is_for_signatures {
            return None;
        }
        let key = self.public_key()?;
        let algorithm = match self.alg.as_deref() {
            None => None,
            Some(name) => {
                let known = TokenAlgorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name);
                // RFC 9864 names the curve.
                let known = known.or_else(|| (name == "Ed25519").then_some(TokenAlgorithm::EdDSA));
                Some(known.filter(|algorithm| algorithm.fits(key.shape))?)
            }
        };
        Some(TokenKey::new(self.kid.as_deref(), algorithm, key))
    }

    fn public_key(&self) -> Option<PublicKey> {
        let decode = |text: &Option<String>| BASE64.decode(text.as_deref()?).ok();
        let (shape, bytes) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => (KeyShape::Rsa, rsa(&decode(&self.n)?, &decode(&self.e)?)?),
            ("EC", Some(curve)) => {
                let (shape, len) = match curve {
                    "P-256" => (KeyShape::P256, 32),
                    "P-384" => (KeyShape::P384, 48),
                    "P-521" => (KeyShape::P521, 66),
                    _ => return None,
                };
                let (x, y) = (decode(&self.x)?, decode(&self.y)?);
                if x.len() != len || y.len() != len {
                    return None;
                }
                (shape, [&[4], &*x, &*y].concat())
            }
            ("OKP", Some("Ed25519")) => {
                (KeyShape::Ed25519, decode(&self.x).filter(|point| point.len() == 32)?)
            }
            _ => return None,
        };
        Some(PublicKey { shape, bytes: bytes.into() })
    }
}

/// An RSA key as PKCS#1 in DER (RFC 8017, appendix A.1.1). `None`: its size or its exponent is not acceptable.
fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    let (modulus, exponent) = (without_zeros(modulus), without_zeros(exponent));
    let bits = (modulus.len() * 8).checked_sub(modulus.first()?.leading_zeros() as usize)?;
    let is_odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
    if !RSA_BITS.contains(&bits) || !is_odd || exponent.len() > 4 || exponent == [1] {
        return None;
    }
    let numbers = [integer(modulus), integer(exponent)].concat();
    Some(der(0x30, &numbers))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(start..).unwrap_or_default()
}

/// A positive number in DER.
fn integer(number: &[u8]) -> Vec<u8> {
    let is_negative = number.first().is_none_or(|byte| byte & 0x80 != 0);
    if is_negative { der(2, &[&[0], number].concat()) } else { der(2, number) }
}

/// A value in DER with its tag and its length, which is below 64 KiB here.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let [high, low] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let head: &[u8] = match len {
        0..0x80 => &[tag, low],
        0x80..0x100 => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn b64(bytes: &[u8]) -> String {
        BASE64.encode(bytes)
    }

    fn found(keys: &[Value]) -> Vec<(Option<String>, Option<TokenAlgorithm>)> {
        let read = read(json!({"keys": keys}).to_string().as_bytes()).unwrap_or_default();
        read.iter().map(|key| (key.key_id.as_deref().map(str::to_owned), key.algorithm)).collect()
    }

    #[test]
    fn public_keys_for_signatures_are_read_and_others_left_out_singly() {
        let okp = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&[7; 32]), "kid": "ed", "alg": "EdDSA"});
        let with = |changes: Value| {
            let mut key = okp.clone();
            key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            key
        };
        let ec = |crv: &str, len: usize| json!({"kty": "EC", "crv": crv, "x": b64(&vec![1; len]), "y": b64(&vec![2; len])});
        let rsa = |len: usize, e: &[u8]| json!({"kty": "RSA", "n": b64(&vec![0xff; len]), "e": b64(e)});
        for (key, expected) in [
            (okp.clone(), Some((Some("ed"), Some(TokenAlgorithm::EdDSA)))),
            (with(json!({"alg": "Ed25519"})), Some((Some("ed"), Some(TokenAlgorithm::EdDSA)))),
            (
                with(json!({"use": "sig", "key_ops": ["verify"]})),
                Some((Some("ed"), Some(TokenAlgorithm::EdDSA))),
            ),
            (ec("P-256", 32), Some((None, None))),
            (ec("P-384", 48), Some((None, None))),
            (ec("P-521", 66), Some((None, None))),
            (rsa(256, &[1, 0, 1]), Some((None, None))),
            (with(json!({"use": "enc"})), None),
            (with(json!({"key_ops": ["encrypt"]})), None),
            (with(json!({"alg": "ES256"})), None),
            (with(json!({"alg": "RSA-OAEP"})), None),
            (with(json!({"kid": 7})), None),
            (with(json!({"x": b64(&[7; 31])})), None),
            (with(json!({"crv": "X25519"})), None),
            (with(json!({"crv": null})), None),
            (ec("P-256", 33), None),
            (ec("secp256k1", 32), None),
            (rsa(128, &[1, 0, 1]), None),
            (rsa(2048, &[1, 0, 1]), None),
            (rsa(256, &[1]), None),
            (rsa(256, &[2]), None),
            (rsa(256, &[]), None),
            // A secret that anybody can read is none.
            (json!({"kty": "oct", "k": b64(&[7; 32]), "alg": "HS256", "kid": "ed"}), None),
            (json!({"kty": "AKP"}), None),
            (json!(["RSA"]), None),
            (json!(null), None),
        ] {
            let others = found(&[okp.clone(), key.clone()]);
            let kept = (Some("ed".to_owned()), Some(TokenAlgorithm::EdDSA));
            let expected = expected.map(|(kid, algorithm)| (kid.map(str::to_owned), algorithm));
            assert_eq!(others, [Some(kept), expected].into_iter().flatten().collect::<Vec<_>>(), "{key}");
        }
    }

    #[test]
    fn what_is_no_set_of_keys_is_refused() {
        for (text, error) in [
            ("", NoKeys::Malformed),
            ("<html>", NoKeys::Malformed),
            ("[]", NoKeys::Malformed),
            ("{}", NoKeys::Malformed),
            (r#"{"keys":{}}"#, NoKeys::Malformed),
            (r#"{"keys":[]}"#, NoKeys::Empty),
            (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, NoKeys::Empty),
        ] {
            assert_eq!(read(text.as_bytes()).err(), Some(error), "{text}");
        }
        let many = vec![json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&[7; 32])}); 1000];
        assert_eq!(found(&many).len(), MAX_KEYS);
    }

    #[test]
    fn an_rsa_key_is_der_that_can_be_read_back() {
        let der = rsa(&[0xff; 256], &[0, 1, 0, 1]).unwrap();
        assert_eq!(&der[..9], [0x30, 0x82, 1, 10, 2, 0x82, 1, 1, 0]);
        assert_eq!(&der[der.len() - 5..], [2, 3, 1, 0, 1]);
        assert_eq!(der.len(), 4 + 266);
    }
}
