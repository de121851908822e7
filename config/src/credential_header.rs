//! Headers and query parameters that carry credentials, by their names.

use http::HeaderName;

/// Words in names whose values let in whoever has them.
const WORDS: [&[u8]; 16] = [
    b"assertion",
    b"auth",
    b"authorization",
    b"cookie",
    b"credential",
    b"credentials",
    b"dpop",
    b"jwt",
    b"otp",
    b"passwd",
    b"pwd",
    b"session",
    b"sid",
    b"sig",
    b"signature",
    b"ticket",
];

/// The same, also at the end of a longer word: `authtoken`, `userpassword`.
const ENDS: [&[u8]; 4] = [b"password", b"secret", b"sessionid", b"token"];

/// Words that make a credential of a `key` after them: `api key`, `apikey`. `AWSAccessKeyId` has `awsaccess`, so the end of a word is
/// enough.
const KEYS: [&[u8]; 6] = [b"access", b"api", b"auth", b"functions", b"master", b"subscription"];

/// A header whose words tell nothing. Browsers can choose no other header of a WebSocket, so servers take bearer tokens in it
/// (Kubernetes: `base64url.bearer.authorization.k8s.io.TOKEN`).
const WEBSOCKET_PROTOCOL: [&[u8]; 3] = [b"sec", b"websocket", b"protocol"];

/// True if the header `name` carries credentials, as far as its name tells: `authorization`, `set-cookie`, `x-api-key`,
/// `x-amz-security-token`. Servers take `_` and other characters for `-`, so a name counts in every such spelling.
pub(crate) fn carries_credentials(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    is_credential_name(name) || words(name).eq(WEBSOCKET_PROTOCOL)
}

/// True if a header or a parameter of this name carries credentials, as far as its words tell: `authToken`, `user[api_key]`,
/// `password1`. Words end at characters that are not ASCII letters, and where an upper-case letter follows a lower-case one.
pub fn is_credential_name(name: &[u8]) -> bool {
    // A run of letters counts as a whole too: `passWord`.
    if runs(name).any(is_credential) {
        return true;
    }
    let mut before: &[u8] = b"";
    for word in words(name) {
        let is_key = word.eq_ignore_ascii_case(b"key") && ends_with_any(before, &KEYS);
        // AWS's load balancers send a JWT in `x-amzn-oidc-data`.
        let is_data = word.eq_ignore_ascii_case(b"data") && before.eq_ignore_ascii_case(b"oidc");
        if is_key || is_data || is_credential(word) {
            return true;
        }
        before = word;
    }
    false
}

fn is_credential(word: &[u8]) -> bool {
    WORDS.iter().any(|known| word.eq_ignore_ascii_case(known))
        || ends_with_any(word, &ENDS)
        || without_end(word, b"key").is_some_and(|rest| ends_with_any(rest, &KEYS))
}

/// The runs of letters of a name.
fn runs(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    name.split(|byte| !byte.is_ascii_alphabetic())
}

/// The words of a name, none of which is empty.
fn words(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    runs(name).flat_map(|run| run.chunk_by(|a, b| !(a.is_ascii_lowercase() && b.is_ascii_uppercase())))
}

fn ends_with_any(word: &[u8], ends: &[&[u8]]) -> bool {
    ends.iter().any(|end| without_end(word, end).is_some())
}

fn without_end<'a>(word: &'a [u8], end: &[u8]) -> Option<&'a [u8]> {
    let (rest, last) = word.split_at_checked(word.len().checked_sub(end.len())?)?;
    last.eq_ignore_ascii_case(end).then_some(rest)
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
            ("ocp-apim-subscription-key", true),
            ("x-functions-key", true),
            ("x-master-key", true),
            ("x-auth-key", true),
            ("x-access_key", true),
            ("x-authtoken", true),
            ("x-apitoken", true),
            ("x-csrftoken", true),
            ("x-sessionid", true),
            ("jsessionid", true),
            ("x-session-id", true),
            ("x-auth", true),
            ("x-client-secret", true),
            ("x-userpassword", true),
            ("sec-websocket-protocol", true),
            ("sec_websocket_protocol", true),
            ("accept", false),
            ("x-request-id", false),
            ("x-ratelimit-remaining-tokens", false),
            ("authority", false),
            ("www-authenticate", false),
            ("key", false),
            ("sec-websocket-key", false),
            ("sec-websocket-protocol-version", false),
            ("idempotency-key", false),
            ("surrogate-key", false),
            ("referer", false),
        ] {
            let name: HeaderName = name.parse().unwrap();
            assert_eq!(carries_credentials(&name), expected, "{name}");
        }
    }

    #[test]
    fn words_are_found_in_every_spelling() {
        for (name, expected) in [
            ("authToken", true),
            ("sessionToken", true),
            ("clientSecret", true),
            ("csrfToken", true),
            ("apiToken", true),
            ("userPassword", true),
            ("UserPassWord", true),
            ("PASSWORD", true),
            ("password1", true),
            ("1password", true),
            ("x-api-key", true),
            ("apiKey", true),
            ("APIKey", true),
            ("api2key", true),
            ("userAPIKey", true),
            ("user[api_key]", true),
            ("user.api.key", true),
            ("client_api_key", true),
            ("access-key", true),
            ("accesskey", true),
            ("AWSAccessKeyId", true),
            ("subscription-key", true),
            ("subscriptionKey", true),
            ("auth", true),
            ("session", true),
            ("sessionId", true),
            ("sid", true),
            ("otp", true),
            ("otp2", true),
            ("X-Amz-Signature", true),
            ("\u{e4}token", true),
            ("", false),
            ("-", false),
            ("key", false),
            ("sortKey", false),
            ("monkey", false),
            ("author", false),
            ("authors", false),
            ("sessions", false),
            ("tokens", false),
            ("signal", false),
            ("side", false),
            ("page", false),
            ("apiVersion", false),
        ] {
            assert_eq!(is_credential_name(name.as_bytes()), expected, "{name}");
        }
    }
}
