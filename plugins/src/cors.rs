use schemars::JsonSchema;
use serde::Deserialize;
use signalbox_config::{Errors, FieldError};

use crate::context::Context;
use crate::plugin::{Phase, Plugin};
use crate::registry::Definition;

/// Configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// Plugin.
pub struct Cors;

impl Plugin for Cors {}

impl Definition for Cors {
    const NAME: &'static str = "cors";
    const DESCRIPTION: &'static str = "";
    const ORDER: i32 = 2000;
    const PHASES: &'static [Phase] = &[Phase::RequestHeaders];
    type Config = Config;

    fn check(_: &Config, _: &mut Errors) {}

    fn build(_: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        Ok(Self)
    }
}
