//! The admin UI: files that were built before and are embedded in the program, most of them compressed.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use include_dir::{Dir, include_dir};

/// Made by the build script: the UI, or a page that says how to build it. A file that compresses well is there as
/// `NAME.br` and `NAME.gz` only, so that the program does not grow by a third copy of it.
static FILES: Dir<'_> = include_dir!("$OUT_DIR/ui");

static ASSETS: LazyLock<BTreeMap<String, Asset>> = LazyLock::new(|| {
    let mut assets = BTreeMap::new();
    collect(&FILES, &mut assets);
    for asset in assets.values_mut() {
        asset.tag = asset.plain.or(asset.gzip).map(|bytes| blake3::hash(bytes).to_hex()[..16].to_owned());
    }
    assets
});

/// One file of the UI in the encodings that are embedded.
#[derive(Debug, Default)]
struct Asset {
    plain: Option<&'static [u8]>,
    brotli: Option<&'static [u8]>,
    gzip: Option<&'static [u8]>,
    /// Stands for the content, whatever its encoding.
    tag: Option<String>,
}

/// A content coding (RFC 9110, section 8.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Brotli,
    Gzip,
    Identity,
}

/// The content security policy: pages may load only files that come with them. Component libraries position by inline styles.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; \
     connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The file at `path`; a path of the UI's own gets its start page.
pub(super) fn answer(method: &Method, path: &str, headers: &HeaderMap) -> Response {
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let asked = path.trim_start_matches('/');
    // The build puts files at the root and below `assets/`; below other paths a dot is one of a resource's name.
    let is_route = !asked.starts_with("assets/") && (asked.contains('/') || !asked.contains('.'));
    let found = ASSETS.get_key_value(asked).filter(|_| !asked.is_empty());
    let Some((name, asset)) = found.or_else(|| ASSETS.get_key_value("index.html").filter(|_| is_route))
    else {
        let mut response = Response::new(Body::from("not found\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    asset.answer(name, headers)
}

impl Asset {
    fn answer(&self, name: &str, headers: &HeaderMap) -> Response {
        let coding = self.choose(headers);
        let etag = self.etag(coding);
        let known = is_known(headers, self.tag.as_deref().unwrap_or_default());
        let mut response = match self.bytes(coding) {
            _ if known => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                response
            }
            Some(bytes) => Response::new(Body::from(bytes)),
            None => {
                tracing::error!(file = name, "an embedded file of the admin UI cannot be decompressed");
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                return response;
            }
        };
        // The build puts a hash of the content into the names of the files in `assets/`.
        let cache =
            if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
        let fields: [(HeaderName, &str); 7] = [
            (header::CONTENT_TYPE, content_type(name)),
            (header::CACHE_CONTROL, cache),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "same-origin"),
            (header::X_FRAME_OPTIONS, "DENY"),
            (header::ETAG, &etag),
        ];
        let headers = response.headers_mut();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        if self.gzip.is_some() {
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        if let (Some(coding), false) = (coding.as_str(), known) {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        response
    }

    /// The best of what the client accepts and the program has.
    fn choose(&self, headers: &HeaderMap) -> Coding {
        let values = headers.get_all(header::ACCEPT_ENCODING);
        let accepted: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
        let candidates = [
            (Coding::Brotli, self.brotli.is_some()),
            (Coding::Gzip, self.gzip.is_some()),
            (Coding::Identity, true),
        ];
        let there = candidates.into_iter().filter(|(_, is_there)| *is_there).map(|(coding, _)| coding);
        // The first of those with the highest weight; who refuses all of them gets the plain file all the same.
        let mut best = (Coding::Identity, 0);
        for coding in there {
            let weight = weight(&accepted, coding);
            if weight > best.1 {
                best = (coding, weight);
            }
        }
        best.0
    }

    fn bytes(&self, coding: Coding) -> Option<Bytes> {
        match coding {
            Coding::Brotli => self.brotli.map(Bytes::from_static),
            Coding::Gzip => self.gzip.map(Bytes::from_static),
            Coding::Identity => match self.plain {
                Some(plain) => Some(Bytes::from_static(plain)),
                None => decompress(self.gzip?),
            },
        }
    }

    /// Each encoding is a representation of its own, so each has an entity tag of its own.
    fn etag(&self, coding: Coding) -> String {
        let tag = self.tag.as_deref().unwrap_or_default();
        match coding.as_str() {
            Some(coding) => format!("\"{tag}-{coding}\""),
            None => format!("\"{tag}\""),
        }
    }
}

impl Coding {
    /// As `Content-Encoding` names it.
    fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Brotli => Some("br"),
            Self::Gzip => Some("gzip"),
            Self::Identity => None,
        }
    }
}

fn collect(dir: &'static Dir<'static>, assets: &mut BTreeMap<String, Asset>) {
    for file in dir.files() {
        let path = file.path().to_string_lossy();
        if let Some(name) = path.strip_suffix(".br") {
            assets.entry(name.to_owned()).or_default().brotli = Some(file.contents());
        } else if let Some(name) = path.strip_suffix(".gz") {
            assets.entry(name.to_owned()).or_default().gzip = Some(file.contents());
        } else {
            assets.entry(path.into_owned()).or_default().plain = Some(file.contents());
        }
    }
    for below in dir.dirs() {
        collect(below, assets);
    }
}

fn decompress(gzip: &[u8]) -> Option<Bytes> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(gzip).take(MAX_PLAIN).read_to_end(&mut plain).ok()?;
    Some(plain.into())
}

