//! Secrets of webhooks that lie in environment variables and files of this control plane's host. They are read at each attempt, so that a
//! new one is used at once.
//!
//! Whoever writes webhooks can send such a secret to a receiver of his own, so not everything of the host may be one: the parser of webhooks
//! takes only environment variables with a certain begin (`config/src/webhook.rs`), and files must lie in a directory for them.

use std::path::{Component, Path, PathBuf};

use http::{HeaderValue, Uri};
use signalbox_config::{
    HeaderTextSpec, PlaceSpec, SharedSecret, WebhookKey, WebhookUrl, parse_webhook_url, without_line_break,
};
use tokio::io::AsyncReadExt as _;

/// The longest secret, bytes.
const MAX_SECRET: u64 = 8192;

/// Reads the secrets.
#[derive(Debug)]
pub(super) struct HostSecrets {
    /// The directory of the files.
    dir: PathBuf,
}

impl HostSecrets {
    /// The files lie below `dir`, which need not exist.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The URL of a webhook. The error is for the operator, and quotes no secret.
    pub(super) async fn url(&self, url: &WebhookUrl) -> Result<Uri, String> {
        let (bytes, place) = match url {
            WebhookUrl::Text(url) => return Ok(url.clone()),
            WebhookUrl::Env(name) => (variable(name)?, format!("the environment variable {name}")),
            WebhookUrl::File(path) => (self.file(path).await?, format!("the file {path}")),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| format!("{place} is not UTF-8"))?;
        parse_webhook_url(text.trim()).map_err(|error| format!("the URL in {place} {error}"))
    }

    /// The key by which requests are signed.
    pub(super) async fn key(&self, secret: &SharedSecret) -> Result<WebhookKey, String> {
        let (bytes, place) = match secret {
            SharedSecret::Text(text) => (text.as_bytes().to_vec(), "the secret".to_owned()),
            SharedSecret::Env(name) => (variable(name)?, format!("the environment variable {name}")),
            SharedSecret::File(path) => (self.file(path).await?, format!("the file {path}")),
        };
        WebhookKey::read(&bytes).map_err(|error| format!("{place} {error}"))
    }

