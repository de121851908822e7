//! JSON Web Tokens (RFC 7519) in the compact form of a signature (RFC 7515): reading one strictly, and checking its claims.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use signalbox_config::TokenAlgorithm;

/// A token whose signature was not verified.
#[derive(Debug)]
pub(crate) struct Token<'t> {
    /// The algorithm that the header names.
    pub(crate) algorithm: TokenAlgorithm,
    /// The key that the header names.
    pub(crate) key_id: Option<String>,
    claims: Members,
    /// Header and claims as they were signed.
    pub(crate) signed: &'t [u8],
    pub(crate) signature: Vec<u8>,
}

/// The longest token, bytes.
const MAX_TOKEN: usize = 16 << 10;

/// Why a text is no token. The text is for the client.
pub(crate) type Malformed = &'static str;

impl<'t> Token<'t> {
    /// Reads a token. What could be read in two ways is refused, and so is a header with a demand that is not understood.
    pub(crate) fn read(text: &'t [u8]) -> Result<Self, Malformed> {
        if text.len() > MAX_TOKEN {
            return Err("the token is too long");
        }
        let mut parts = text.split(|byte| *byte == b'.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err("the token does not have three parts");
        };
        let signed = text.get(..header.len() + 1 + claims.len()).unwrap_or_default();
        let decode = |part: &[u8]| BASE64.decode(part).map_err(|_| "the token is not base64url");
        let Members(header) = members(&decode(header)?).ok_or("the token's header is not a JSON object")?;
        let signature = decode(signature)?;
        // RFC 7515, section 4.1.11: who does not understand one of these must refuse the token. None is understood.
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err("the token's header demands what is not supported");
        }
        let algorithm = header.get("alg").and_then(Value::as_str);
        let algorithm = algorithm
            .and_then(|name| TokenAlgorithm::ALL.into_iter().find(|algorithm| algorithm.as_str() == name))
            .ok_or("the token's algorithm is not supported")?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(key_id)) => Some(key_id.clone()),
            Some(_) => return Err("the token's kid is not a text"),
        };
        let claims = members(&decode(claims)?).ok_or("the token's claims are not a JSON object")?;
        Ok(Self { algorithm, key_id, claims, signed, signature })
    }

    /// A claim.
    pub(crate) fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.0.get(name)
    }

    /// The issuer, if there is one and it is a text.
    pub(crate) fn issuer(&self) -> Option<&str> {
        self.claim("iss").and_then(Value::as_str)
    }

    /// Checks the times of a token at `now`, since 1970. A time of a wrong type is wrong, and not absent.
    pub(crate) fn check_times(&self, now: Duration, leeway: Duration) -> Result<(), &'static str> {
        let (now, leeway) = (now.as_secs_f64(), leeway.as_secs_f64());
        // RFC 7519, section 4.1.4: the current time must be before it.
        if self.time("exp")?.is_some_and(|expires| now >= expires + leeway) {
            return Err("the token has expired");
        }
        if self.time("nbf")?.is_some_and(|begins| now < begins - leeway) {
            return Err("the token is not valid yet");
        }
        if self.time("iat")?.is_some_and(|issued| now < issued - leeway) {
            return Err("the token was issued in the future");
        }
        Ok(())
    }

    /// The time since 1970 at which it expires. `None`: it has no such time, or one that is none.
    pub(crate) fn expires(&self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.time("exp").ok()??).ok()
    }

    fn time(&self, name: &str) -> Result<Option<f64>, &'static str> {
        match self.claim(name) {
            None => Ok(None),
            Some(Value::Number(number)) => {
                match number.as_f64().filter(|time| time.is_finite() && *time >= 0.0) {
                    Some(time) => Ok(Some(time)),
                    None => Err("the token has a time that is none"),
                }
            }
            Some(_) => Err("the token has a time that is none"),
        }
    }

    /// True if one of `audiences` is among those of the token.
    pub(crate) fn is_for(&self, audiences: &[Box<str>]) -> bool {
        let is_one =
            |value: &Value| value.as_str().is_some_and(|text| audiences.iter().any(|it| **it == *text));
        match self.claim("aud") {
            Some(Value::Array(list)) => list.iter().all(Value::is_string) && list.iter().any(is_one),
            Some(value) => is_one(value),
            None => false,
        }
    }
}

/// The members of a JSON object. An object that has a name twice is none: who reads it next may take the other value.
#[derive(Debug, Default)]
struct Members(BTreeMap<String, Value>);