/// The largest file of the UI, bytes.
const MAX_PLAIN: u64 = 32 << 20;

/// How much a client wants a coding, in thousandths; 0: not at all (RFC 9110, section 12.5.3).
fn weight(accepted: &[&str], coding: Coding) -> u16 {
    let name = coding.as_str().unwrap_or("identity");
    let mut any = None;
    for entry in accepted.iter().flat_map(|line| line.split(',')) {
        let mut parts = entry.split(';').map(str::trim);
        let named = parts.next().unwrap_or_default();
        let q = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let q = match q.map(str::parse::<f32>) {
            None => 1000,
            Some(Ok(q)) if (0.0..=1.0).contains(&q) => (q * 1000.0) as u16,
            Some(_) => 0,
        };
        if named.eq_ignore_ascii_case(name) {
            return q;
        }
        if named == "*" {
            any = Some(q);
        }
    }
    match (coding, any) {
        // It needs not be named, but what is named is wanted more.
        (Coding::Identity, None) => 1,
        (_, any) => any.unwrap_or(0),
    }
}

/// True if the client has the content already, in any encoding (weak comparison, RFC 9110, section 13.1.2).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH);
    values.iter().filter_map(|value| value.to_str().ok()).flat_map(|line| line.split(',')).any(|entry| {
        let entry = entry.trim();
        let opaque = entry.strip_prefix("W/").unwrap_or(entry).trim_matches('"');
        let content = opaque.split_once('-').map_or(opaque, |(content, _)| content);
        entry == "*" || content == tag
    })
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("ico") => "image/x-icon",
        Some("webp") => "image/webp",
        Some("woff2") => "font/woff2",
        Some("txt") => "text/plain; charset=utf-8",
        Some("webmanifest") => "application/manifest+json",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_ui_get_its_start_page_and_missing_files_do_not() {
        let status = |path: &str| answer(&Method::GET, path, &HeaderMap::new()).status();
        for path in ["/", "/routes", "/routes/users/edit", "/upstreams/users.v2"] {
            assert_eq!(status(path), StatusCode::OK, "{path}");
        }
        for path in ["/assets/missing.js", "/assets/missing", "/missing.png", "/index.html.gz"] {
            assert_eq!(status(path), StatusCode::NOT_FOUND, "{path}");
        }
        assert_eq!(answer(&Method::POST, "/", &HeaderMap::new()).status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn pages_say_what_they_may_load() {
        let response = answer(&Method::GET, "/", &HeaderMap::new());
        assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        assert!(
            response.headers()["content-security-policy"]
                .to_str()
                .unwrap()
                .contains("frame-ancestors 'none'")
        );
    }

    /// "The plain text." in both encodings' places; only gzip's is ever read by the program itself.
    fn asset() -> Asset {
        use flate2::Compression;
        use flate2::write::GzEncoder;
        use std::io::Write as _;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(b"The plain text.").unwrap();
        let gzip: &'static [u8] = encoder.finish().unwrap().leak();
        Asset { plain: None, brotli: Some(b"brotli"), gzip: Some(gzip), tag: Some("0123".into()) }
    }

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_best_encoding_that_the_client_accepts_is_sent() {
        for (accepted, sent) in [
            ("gzip, deflate, br, zstd", Some("br")),
            ("gzip, deflate", Some("gzip")),
            ("GZIP", Some("gzip")),
            ("br;q=0.5, gzip;q=0.8", Some("gzip")),
            ("br;q=0, gzip", Some("gzip")),
            ("br;q=0, *", Some("gzip")),
            ("*", Some("br")),
            ("gzip;q=nonsense", None),
            ("gzip;q=0", None),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0, gzip;q=0", None),
            ("deflate", None),
            ("", None),
        ] {
            let response = asset().answer("assets/a.js", &with(header::ACCEPT_ENCODING, accepted));
            let headers = response.headers();
            let coding = headers.get("content-encoding").map(|value| value.to_str().unwrap());
            assert_eq!(coding, sent, "{accepted}");
            assert_eq!(headers["vary"], "Accept-Encoding");
            assert_eq!(headers["cache-control"], "public, max-age=31536000, immutable");
            let etag = sent.map_or("\"0123\"".to_owned(), |coding| format!("\"0123-{coding}\""));
            assert_eq!(headers["etag"], etag.as_str());
        }
    }

    #[tokio::test]
    async fn a_client_without_compression_gets_the_plain_file() {
        let response = asset().answer("assets/a.js", &HeaderMap::new());
        let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
        assert_eq!(body, "The plain text.");
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        for (tag, status) in [
            ("\"0123\"", StatusCode::NOT_MODIFIED),
            ("\"0123-br\"", StatusCode::NOT_MODIFIED),
            ("\"x\", W/\"0123-gzip\"", StatusCode::NOT_MODIFIED),
            ("*", StatusCode::NOT_MODIFIED),
            ("\"0124\"", StatusCode::OK),
            ("\"\"", StatusCode::OK),
        ] {
            let response = asset().answer("index.html", &with(header::IF_NONE_MATCH, tag));
            assert_eq!(response.status(), status, "{tag}");
            assert_eq!(response.headers()["vary"], "Accept-Encoding");
            assert_eq!(response.headers()["cache-control"], "no-cache");
        }
    }
}
