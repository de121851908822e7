//! Secrets that resources refer to: they lie in environment variables and files of the proxy's host.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};

use http::HeaderValue;
use signalbox_config::{HeaderTextSpec, PlaceSpec, without_line_break};

/// The place of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretSource<'a> {
    /// An environment variable, by name.
    Env(&'a str),
    /// A file, by path.
    File(&'a str),
}

/// Reads secrets. The compiler has one injected, so that its tests need neither environment nor files.
pub trait SecretReader: Send + Sync {
    /// The bytes at `source` as they are, [`MAX_SECRET`] at most.
    fn read(&self, source: SecretSource<'_>) -> Result<Vec<u8>, SecretError>;
}

/// Reads secrets from the environment and the files of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostSecrets;

/// Why a secret cannot be read. The text continues a sentence that begins with its [`SecretSource`].
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// There is no such environment variable.
    #[error("is not set")]
    NotSet,
    /// The file is missing, or may not be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// The path leads to a directory, a pipe or a device: reading it might never end.
    #[error("cannot be read: it is not a regular file")]
    NotAFile,
    /// The secret is longer than any key is.
    #[error("is larger than {MAX_SECRET} bytes")]
    TooLarge,
}

/// The most bytes that are read of a secret.
pub const MAX_SECRET: usize = 1 << 20;

impl fmt::Display for SecretSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name} of the proxy"),
            Self::File(path) => write!(f, "the file {path} on the proxy's host"),
        }
    }
}

impl SecretReader for HostSecrets {
    fn read(&self, source: SecretSource<'_>) -> Result<Vec<u8>, SecretError> {
        match source {
            SecretSource::Env(name) => {
                let value = std::env::var_os(name).ok_or(SecretError::NotSet)?;
                bounded(value.into_encoded_bytes())
            }
            SecretSource::File(path) => read_file(path),
        }
    }
}

/// The value of a header that is written out, or has a place. The error is for the operator.
pub fn header_value(spec: &HeaderTextSpec, secrets: &dyn SecretReader) -> Result<HeaderValue, String> {
    let source = match spec {
        HeaderTextSpec::Text(text) => {
            return HeaderValue::from_str(text).map_err(|_| "cannot be the value of a header".to_owned());
        }
        HeaderTextSpec::Place(PlaceSpec::Env(name)) => SecretSource::Env(name),
        HeaderTextSpec::Place(PlaceSpec::File(path)) => SecretSource::File(path),
    };
    let bytes = secrets.read(source).map_err(|error| format!("{source} {error}"))?;
    let value = HeaderValue::from_bytes(without_line_break(&bytes));
    let mut value = value.map_err(|_| format!("{source} cannot be the value of a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn read_file(path: &str) -> Result<Vec<u8>, SecretError> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(SecretError::Unreadable)?.is_file() {
        return Err(SecretError::NotAFile);
    }
    let file = File::open(path).map_err(SecretError::Unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Unreadable)?;
    bounded(bytes)
}

fn bounded(bytes: Vec<u8>) -> Result<Vec<u8>, SecretError> {
    if bytes.len() > MAX_SECRET { Err(SecretError::TooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(source: SecretSource<'_>) -> String {
        HostSecrets.read(source).unwrap_err().to_string()
    }

    #[test]
    fn variables_and_files_are_read_as_they_are() {
        assert!(!HostSecrets.read(SecretSource::Env("PATH")).unwrap().is_empty());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, b"\xff key\r\n").unwrap();
        let read = HostSecrets.read(SecretSource::File(path.to_str().unwrap())).unwrap();
        assert_eq!(read, b"\xff key\r\n");
    }

    #[test]
    fn a_secret_that_cannot_be_read_says_why() {
        assert_eq!(error(SecretSource::Env("SIGNALBOX_TEST_NO_SUCH_VARIABLE")), "is not set");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        assert!(error(SecretSource::File(&path("missing"))).starts_with("cannot be read: No such file"));
        assert_eq!(error(SecretSource::File(&path(""))), "cannot be read: it is not a regular file");
        assert_eq!(error(SecretSource::File("/dev/zero")), "cannot be read: it is not a regular file");
    }

    #[test]
    fn a_pipe_that_nobody_writes_to_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(
            error(SecretSource::File(pipe.to_str().unwrap())),
            "cannot be read: it is not a regular file"
        );
    }

    #[test]
    fn a_secret_has_a_largest_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let source = SecretSource::File(path.to_str().unwrap());
        fs::write(&path, vec![b'k'; MAX_SECRET]).unwrap();
        assert_eq!(HostSecrets.read(source).unwrap().len(), MAX_SECRET);
        fs::write(&path, vec![b'k'; MAX_SECRET + 1]).unwrap();
        assert_eq!(error(source), "is larger than 1048576 bytes");
    }
}
