//! Verifies the signatures of tokens (RFC 7518, section 3).

use p521::ecdsa::signature::Verifier as _;
use ring::hmac;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use signalbox_config::TokenAlgorithm;
use signalbox_plugin::VerificationKey;

/// True if `signature` is the one of `message` by `algorithm` and `key`. A key of another type verifies nothing, whatever the
/// header of a token says.
pub(crate) fn verifies(
    algorithm: TokenAlgorithm,
    key: &VerificationKey,
    message: &[u8],
    signature: &[u8],
) -> bool {
    match key {
        VerificationKey::Secret(secret) => hmac_algorithm(algorithm).is_some_and(|algorithm| {
            hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).is_ok()
        }),
        VerificationKey::Public(key) if !algorithm.fits(key.shape) => false,
        VerificationKey::Public(key) => match public_algorithm(algorithm) {
            Some(algorithm) => {
                UnparsedPublicKey::new(algorithm, &key.bytes).verify(message, signature).is_ok()
            }
            None => verifies_p521(&key.bytes, message, signature),
        },
    }
}

fn hmac_algorithm(algorithm: TokenAlgorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        TokenAlgorithm::HS256 => Some(hmac::HMAC_SHA256),
        TokenAlgorithm::HS384 => Some(hmac::HMAC_SHA384),
        TokenAlgorithm::HS512 => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

/// `None`: ring does not have it.
fn public_algorithm(algorithm: TokenAlgorithm) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match algorithm {
        TokenAlgorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        TokenAlgorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        TokenAlgorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        TokenAlgorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        TokenAlgorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        TokenAlgorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        // "Fixed": the two numbers one behind the other, and not ASN.1 (RFC 7518, section 3.4).
        TokenAlgorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
        TokenAlgorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
        TokenAlgorithm::EdDSA => &signature::ED25519,
        TokenAlgorithm::ES512 | TokenAlgorithm::HS256 | TokenAlgorithm::HS384 | TokenAlgorithm::HS512 => {
            return None;
        }
    })
}

