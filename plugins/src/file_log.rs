//! Writes an entry for each request into a file of the proxy's host.
//!
//! When a request has ended, however it did, its entry is put into a queue. One thread for each file writes what is in the queue, so
//! no request ever waits for the disk. Plugins with the same `path` share the thread, and their lines do not mix.
//!
//! ## Entries
//!
//! An entry is a JSON object on a line of its own, with the fields of the proxy's access log; [http-log](http-log.md) lists them.
//! `fields` narrows them. `custom_fields` adds texts of your own, with placeholders: `{request.header.x-tenant}`. A field whose
//! placeholder has no value is left out. Entries have no credentials, and control characters are escaped.
//!
//! Requests that are refused before any plugin runs have no entry, for example those whose head is malformed. Attach the plugin
//! globally to have entries of requests that no route takes.
//!
//! ## The file
//!
//! Every proxy that has the plugin writes its own file at `path`. The directory must be there. A file that is not there is made with the
//! mode `0640`, less what the proxy's umask takes away. A directory, a device or a pipe is not written to. Give the proxy's user write
//! access to such directories only that are for logs: whoever may change plugins decides about `path`.
//!
//! The proxy looks before each write if the file at `path` is still the one that it has open, and opens it anew if it was renamed or
//! deleted. So log rotation needs no signal. Truncating the file in place works, too.
//!
//! When the disk is full, or the file cannot be opened, the entries that are to be written then are lost and counted. The next ones are
//! tried again, so the log goes on by itself as soon as there is room. A line that was written in part is ended first, so that the
//! next line is whole.
//!
//! `signalbox_plugin_outcomes_total` counts each entry once: `sent` (written), `dropped` (no room in the queue, because the disk is
//! slow), or `failed` (it could not be written). The proxy's log tells of losses once a minute at most. When the proxy ends, what is
//! in the queue is still written, for up to two seconds.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{
    Context, Definition, Flow, LogRecord, OnConditionError, Plugin, PluginResponse, hooks,
};

mod file;
mod writer;

use self::writer::FileSink;
use crate::log_sink::{self, Field, QueueSpec, Selection, SelectionSpec};

/// The file, and the entries in it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "File log", example = serde_json::json!({"path": "/var/log/signalbox/users.log"}), example = serde_json::json!({
    "path": "/var/log/signalbox/tenants.log",
    "fields": ["time", "request_id", "method", "path", "status", "duration_ms"],
    "custom_fields": {"tenant": "{request.header.x-tenant|none}"},
}))]
pub(crate) struct Config {
    /// The absolute path of the file.
    #[schemars(title = "Path")]
    path: String,
    /// The fields of the access log that an entry has. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Fields")]
    fields: Option<Vec<Field>>,
    /// Further fields: a name, and a text with placeholders.
    #[serde(default)]
    #[schemars(title = "Custom fields")]
    custom_fields: BTreeMap<String, String>,
    /// The entries that wait for the disk. One for which there is no room is dropped.
    #[serde(default)]
    #[schemars(title = "Queue")]
    queue: QueueSpec,
}

/// The longest path, in bytes.
const MAX_PATH: usize = 4095;

/// Writes an entry for each request into a file.
pub(crate) struct FileLog {
    selection: Selection,
    sink: FileSink,
}

#[hooks]
impl Plugin for FileLog {
    // It also makes the requests without a route those that the plugin sees.
    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        self.selection.note(response);
        Flow::Continue
    }

    fn on_log(&self, record: &LogRecord<'_>) {
        self.sink.push(self.selection.json(record), record);
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for FileLog {
    const NAME: &'static str = "file-log";
    const DESCRIPTION: &'static str = "Writes an entry for each request into a file of the proxy's host.";
    const ORDER: i32 = 10;
    // It sees a response as the client gets it.
    const RESPONSE_ORDER: Option<i32> = Some(i32::MAX);
    const OUTCOMES: &'static [&'static str] = log_sink::OUTCOMES;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        config.selection(errors);
        config.queue.check(errors);
        let path = Path::new(&config.path);
        let is_plain =
            path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute()
            || !is_plain
            || path.file_name().is_none()
            || config.path.ends_with('/')
            || config.path.len() > MAX_PATH
            || config.path.contains('\0')
        {
            errors.push("path", "must be the absolute path of a file, without ..");
        }
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let selection = config.selection(&mut Errors::default());
        let sink = errors.is_empty().then(|| FileSink::of(Path::new(&config.path), &config.queue, context));
        errors.finish(sink.map(|sink| Self { selection, sink }))
    }
}

impl Config {
    fn selection(&self, errors: &mut Errors) -> Selection {
        SelectionSpec { fields: self.fields.as_deref(), custom_fields: &self.custom_fields }.parse(errors)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::refused;

    #[test]
    fn only_absolute_paths_of_files_are_taken() {
        for path in ["", "/", "log", "./log", "/var/../etc/log", "/var/log/", "/a\0b", &"/x".repeat(2048)] {
            assert!(refused("file-log", json!({"path": path})).starts_with("path: must be"), "{path:?}");
        }
        assert!(refused("file-log", json!({"path": "/l", "queue": {"max_size": "1"}})).starts_with("queue."));
    }
}
