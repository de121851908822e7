//! Secrets of webhooks that lie in environment variables and files of this control plane's host. They are read at each attempt, so that a
//! new one is used at once.

use std::path::Path;

use http::{HeaderValue, Uri};
use signalbox_config::{
    HeaderTextSpec, PlaceSpec, SharedSecret, WebhookKey, WebhookUrl, parse_webhook_url, without_line_break,
};
use tokio::io::AsyncReadExt as _;

/// The longest secret, bytes.
const MAX_SECRET: u64 = 8192;

/// The URL of a webhook. The error is for the operator, and quotes no secret.
pub(super) async fn url(url: &WebhookUrl) -> Result<Uri, String> {
    let (bytes, place) = match url {
        WebhookUrl::Text(url) => return Ok(url.clone()),
        WebhookUrl::Env(name) => (variable(name)?, format!("the environment variable {name}")),
        WebhookUrl::File(path) => (file(path).await?, format!("the file {path}")),
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("{place} is not UTF-8"))?;
    parse_webhook_url(text.trim()).map_err(|error| format!("the URL in {place} {error}"))
}

/// The key by which requests are signed.
pub(super) async fn key(secret: &SharedSecret) -> Result<WebhookKey, String> {
    let (bytes, place) = match secret {
        SharedSecret::Text(text) => (text.as_bytes().to_vec(), "the secret".to_owned()),
        SharedSecret::Env(name) => (variable(name)?, format!("the environment variable {name}")),
        SharedSecret::File(path) => (file(path).await?, format!("the file {path}")),
    };
    WebhookKey::read(&bytes).map_err(|error| format!("{place} {error}"))
}

/// The value of a header.
pub(super) async fn header(text: &HeaderTextSpec) -> Result<HeaderValue, String> {
    let (bytes, place) = match text {
        HeaderTextSpec::Text(text) => (text.as_bytes().to_vec(), "the header".to_owned()),
        HeaderTextSpec::Place(PlaceSpec::Env(name)) => {
            (variable(name)?, format!("the environment variable {name}"))
        }
        HeaderTextSpec::Place(PlaceSpec::File(path)) => (file(path).await?, format!("the file {path}")),
    };
    let value = HeaderValue::from_bytes(&bytes);
    let mut value = value.map_err(|_| format!("{place} cannot be the value of a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn variable(name: &str) -> Result<Vec<u8>, String> {
    let value = std::env::var_os(name)
        .ok_or_else(|| format!("the environment variable {name} of the control plane is not set"))?;
    Ok(without_line_break(&value.into_encoded_bytes()).to_vec())
}

async fn file(path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
    let path = path.as_ref();
    let unreadable = |error: std::io::Error| {
        format!("the file {} on the control plane's host cannot be read: {error}", path.display())
    };
    // Opening a pipe would wait for its writer.
    if !tokio::fs::metadata(path).await.map_err(unreadable)?.is_file() {
        return Err(format!("{} on the control plane's host is not a regular file", path.display()));
    }
    let file = tokio::fs::File::open(path).await.map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SECRET {
        return Err(format!(
            "the file {} on the control plane's host has more than {MAX_SECRET} bytes",
            path.display()
        ));
    }
    Ok(without_line_break(&bytes).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_read_anew_and_errors_name_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let place = WebhookUrl::File(path.to_str().unwrap().to_owned());
        let error = url(&place).await.unwrap_err();
        assert!(error.contains("cannot be read") && error.contains("/url"), "{error}");
        for (text, read) in
            [("https://a/x\n", Ok("https://a/x")), (" http://b \r\n", Ok("http://b/")), ("secret", Err(()))]
        {
            std::fs::write(&path, text).unwrap();
            match (url(&place).await, read) {
                (Ok(url), Ok(read)) => assert_eq!(url, read),
                (Err(error), Err(())) => assert!(!error.contains(" secret"), "{error}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let secret = SharedSecret::File(path.to_str().unwrap().to_owned());
        assert_eq!(key(&secret).await.unwrap().bytes(), b"0123456789abcdef");
        std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
        assert!(key(&secret).await.unwrap_err().contains("more than 8192 bytes"));
        let folder = SharedSecret::File(dir.path().to_str().unwrap().to_owned());
        assert!(key(&folder).await.unwrap_err().contains("not a regular file"));
        let unset = SharedSecret::Env("SIGNALBOX_NO_SUCH_VARIABLE".to_owned());
        assert!(key(&unset).await.unwrap_err().contains("is not set"));
    }
}
