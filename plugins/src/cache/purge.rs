//! Purges in the configuration: they reach each proxy as every change does, and are in the history.

use std::sync::{Mutex, PoisonError};

use http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::Errors;

use super::key::{Key, url};

/// A purge. Exactly one of `url`, `prefix`, `tag` and `all` says what it removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfiguredPurge {
    /// A text that no other purge has: a time, a number.
    #[schemars(title = "Id", length(min = 1, max = 64))]
    pub(super) id: String,
    /// Removes the responses of this URL: `https://example.com/a?b=c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "URL")]
    pub(super) url: Option<String>,
    /// Removes the responses of all URLs that begin so: `https://example.com/shop/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Prefix")]
    pub(super) prefix: Option<String>,
    /// Removes the responses with this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Tag")]
    pub(super) tag: Option<String>,
    /// Removes all responses of the plugin.
    #[serde(default)]
    #[schemars(title = "All")]
    pub(super) all: bool,
}

/// The responses that a purge removes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selector {
    /// All of the plugin.
    All,
    /// Those of one URL, in the form of [`super::key::url`].
    Url(String),
    /// Those whose URL begins so.
    Prefix(String),
    /// Those with a tag.
    Tag(String),
    /// Those that a purge beside the configuration selects.
    Purge(signalbox_config::Purge),
}

/// The purges that a cache knows.
#[derive(Debug)]
pub(super) struct Known(Mutex<Vec<ConfiguredPurge>>);

/// The greatest number of purges in a configuration.
pub(super) const MOST: usize = 100;
const LONGEST_ID: usize = 64;

/// Adds the errors of a configuration's purges.
pub(super) fn check(purges: &[ConfiguredPurge], errors: &mut Errors) {
    if purges.len() > MOST {
        errors.push("purges", format_args!("has more than {MOST} purges; leave out the oldest"));
    }
    for (index, purge) in purges.iter().enumerate() {
        if purge.id.is_empty() || purge.id.len() > LONGEST_ID {
            errors.push(format_args!("purges[{index}].id"), "must have from 1 to 64 bytes");
        }
        if purges.iter().take(index).any(|before| before.id == purge.id) {
            errors.push(format_args!("purges[{index}].id"), "is that of another purge");
        }
        if purge.selector().is_none() {
            errors.push(
                format_args!("purges[{index}]"),
                "must have exactly one of url and prefix (with http:// or https://, a host and a path), tag, and all: true",
            );
        }
    }
}

impl ConfiguredPurge {
    /// The responses that it removes; `None`: it does not say so in one way.
    fn selector(&self) -> Option<Selector> {
        match (&self.url, &self.prefix, &self.tag, self.all) {
            (Some(url), None, None, false) => Some(Selector::Url(normalized(url)?)),
            (None, Some(prefix), None, false) => Some(Selector::Prefix(normalized(prefix)?)),
            (None, None, Some(tag), false) if !tag.is_empty() => Some(Selector::Tag(tag.clone())),
            (None, None, None, true) => Some(Selector::All),
            _ => None,
        }
    }
}

impl Selector {
    /// True if it selects a response to this key with the tags that `has_tag` knows.
    pub(super) fn selects(&self, key: &Key, has_tag: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::All => true,
            Self::Url(wanted) => *key.url == **wanted,
            Self::Prefix(prefix) => key.url.starts_with(prefix.as_str()),
            Self::Tag(tag) => has_tag(tag),
            Self::Purge(purge) => purge.selects(key.route.as_str(), &key.url, has_tag),
        }
    }
}

impl Known {
    /// Those of a cache that is empty yet.
    pub(super) fn new(purges: &[ConfiguredPurge]) -> Self {
        Self(Mutex::new(purges.to_vec()))
    }

    /// The responses that have to be removed now that these are the last purges.
    ///
    /// A full list of unknown purges may follow on others that this proxy has missed. Then all responses go.
    pub(super) fn learn(&self, purges: &[ConfiguredPurge]) -> Vec<Selector> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new: Vec<&ConfiguredPurge> = purges.iter().filter(|purge| !known.contains(purge)).collect();
        let selectors = match new.len() == MOST {
            true => vec![Selector::All],
            false => new.iter().filter_map(|purge| purge.selector()).collect(),
        };
        *known = purges.to_vec();
        selectors
    }
}

/// A URL in the form of the keys; `None`: it lacks the scheme, the host or the path.
fn normalized(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let https = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    let authority = uri.authority()?.as_str();
    // The parser adds a path that is not there.
    let (_, behind) = text.split_once("://")?;
    behind
        .contains('/')
        .then(|| url(https, authority, uri.path_and_query().map_or("/", |target| target.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn purge(id: usize) -> ConfiguredPurge {
        ConfiguredPurge {
            id: id.to_string(),
            url: None,
            prefix: None,
            tag: Some(format!("t{id}")),
            all: false,
        }
    }

    fn tag(id: usize) -> Selector {
        Selector::Tag(format!("t{id}"))
    }

    #[test]
    fn each_purge_is_carried_out_once() {
        let purges: Vec<ConfiguredPurge> = (0..300).map(purge).collect();
        let known = Known::new(&purges[..2]);
        assert_eq!(known.learn(&purges[..2]), []);
        assert_eq!(known.learn(&purges[..4]), [tag(2), tag(3)]);
        assert_eq!(known.learn(&purges[1..4]), []);
        assert_eq!(known.learn(&purges[4..104]), [Selector::All], "some may be missing between");
        assert_eq!(known.learn(&purges[5..105]), [tag(104)]);
        assert_eq!(known.learn(&[]), []);
        assert_eq!(known.learn(&purges[104..106]), [tag(104), tag(105)], "what is forgotten is done again");
    }

    #[test]
    fn urls_are_brought_into_the_form_of_the_keys() {
        for (text, expected) in [
            ("https://A.example:443/X?y", Some("https://a.example/X?y")),
            ("http://a.example/", Some("http://a.example/")),
            ("http://a.example", None),
            ("a.example/x", None),
            ("/x", None),
            ("ftp://a.example/x", None),
            ("", None),
        ] {
            assert_eq!(normalized(text).as_deref(), expected, "{text}");
        }
    }
}
