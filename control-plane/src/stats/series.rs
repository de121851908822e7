//! The names of series.

use std::sync::Arc;

use signalbox_proto::signalbox::report::v1::traffic_series::Scope;

/// The name of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesKey {
    /// The fleet.
    pub fleet: Arc<str>,
    /// The requests of the fleet that it has.
    pub dimension: Dimension,
}

/// The requests of a fleet that a series has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    /// All.
    All,
    /// Those that took a route.
    Route(Arc<str>),
    /// Those for an upstream.
    Upstream(Arc<str>),
    /// Those of a consumer.
    Consumer(Arc<str>),
    /// Those of a proxy.
    Proxy(Arc<str>),
    /// Those that ended while a proxy served a revision.
    Revision(u64),
}

impl Dimension {
    /// The name of the series of those that are not kept apart.
    pub const OTHER: &'static str = "_other";

    /// The dimension of a scope that proxies report.
    pub(super) fn of(scope: Scope, name: &str) -> Self {
        match scope {
            Scope::All => Self::All,
            Scope::Route => Self::Route(name.into()),
            Scope::Upstream => Self::Upstream(name.into()),
            Scope::Consumer => Self::Consumer(name.into()),
        }
    }

    /// The series of the same kind that has those which are not kept apart; `None`: there is no such series.
    pub(super) fn other(&self) -> Option<Self> {
        match self {
            Self::All | Self::Revision(_) => None,
            Self::Route(_) => Some(Self::Route(Self::OTHER.into())),
            Self::Upstream(_) => Some(Self::Upstream(Self::OTHER.into())),
            Self::Consumer(_) => Some(Self::Consumer(Self::OTHER.into())),
            Self::Proxy(_) => Some(Self::Proxy(Self::OTHER.into())),
        }
    }

    /// The kind, as queries and labels call it; `None`: all requests.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Route(_) => Some("route"),
            Self::Upstream(_) => Some("upstream"),
            Self::Consumer(_) => Some("consumer"),
            Self::Proxy(_) => Some("proxy"),
            Self::Revision(_) => Some("revision"),
        }
    }

    /// The kind and the name; `None`: all requests.
    pub fn label(&self) -> Option<(&'static str, String)> {
        let name = match self {
            Self::All => return None,
            Self::Route(name) | Self::Upstream(name) | Self::Consumer(name) | Self::Proxy(name) => {
                name.to_string()
            }
            Self::Revision(number) => number.to_string(),
        };
        Some((self.kind()?, name))
    }

    /// The dimension of this kind and name; `None`: there is no such kind, or the name cannot be one.
    pub fn from_label(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "route" => Some(Self::Route(name.into())),
            "upstream" => Some(Self::Upstream(name.into())),
            "consumer" => Some(Self::Consumer(name.into())),
            "proxy" => Some(Self::Proxy(name.into())),
            "revision" => name.parse().ok().map(Self::Revision),
            _ => None,
        }
    }
}
