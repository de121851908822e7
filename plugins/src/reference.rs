//! Secrets that lie on the proxy's host: a configuration names their places.

use std::fs::File;
use std::io::Read as _;

use signalbox_config::{Errors, ReferenceSpec, SecretSpec, without_line_break};

/// Why there is no secret at the place that a reference names.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferenceError {
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    #[error("the file {0} cannot be read: {1}")]
    File(String, std::io::Error),
    #[error("{0} is larger than 1 MiB, is empty or is no text")]
    NoText(String),
}

/// The most bytes of a secret.
const MAX_SECRET: u64 = 1 << 20;

/// Adds the error of a field that is no reference to `errors`.
pub(crate) fn check_reference(field: &str, secret: Option<&SecretSpec>, errors: &mut Errors) {
    let is_good = match secret {
        None => true,
        Some(SecretSpec::Reference(ReferenceSpec::Env(place) | ReferenceSpec::File(place))) => {
            !place.is_empty()
        }
        Some(SecretSpec::Literal(_) | SecretSpec::Reference(ReferenceSpec::Sha256(_))) => false,
    };
    if !is_good {
        errors.push(field, "must be a reference: {\"env\": \"NAME\"} or {\"file\": \"PATH\"} of the proxy");
    }
}

/// The secret at the place that a reference names.
pub(crate) fn resolve(reference: Option<&SecretSpec>) -> Result<Option<String>, ReferenceError> {
    let (place, bytes) = match reference {
        Some(SecretSpec::Reference(ReferenceSpec::Env(name))) => {
            let value = std::env::var_os(name).ok_or_else(|| ReferenceError::NoVariable(name.clone()))?;
            (name, value.into_encoded_bytes())
        }
        Some(SecretSpec::Reference(ReferenceSpec::File(path))) => {
            let failed = |error| ReferenceError::File(path.clone(), error);
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(failed)?;
            file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(failed)?;
            (path, bytes)
        }
        None | Some(SecretSpec::Literal(_) | SecretSpec::Reference(ReferenceSpec::Sha256(_))) => {
            return Ok(None);
        }
    };
    let text = String::from_utf8(without_line_break(&bytes).to_vec()).ok();
    let text = text.filter(|text| !text.is_empty() && text.len() as u64 <= MAX_SECRET);
    text.map(Some).ok_or_else(|| ReferenceError::NoText(place.clone()))
}
