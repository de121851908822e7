//! Response flags: the reason why a request went wrong.

/// The reason why a request went wrong, in the access log and the metrics. The values are Envoy's; see "response
/// flags" in its access log documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(u8)]
pub enum Flag {
    #[default]
    None,
    NoRoute,
    NoHealthyUpstream,
    ConnectFailure,
    Overflow,
    Timeout,
    UpstreamReset,
    DownstreamClosed,
    DownstreamProtocol,
    StreamIdle,
    Overloaded,
    RetriesExhausted,
    // The retries were exhausted; the flag also names the last failure.
    ConnectFailureExhausted,
    TimeoutExhausted,
    UpstreamResetExhausted,
    UpstreamProtocol,
    UpstreamProtocolExhausted,
    PluginPanicked,
    PluginAborted,
}

impl Flag {
    pub const ALL: [Flag; 19] = [
        Flag::None,
        Flag::NoRoute,
        Flag::NoHealthyUpstream,
        Flag::ConnectFailure,
        Flag::Overflow,
        Flag::Timeout,
        Flag::UpstreamReset,
        Flag::DownstreamClosed,
        Flag::DownstreamProtocol,
        Flag::StreamIdle,
        Flag::Overloaded,
        Flag::RetriesExhausted,
        Flag::ConnectFailureExhausted,
        Flag::TimeoutExhausted,
        Flag::UpstreamResetExhausted,
        Flag::UpstreamProtocol,
        Flag::UpstreamProtocolExhausted,
        Flag::PluginPanicked,
        Flag::PluginAborted,
    ];

    /// The flag for the same failure after the last permitted retry.
    #[must_use]
    pub fn exhausted(self) -> Self {
        match self {
            Flag::ConnectFailure => Flag::ConnectFailureExhausted,
            Flag::Timeout => Flag::TimeoutExhausted,
            Flag::UpstreamReset => Flag::UpstreamResetExhausted,
            Flag::UpstreamProtocol => Flag::UpstreamProtocolExhausted,
            other => other,
        }
    }

    /// The name of the failure, whether it was the last after retries or not.
    pub fn cause(self) -> &'static str {
        let text = self.as_str();
        text.split_once(',').map_or(text, |(cause, _)| cause)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Flag::None => "",
            Flag::NoRoute => "NR",
            Flag::NoHealthyUpstream => "UH",
            Flag::ConnectFailure => "UF",
            Flag::Overflow => "UO",
            Flag::Timeout => "UT",
            Flag::UpstreamReset => "UC",
            Flag::DownstreamClosed => "DC",
            Flag::DownstreamProtocol => "DPE",
            Flag::StreamIdle => "SI",
            Flag::Overloaded => "OM",
            Flag::RetriesExhausted => "URX",
            Flag::ConnectFailureExhausted => "UF,URX",
            Flag::TimeoutExhausted => "UT,URX",
            Flag::UpstreamResetExhausted => "UC,URX",
            Flag::UpstreamProtocol => "UPE",
            Flag::UpstreamProtocolExhausted => "UPE,URX",
            Flag::PluginPanicked => "PP",
            Flag::PluginAborted => "PA",
        }
    }
}
