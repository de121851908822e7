//! Reads discovery documents (OpenID Connect Discovery 1.0, section 4; RFC 8414).

use std::fmt;

use http::Uri;
use serde::Deserialize;

/// The place of a service of the provider, as the proxy calls it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Endpoint {
    /// The URL. Its path and its query are called on the upstream, with its host as `Host`.
    pub(crate) url: Uri,
}

impl fmt::Display for Endpoint {
    /// The path alone: what is called is the upstream.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.path())
    }
}

/// The places that a provider names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) keys: Endpoint,
    /// The address to which browsers are sent to log in.
    pub(crate) authorization: Option<Uri>,
    pub(crate) token: Option<Endpoint>,
    /// The address to which browsers are sent to log out.
    pub(crate) end_session: Option<Uri>,
}

/// Why a document does not count.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoMetadata {
    #[error("the discovery document is not JSON with the fields `issuer` and `jwks_uri`")]
    Malformed,
    #[error("the discovery document is for the issuer {0:?}, which is not the configured one")]
    Issuer(String),
    #[error("the discovery document has a field `{0}` that is not an http URL")]
    Url(&'static str),
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    end_session_endpoint: Option<String>,
}

/// Reads the document of an issuer, whose name it must have.
pub(super) fn read(json: &[u8], issuer: &str) -> Result<Metadata, NoMetadata> {
    let document: Document = serde_json::from_slice(json).map_err(|_| NoMetadata::Malformed)?;
    if document.issuer != issuer {
        return Err(NoMetadata::Issuer(document.issuer.chars().take(200).collect()));
    }
    let url = |name: &'static str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => endpoint_of(text).map(Some).ok_or(NoMetadata::Url(name)),
    };
    let keys = endpoint_of(&document.jwks_uri).ok_or(NoMetadata::Url("jwks_uri"))?;
    Ok(Metadata {
        keys,
        authorization: url("authorization_endpoint", &document.authorization_endpoint)?.map(|it| it.url),
        token: url("token_endpoint", &document.token_endpoint)?,
        end_session: url("end_session_endpoint", &document.end_session_endpoint)?.map(|it| it.url),
    })
}

/// The URL of an endpoint: http or https, with a host, and without a user, whom a browser or a log might show. A fragment is no part
/// of it.
pub(crate) fn endpoint_of(text: &str) -> Option<Endpoint> {
    let url: Uri = text.parse().ok()?;
    let is_http = matches!(url.scheme_str(), Some("http" | "https"));
    let host = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
    (is_http && !host.host().is_empty() && !text.contains('#')).then_some(Endpoint { url })
}

/// True for the URL of an issuer: without a query (Discovery, section 3).
pub(crate) fn is_issuer(text: &str) -> bool {
    endpoint_of(text).is_some_and(|endpoint| endpoint.url.query().is_none())
}

/// The place of the discovery document of an issuer.
pub(super) fn place_of(issuer: &str) -> Option<Endpoint> {
    endpoint_of(&format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_counts_if_it_is_the_issuers_and_its_urls_are_some() {
        let issuer = "https://login.example/tenant";
        let good = json!({"issuer": issuer, "jwks_uri": "https://login.example/keys?v=1", "token_endpoint": "https://login.example/token"});
        let read = |change: serde_json::Value| {
            let mut document = good.clone();
            document.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            super::read(document.to_string().as_bytes(), issuer)
        };
        let metadata = read(json!({})).unwrap();
        assert_eq!(metadata.keys.url, "https://login.example/keys?v=1");
        assert_eq!(metadata.authorization, None);
        for (change, error) in [
            (
                json!({"issuer": "https://login.example"}),
                NoMetadata::Issuer("https://login.example".to_owned()),
            ),
            (json!({"issuer": "https://login.example/tenant/"}), NoMetadata::Issuer(format!("{issuer}/"))),
            (json!({"issuer": null}), NoMetadata::Malformed),
            (json!({"jwks_uri": null}), NoMetadata::Malformed),
            (json!({"jwks_uri": "file:///etc/passwd"}), NoMetadata::Url("jwks_uri")),
            (json!({"jwks_uri": "/keys"}), NoMetadata::Url("jwks_uri")),
            (json!({"token_endpoint": "https://u@login.example/"}), NoMetadata::Url("token_endpoint")),
            (
                json!({"authorization_endpoint": "javascript:alert(1)"}),
                NoMetadata::Url("authorization_endpoint"),
            ),
        ] {
            assert_eq!(read(change.clone()), Err(error), "{change}");
        }
        assert_eq!(super::read(b"<html>", issuer), Err(NoMetadata::Malformed));
        let place = place_of("https://login.example/tenant/").unwrap().url;
        assert_eq!(place, "https://login.example/tenant/.well-known/openid-configuration");
    }
}
