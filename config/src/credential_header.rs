//! Headers that carry credentials, by their names.

use http::HeaderName;

/// Words in the names of headers whose values let in whoever has them.
const WORDS: [&str; 14] = [
    "accesstoken",
    "apikey",
    "authorization",
    "cookie",
    "cookie2",
    "credential",
    "credentials",
    "dpop",
    "jwt",
    "passwd",
    "password",
    "secret",
    "signature",
    "token",
];

/// The same for two words in a row.
const PAIRS: [[&str; 2]; 4] = [["access", "key"], ["api", "key"], ["auth", "key"], ["oidc", "data"]];

/// True if the header `name` carries credentials, as far as its name tells: `authorization`, `set-cookie`, `x-api-key`,
/// `x-amz-security-token`. Servers take `_` and other characters for `-`, so a name counts in every such spelling.
pub(crate) fn carries_credentials(name: &HeaderName) -> bool {
    let is_separator = |c: char| !c.is_ascii_alphanumeric();
    let words = || name.as_str().split(is_separator);
    words().any(|word| WORDS.contains(&word))
        || words().zip(words().skip(1)).any(|(a, b)| PAIRS.contains(&[a, b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_of_credentials() {
        for (name, expected) in [
            ("authorization", true),
            ("Proxy-Authorization", true),
            ("proxy_authorization", true),
            ("cookie", true),
            ("set-cookie", true),
            ("set-cookie2", true),
            ("x-api-key", true),
            ("apikey", true),
            ("x-auth-token", true),
            ("x-amz-security-token", true),
            ("x-amzn-oidc-data", true),
            ("x-credential-identifier", true),
            ("cf-access-jwt-assertion", true),
            ("dpop", true),
            ("accept", false),
            ("x-request-id", false),
            ("x-ratelimit-remaining-tokens", false),
            ("authority", false),
            ("key", false),
        ] {
            let name: HeaderName = name.parse().unwrap();
            assert_eq!(carries_credentials(&name), expected, "{name}");
        }
    }
}