fn verifies_p521(point: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point);
    let signature = p521::ecdsa::Signature::from_slice(signature);
    matches!((key, signature), (Ok(key), Ok(signature)) if key.verify(message, &signature).is_ok())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use signalbox_config::PublicKey;

    use super::*;

    // Keys and signatures of the text "message", made with openssl.
    const RSA: &str = "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAmfsNNdH9obEujtTsaEGbw1yZ9uwRPiCW/2JEqfJPDveHdHxOz0WpJXfDKVxmM80FFQbpaV677PpjTU2nXxjU8NlndjtgdMPMTiIgOYBTbud5D8QRSSkdSl7/ofgL78YaVu692NiAP4gqAsL1czY9BTGYvK345sVm/GKkjH8aODA9CYrErxelGz59n/qzSlK7h/GoHOJsChghw1A0CCHPH04wyslqxhw/WYyNU7vtG7yYiRztfhWHLiKR5vxAqD/LGmL2CJmFPLvTPJRSDlc/KpUom7ftzFv7+ZDfm6DcBp9/A69s/yIwaJhDHsIAI5MZFREBBUUrOcL+ukDXlKaF/QIDAQAB";
    const P256: &str = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEOLftjEnD93GJSr5xeUCSPqmGZcrbsKg5KGlv0Nx2rRB6O2QzxsHWidcvMeJ3EqbwcXh0mSvdBYJqI/mI61YvFw==";
    const P384: &str = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAECzFiQVqcQlU2jWtQnwRSPSoFAdPdiSZkEpTitTDqd2s1rA3O7wHrC+hjDUkYeERZwmD1oKyHvFNMc2TpL4PWCKtFD4uPig/Q6AfetEv3DPADnYbzrzQp1SQjA8UuGCCk";
    const P521: &str = "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAualmi9t1eokpgqmUWz3In8XZ02epghwhBMtFdnLkN6mZb0pd88By6+OlYdKNGXKM19uQRYlXRwM7NNxlcINC65AAvqwSSWA1VXqrx2xVN4GDFtO4vMwVI4f8lEEKPRJL4kG/W0oKV3G5DK6712Wbai+Vds8Ns82dr/UyFuH1KNp73OY=";
    const ED25519: &str = "MCowBQYDK2VwAyEA/WDofpqm3MnMUlStqe9PHt3q/MD34V91I8UoynN6d84=";

    const SIGNATURES: [(TokenAlgorithm, &str, &str); 10] = [
        (
            TokenAlgorithm::RS256,
            RSA,
            "kVzjootJC/NhRQzq0TJ6r9rhuVzjYeuq2uSWN7+cI686EAe6he8TmMfSJaGZT3qisMMBo0WyZrDjh+FV19Ph3jas8X+FiSIicgnC8I3v2P4vpRU/D3NZrtWfzyo84RtaAFEOQPwzAjZRUb2U3fNDFQ87namUiw9Ke4VA9AFY4qzRyouBL25wBf5f3W8IwxdOnOWozfZwNvGQjR3b+Sx1YhJXHUIsDgIaGWJiMlyNgMXmFIHxN6ibYgz5R5SDsNdenxHeF/fP8hbFU3NeHeazdUUGUQY06GAYktqiHUK98VpsqT1AwGZYzd1WX98t0bC2bAXlhRGWg25YaEBshqhyiA==",
        ),
        (
            TokenAlgorithm::RS384,
            RSA,
            "aWvMqS2vDaX0SDbP7iIt9EyQLp2RhfjJr+Ym96ics3KJynufMSkuFtQ3JDt250g9LJig1UqiT3yvpdYgS7ky/adMQ3yaDocr9q8xayVkNbe+46l/FthtGeDMsz5QeETDSU32Y/MYdhBU549/xiwAjyICkHJAL+Pv4kd4pjzwQnZVq19k+pqHvNsFw1kM3DmYel5ar/bXfybTfwbwNr8pHxwAnwoYVEdBlOwmYilbgAvR62kZ8lDdCebMdU+eCUJRkFaE4HQVUtIxfW5JZymamhNXVZgIGh36s2bvm1qVs8cBWXi72B7fwQbLkyNkkW7jhxwyi+y0/P3nW7pHbv7OCg==",
        ),
        (
            TokenAlgorithm::RS512,
            RSA,
            "cygavNl2m5zsLJ5KrRYdyounk5M2+ncHOYyw2nSlUD/oJxD4jxr5ckcv5PkVaELuk+dxZXz0QOT//hkQyaRmMIBUX3XfNt8XWwmicbRAxd9fakD06rvxq+A4pyNMWrCS907+M5u0rZRDaWmL9/YaalRyg8NqjHMa2QXtzp2ILSZu7iM3C/2W8mni/HtQP5eNYH/OpOn6WECbFj7AcrwsGQLZsgafFhHat7/y2YFdGI5TufdyCbsvFUKoJhQiTrHIOaQvDq4pw46/bbkyMgTGg5sEf9fwVqgW5cmBX7TcFoxR7Gi7vyC3tAQZq8a3pLbYjGfJAm3hV7ueb+DtbSIFoQ==",
        ),
        (
            TokenAlgorithm::PS256,
            RSA,
            "PT1rL30g5cODirH0SJN9AWH4TknCXsFxUkfw8SceQIa8MVm2KafcQjxhWp6/mE9TU9+vB/UJCqUkyxWgzFqbciMD70MCgyFkyllx4YUCectB411d203K7bL1IxXcVTHpUPMeS0fo9KHDuQOrMYremThUz7dKp7O8aFtz5JH4K5HjNj8tbKI3iE3suvsUtArams1QAB4Z94NJ6LNWTKLu3lT0YHlxWLxSnzZ+beSkILf4gIsJrs33weW6+SJoK2ycWq2S4Je3/DDH3QbXnfUShEOytc3MGc2I7syqiRpRSc8Rm1V4ofp2wffs7kwWBXEQhPC5q1/BOLdErDitxpES7w==",
        ),
        (
            TokenAlgorithm::PS384,
            RSA,
            "MwKi0ljy8LwNEAzh4hEa5wrKsAWkSXII6R1jbYzKhvGvSEiuei7fYYDE2EqjSAnHPetLLNO5WoJzFKA8F8EHiAXa6W7e+N9K6Xsp/VJzzo3eziBeO7bbaHpWnH22YqPIqLRlGNPqlbEr+34LjZag4if66ujKBpWr0zVMtTcnLaBoQJilB+1/pkX0qXsaVN7Ztk+M+Z5bWy9mn5mehd2LQwckagwLXrn+5lTbOeKibbLjy1vLD03ps78jUaaIf3dw5uFQdAp35sqn5uKWpdLH2WdtjqOSVhWI9KVuHXR5c7Fngm3hPk4eFd5pgYDFx//9PWMayxvYPZvR8DhBQX7zkg==",
        ),
        (
            TokenAlgorithm::PS512,
            RSA,
            "cgUQU9tcdg3fSEitOZHK58pq5T/wY1JGPvAPlc5ksi/ItxMd4RsxrAxetuKeMu9q1j8H7lkGKau+sG4Ig1gZYnTzqIc/TviF4CHRH5rdbwo596biP6cMleniom/LFAVWbBFvmsCfmJMXxSzsspIAUA3JNI/dBUmgHSamK1lkkAWkuwPCzHuNnPkQQgmburk82Dt1xX3okoyy+YxqQyavfyLEhvTO0opZQb4rXmNr9BlsOEj1NM6ZgMgYkS4CaaRWwQh7PLLNEw51mVMnpAMVn0TN2jxi4jN2OPgiVwzgaS0d9v1UIchokwBv01OC/DGCMoXA2+CRASD/gzKdGc9sYg==",
        ),
        (
            TokenAlgorithm::ES256,
            P256,
            "nxVAvrh/wkAPKyM/Go90UXzHUQ/5uELQD1EXcFQmkzo5ubdKxZVvk6p3c4UiTFDBLhpUnJ127rTZQw63QbcpMQ==",
        ),
        (
            TokenAlgorithm::ES384,
            P384,
            "TS5gMGHzTARE14gVdXIxV7YySIAfuIzYsi5EgGIB0kczZBoaAFOjawDlK8EHlA/i+88SZCEQc9R2hEqsUcQ/70OOeo3TVcarhydyooWMvG3fjANwAS0OBrg+t8iveiwD",
        ),
        (
            TokenAlgorithm::ES512,
            P521,
            "AVDPl3wl6uIMOP0/7ZaCwSnIGp3OszLNRIHNPlMzVeL/rr6mIxxM0Ek1Dz0Xe16kiaNjf7q7pNgt4PrSO/SpdvmYAMqVFkIBDmJJOUl6ADtvIo7vmSftCd9jumIybV12T5ycYokTu6JOQHh5wXAhiBXETDxBXOT2TzgpysXJ+VhHOcvT",
        ),
        (
            TokenAlgorithm::EdDSA,
            ED25519,
            "8S61vt53her9ZsmfIoCztdTQdCzbTXGHz9eFURI9IKGeUVCb5VBQUIJ4lVNV25HQmnIL1YE0BfBPl0Y/7sq4Cw==",
        ),
    ];

    fn key(base64: &str) -> PublicKey {
        PublicKey::from_der(&BASE64_STANDARD.decode(base64).unwrap()).unwrap()
    }

    #[test]
    fn signatures_of_every_algorithm_are_verified() {
        for (algorithm, public, signature) in SIGNATURES {
            let public = VerificationKey::Public(key(public));
            let signature = BASE64_STANDARD.decode(signature).unwrap();
            let name = algorithm.as_str();
            assert!(verifies(algorithm, &public, b"message", &signature), "{name}");
            assert!(!verifies(algorithm, &public, b"Message", &signature), "{name}");
            for place in [0, signature.len() / 2, signature.len() - 1] {
                let mut wrong = signature.clone();
                wrong[place] ^= 1;
                assert!(!verifies(algorithm, &public, b"message", &wrong), "{name} {place}");
            }
            for wrong in [&signature[1..], &signature[..signature.len() - 1], &[], &vec![0; signature.len()]]
            {
                assert!(!verifies(algorithm, &public, b"message", wrong), "{name} {}", wrong.len());
            }
            // Another algorithm with the same key, and the same algorithm with other keys.
            for other in TokenAlgorithm::ALL.into_iter().filter(|other| *other != algorithm) {
                assert!(!verifies(other, &public, b"message", &signature), "{name} as {}", other.as_str());
            }
            for other in [RSA, P256, P384, P521, ED25519].map(key) {
                let is_same = VerificationKey::Public(other.clone()) == public;
                assert!(
                    is_same || !verifies(algorithm, &VerificationKey::Public(other), b"message", &signature)
                );
            }
        }
        let secret = VerificationKey::Secret(Box::from(&b"secret"[..]));
        for (algorithm, ring) in [
            (TokenAlgorithm::HS256, hmac::HMAC_SHA256),
            (TokenAlgorithm::HS384, hmac::HMAC_SHA384),
            (TokenAlgorithm::HS512, hmac::HMAC_SHA512),
        ] {
            let signature = hmac::sign(&hmac::Key::new(ring, b"secret"), b"message");
            assert!(verifies(algorithm, &secret, b"message", signature.as_ref()));
            assert!(!verifies(algorithm, &secret, b"message", &signature.as_ref()[..16]));
            assert!(!verifies(algorithm, &secret, b"", signature.as_ref()));
        }
    }

    #[test]
    fn a_signature_of_ecdsa_in_asn_1_is_none() {
        let der = BASE64_STANDARD.decode("MEUCIQCfFUC+uH/CQA8rIz8aj3RRfMdRD/m4QtAPURdwVCaTOgIgObm3SsWVb5Oqd3OFIkxQwS4aVJyddu602UMOt0G3KTE=").unwrap();
        assert!(!verifies(TokenAlgorithm::ES256, &VerificationKey::Public(key(P256)), b"message", &der));
    }

    #[test]
    fn a_public_key_is_no_secret_of_an_hmac() {
        let text = format!("-----BEGIN PUBLIC KEY-----\n{RSA}\n-----END PUBLIC KEY-----\n");
        let public = key(RSA);
        for secret in [text.as_bytes(), &public.bytes] {
            let forged = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"message");
            let public = VerificationKey::Public(public.clone());
            assert!(!verifies(TokenAlgorithm::HS256, &public, b"message", forged.as_ref()));
        }
    }
}