    /// The value of a header.
    pub(super) async fn header(&self, text: &HeaderTextSpec) -> Result<HeaderValue, String> {
        let (bytes, place) = match text {
            HeaderTextSpec::Text(text) => (text.as_bytes().to_vec(), "the header".to_owned()),
            HeaderTextSpec::Place(PlaceSpec::Env(name)) => {
                (variable(name)?, format!("the environment variable {name}"))
            }
            HeaderTextSpec::Place(PlaceSpec::File(path)) => {
                (self.file(path).await?, format!("the file {path}"))
            }
        };
        let value = HeaderValue::from_bytes(&bytes);
        let mut value = value.map_err(|_| format!("{place} cannot be the value of a header"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn file(&self, path: &str) -> Result<Vec<u8>, String> {
        let unreadable = |error: std::io::Error| {
            format!("the file {path} on the control plane's host cannot be read: {error}")
        };
        let found = self.find(Path::new(path)).await.map_err(|error| match error {
            NotFound::Outside => format!(
                "the file {path} is not below {}, the --webhook-secrets-dir of the control plane",
                self.dir.display()
            ),
            NotFound::Unreadable(error) => unreadable(error),
        })?;
        // Opening a pipe would wait for its writer.
        if !tokio::fs::metadata(&found).await.map_err(unreadable)?.is_file() {
            return Err(format!("{path} on the control plane's host is not a regular file"));
        }
        let file = tokio::fs::File::open(&found).await.map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_SECRET + 1).read_to_end(&mut bytes).await.map_err(unreadable)?;
        if bytes.len() as u64 > MAX_SECRET {
            return Err(format!(
                "the file {path} on the control plane's host has more than {MAX_SECRET} bytes"
            ));
        }
        Ok(without_line_break(&bytes).to_vec())
    }

    /// The path without links. A path elsewhere is refused before anything is read there, so that nobody learns which files exist.
    async fn find(&self, path: &Path) -> Result<PathBuf, NotFound> {
        let dir = tokio::fs::canonicalize(&self.dir).await.ok();
        let is_below = |path: &Path| dir.as_ref().is_some_and(|dir| path.starts_with(dir));
        let has_parent = path.components().any(|part| part == Component::ParentDir);
        if has_parent || !(path.starts_with(&self.dir) || is_below(path)) {
            return Err(NotFound::Outside);
        }
        let found = tokio::fs::canonicalize(path).await.map_err(NotFound::Unreadable)?;
        if is_below(&found) { Ok(found) } else { Err(NotFound::Outside) }
    }
}

/// The reason why there is no file to read.
enum NotFound {
    /// It is not in the directory, or a link leads out of it.
    Outside,
    Unreadable(std::io::Error),
}

fn variable(name: &str) -> Result<Vec<u8>, String> {
    let value = std::env::var_os(name)
        .ok_or_else(|| format!("the environment variable {name} of the control plane is not set"))?;
    Ok(without_line_break(&value.into_encoded_bytes()).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn files_are_read_anew_and_errors_name_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = HostSecrets::new(dir.path().to_owned());
        let path = dir.path().join("url");
        let place = WebhookUrl::File(at(&path));
        let error = secrets.url(&place).await.unwrap_err();
        assert!(error.contains("cannot be read") && error.contains("/url"), "{error}");
        for (text, read) in
            [("https://a/x\n", Ok("https://a/x")), (" http://b \r\n", Ok("http://b/")), ("secret", Err(()))]
        {
            std::fs::write(&path, text).unwrap();
            match (secrets.url(&place).await, read) {
                (Ok(url), Ok(read)) => assert_eq!(url, read),
                (Err(error), Err(())) => assert!(!error.contains(" secret"), "{error}"),
                (found, _) => panic!("{text:?}: {found:?}"),
            }
        }
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        let secret = SharedSecret::File(at(&path));
        assert_eq!(secrets.key(&secret).await.unwrap().bytes(), b"0123456789abcdef");
        std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
        assert!(secrets.key(&secret).await.unwrap_err().contains("more than 8192 bytes"));
        let folder = SharedSecret::File(at(dir.path()));
        assert!(secrets.key(&folder).await.unwrap_err().contains("not a regular file"));
        let unset = SharedSecret::Env("SIGNALBOX_NO_SUCH_VARIABLE".to_owned());
        assert!(secrets.key(&unset).await.unwrap_err().contains("is not set"));
    }

    #[tokio::test]
    async fn only_files_below_the_directory_are_read() {
        let host = tempfile::tempdir().unwrap();
        let of = |name: &str| host.path().join(name);
        std::fs::create_dir_all(of("secrets/deep")).unwrap();
        std::fs::create_dir(of("secrets-of-others")).unwrap();
        for file in ["key", "secrets-of-others/key", "secrets/good", "secrets/deep/good"] {
            std::fs::write(of(file), "a secret of the host").unwrap();
        }
        for (link, target) in [
            // A secret of Kubernetes is such a link.
            ("secrets/link", "deep/good"),
            ("secrets/out", "../key"),
            ("secrets/parent", ".."),
            ("alias", "secrets"),
        ] {
            std::os::unix::fs::symlink(target, of(link)).unwrap();
        }
        let read = async |dir: &str, file: &str| {
            let secrets = HostSecrets::new(of(dir));
            secrets.key(&SharedSecret::File(at(&of(file)))).await.map(|key| key.bytes().to_vec())
        };
        for (dir, file) in [
            ("secrets", "secrets/good"),
            ("secrets", "secrets/deep/good"),
            ("secrets", "secrets/link"),
            ("alias", "alias/good"),
            ("alias", "secrets/good"),
        ] {
            assert_eq!(read(dir, file).await.unwrap(), b"a secret of the host", "{dir} {file}");
        }
        for (dir, file) in [
            ("secrets", "key"),
            ("secrets", "no-such-file"),
            ("secrets", "secrets-of-others/key"),
            ("secrets", "secrets/out"),
            ("secrets", "secrets/parent/key"),
            ("secrets", "secrets/../key"),
            ("secrets", "secrets/deep/../../key"),
            ("no-such-directory", "key"),
        ] {
            let error = read(dir, file).await.unwrap_err();
            assert!(
                error.contains("is not below") && !error.contains("of the host"),
                "{dir} {file}: {error}"
            );
        }
    }
}
