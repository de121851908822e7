//! The findings of rules, and the words in which they are told.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::facts::Trouble;
use super::significance::Share;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Proxies refuse a revision.
    Rejected,
    /// The database cannot be used.
    Database,
    /// Proxies are not connected.
    Lost,
    /// Proxies refuse requests because they have too much to do.
    Overload,
    /// More requests fail since a revision, or only with it.
    Revision,
    /// One target of an upstream has most of the failures.
    Target,
    /// One proxy has most of the failures.
    Proxy,
    /// One upstream has most of the failures.
    Upstream,
    /// One route has most of the failures.
    Route,
    /// More requests of a fleet fail, everywhere.
    Fleet,
    /// More requests take longer than usual.
    Slow,
    /// More requests match no route.
    NoRoute,
    /// More requests are refused with a status from 400 to 499.
    ClientErrors,
    /// More clients give their requests up, or send what is not HTTP, and nothing is wrong here.
    Clients,
}

/// The resource, proxy or fleet that an incident is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Resource {
    /// `route`, `upstream`, `target`, `proxy`, `fleet`, `revision`, `database`, or another kind of resource.
    pub kind: String,
    /// The name; of a target, its upstream's name and its address.
    pub name: String,
}

impl Rule {
    /// The way in which requests go wrong, if the rule is about requests.
    pub(super) fn trouble(self) -> Option<Trouble> {
        Some(match self {
            Self::Rejected | Self::Database | Self::Lost => return None,
            Self::Overload
            | Self::Revision
            | Self::Target
            | Self::Proxy
            | Self::Upstream
            | Self::Route
            | Self::Fleet => Trouble::Failing,
            Self::Slow => Trouble::Slow,
            Self::NoRoute => Trouble::Unmatched,
            Self::ClientErrors => Trouble::Refused,
            Self::Clients => Trouble::GivenUp,
        })
    }
}

/// The result of a rule that has found something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) rule: Rule,
    pub(super) resource: Resource,
    /// The fleet whose requests it is about; `None`: it is about something else.
    pub(super) fleet: Option<Arc<str>>,
    pub(super) sentence: String,
    pub(super) evidence: Value,
    /// The calls that may help: method and path.
    pub(super) actions: Vec<String>,
    /// From 0 to 100.
    pub(super) penalty: u32,
}

/// The part of the score that failures take away: 20, and more the more requests fail.
pub(super) fn penalty(share: Share) -> u32 {
    (20.0 + 200.0 * share.ratio()).min(95.0) as u32
}

/// A part of a whole in per cent.
pub(super) fn percent(part: usize, whole: usize) -> u32 {
    u32::try_from(100 * part / whole.max(1)).unwrap_or(100)
}

/// A share of failures in per cent.
pub(super) fn ratio(share: Share) -> String {
    let percent = 100.0 * share.ratio();
    let decimals = match percent {
        0.0 => 0,
        ..1.0 => 2,
        ..10.0 => 1,
        _ => 0,
    };
    format!("{percent:.decimals$} %")
}

/// A number with what it counts.
pub(super) fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// A text that begins with a capital letter.
pub(super) fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