fn members(json: &[u8]) -> Option<Members> {
    serde_json::from_slice(json).ok()
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name is there twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.{}", BASE64.encode(header), BASE64.encode(claims), BASE64.encode("signature"))
    }

    const HEADER: &str = r#"{"alg":"HS256","kid":"1"}"#;

    #[test]
    fn a_token_is_read() {
        let text = token(HEADER, r#"{"iss":"shop","exp":5.5}"#);
        let read = Token::read(text.as_bytes()).unwrap();
        assert_eq!((read.algorithm, read.key_id.as_deref()), (TokenAlgorithm::HS256, Some("1")));
        assert_eq!((read.issuer(), &*read.signature), (Some("shop"), &b"signature"[..]));
        assert_eq!(read.signed, text.rsplit_once('.').unwrap().0.as_bytes());
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = token(HEADER, "{}");
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let mut texts = vec![
            String::new(),
            "..".to_owned(),
            "a.b".to_owned(),
            good.rsplit_once('.').unwrap().0.to_owned(),
            format!("{good}.x"),
            format!("{good}.x.y"),
            format!("{good}="),
            good.replace('.', " ."),
            format!("{}+/", good),
            // The last character has bits that belong to no byte.
            format!("{}.e30.AB", BASE64.encode(HEADER)),
            "x".repeat(64 << 10),
            token(HEADER, &deep),
            token(HEADER, "[]"),
            token(HEADER, "{} {}"),
            token(HEADER, r#"{"exp":1e400}"#),
            token(HEADER, r#"{"sub":"a","sub":"b"}"#),
            token(HEADER, r#"{"sub":"a","s\u0075b":"b"}"#),
        ];
        for header in [
            "{}",
            r#"{"alg":"none"}"#,
            r#"{"alg":"nOnE"}"#,
            r#"{"alg":""}"#,
            r#"{"alg":null}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"alg":"hs256"}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256","kid":1}"#,
            r#"{"alg":"HS256","crit":["exp"],"exp":1}"#,
            r#"{"alg":"HS256","crit":[]}"#,
            r#"{"alg":"HS256","b64":false}"#,
            r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#,
        ] {
            texts.push(token(header, "{}"));
        }
        for text in texts {
            assert!(Token::read(text.as_bytes()).is_err(), "{text:.80}");
        }
        assert!(Token::read(good.as_bytes()).is_ok());
    }

    #[test]
    fn times_are_checked_within_the_leeway() {
        let now = Duration::from_secs(1_000_000);
        for (claims, leeway, expected) in [
            ("{}", 0, true),
            (r#"{"exp":1000001}"#, 0, true),
            (r#"{"exp":1000000}"#, 0, false),
            (r#"{"exp":1000000.5}"#, 0, true),
            (r#"{"exp":999999}"#, 1, false),
            (r#"{"exp":999999.5}"#, 1, true),
            (r#"{"nbf":1000000}"#, 0, true),
            (r#"{"nbf":1000001}"#, 0, false),
            (r#"{"nbf":1000001}"#, 1, true),
            (r#"{"nbf":1000002}"#, 1, false),
            (r#"{"iat":1000002}"#, 1, false),
            (r#"{"iat":5}"#, 0, true),
            (r#"{"exp":"1000001"}"#, 0, false),
            (r#"{"exp":null}"#, 0, false),
            (r#"{"exp":true}"#, 0, false),
            (r#"{"exp":[2000000]}"#, 0, false),
            (r#"{"exp":-1}"#, 0, false),
            (r#"{"exp":1e308}"#, 0, true),
            (r#"{"nbf":"0"}"#, 0, false),
            (r#"{"nbf":-1}"#, 0, false),
            (r#"{"iat":"0"}"#, 0, false),
        ] {
            let text = token(HEADER, claims);
            let read = Token::read(text.as_bytes()).unwrap();
            assert_eq!(
                read.check_times(now, Duration::from_secs(leeway)).is_ok(),
                expected,
                "{claims} {leeway}"
            );
        }
    }

    #[test]
    fn an_audience_is_one_text_or_one_of_a_list() {
        let audiences: [Box<str>; 2] = ["a".into(), "b".into()];
        for (claims, expected) in [
            (r#"{"aud":"a"}"#, true),
            (r#"{"aud":["x","b"]}"#, true),
            (r#"{"aud":"A"}"#, false),
            (r#"{"aud":[]}"#, false),
            (r#"{"aud":["a",1]}"#, false),
            (r#"{"aud":{"a":1}}"#, false),
            (r#"{"aud":null}"#, false),
            ("{}", false),
        ] {
            let text = token(HEADER, claims);
            assert_eq!(Token::read(text.as_bytes()).unwrap().is_for(&audiences), expected, "{claims}");
        }
    }
}
