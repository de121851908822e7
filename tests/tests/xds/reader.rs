//! A plugin that uses an uploaded file, for the tests of such files.

use schemars::JsonSchema;
use serde::Deserialize;
use signalbox_config::{BlobId, Errors, FieldError};
use signalbox_plugin::{Blobs, Context, Definition, Plugin, hooks};

/// A plugin that takes any file that does not begin with "bad".
pub(crate) struct Reader;

#[hooks]
impl Plugin for Reader {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The file.
    file: BlobId,
}

impl Definition for Reader {
    const NAME: &'static str = "reader";
    const DESCRIPTION: &'static str = "Reads a file.";
    const ORDER: i32 = 0;
    type Config = Config;

    fn check(_: &Config, _: &mut Errors) {}

    fn blobs(config: &Config) -> Vec<(BlobId, String)> {
        vec![(config.file, "file".to_owned())]
    }

    fn check_blobs(config: &Config, blobs: &Blobs, errors: &mut Errors) {
        match blobs.get(config.file) {
            Some(content) if content.starts_with(b"bad") => errors.push("file", "is a bad file"),
            Some(_) => {}
            None => errors.push("file", "was promised, and is not there"),
        }
    }

    fn build(_: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        Ok(Self)
    }
}
