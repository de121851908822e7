//! Which hooks a plugin has.

use serde::Serialize;

/// A set of hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hooks(u16);

/// A type with known hooks. Written by `#[hooks]` above `impl Plugin for …`.
#[diagnostic::on_unimplemented(
    message = "the hooks of `{Self}` are not known",
    label = "write #[signalbox_plugin::hooks] above `impl Plugin for {Self}`"
)]
pub trait Hooked {
    /// Its hooks.
    const HOOKS: Hooks;
}

impl Hooks {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// [`Plugin::on_request`](crate::Plugin::on_request).
    pub const REQUEST: Self = Self(1);
    /// [`Plugin::request_body`](crate::Plugin::request_body).
    pub const REQUEST_BODY: Self = Self(1 << 1);
    /// [`Plugin::on_request_body`](crate::Plugin::on_request_body).
    pub const WHOLE_REQUEST_BODY: Self = Self(1 << 2);
    /// [`Plugin::on_response`](crate::Plugin::on_response).
    pub const RESPONSE: Self = Self(1 << 3);
    /// [`Plugin::response_body`](crate::Plugin::response_body).
    pub const RESPONSE_BODY: Self = Self(1 << 4);
    /// [`Plugin::on_response_body`](crate::Plugin::on_response_body).
    pub const WHOLE_RESPONSE_BODY: Self = Self(1 << 5);
    /// [`Plugin::on_no_route`](crate::Plugin::on_no_route).
    pub const NO_ROUTE: Self = Self(1 << 6);
    /// [`Plugin::on_log`](crate::Plugin::on_log).
    pub const LOG: Self = Self(1 << 7);
    /// The hooks on the way back.
    pub const WAY_BACK: Self = Self::RESPONSE.with(Self::RESPONSE_BODY);

    /// The hooks of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if one of these is among `other`.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The phases that the hooks belong to.
    pub fn phases(self) -> impl Iterator<Item = Phase> {
        const PHASES: [(Hooks, Phase); 5] = [
            (Hooks::REQUEST.with(Hooks::NO_ROUTE), Phase::RequestHeaders),
            (Hooks::REQUEST_BODY, Phase::RequestBody),
            (Hooks::RESPONSE, Phase::ResponseHeaders),
            (Hooks::RESPONSE_BODY, Phase::ResponseBody),
            (Hooks::LOG, Phase::Log),
        ];
        PHASES.into_iter().filter(move |(hooks, _)| self.intersects(*hooks)).map(|(_, phase)| phase)
    }
}

/// When a plugin is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The head of the request.
    RequestHeaders,
    /// Its body.
    RequestBody,
    /// The head of the response.
    ResponseHeaders,
    /// Its body.
    ResponseBody,
    /// After all.
    Log,
}
