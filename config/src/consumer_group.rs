use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};

/// A consumer group as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsumerGroupSpec {
    /// The name of the group. Consumers are in it whose `groups` have the name.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the group. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The names of plugins that run on the requests of the group's consumers. They replace the route's plugins of the same type, and
    /// a consumer's own plugins replace them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConsumerGroup {
    /// Its name.
    pub name: Name,
    /// Plugins that run on the requests of its consumers.
    pub plugins: Box<[Name]>,
}

impl Specification for ConsumerGroupSpec {
    type Parsed = ConsumerGroup;

    const TITLE: &'static str = "Consumer group";
    const TITLES: &'static str = "Consumer groups";
    const ABOUT: &'static str = "A consumer group has plugins that run on the requests of all its consumers.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 7 };

    common_fields!(ConsumerGroupSpec);

    fn references(group: &ConsumerGroup) -> Vec<(ResourceKey, String)> {
        references_of_list(Kind::Plugin, &group.plugins, "plugins").collect()
    }

    fn parse(&self, context: &Context<'_>) -> Result<ConsumerGroup, Vec<FieldError>> {
        let mut errors = Errors::default();
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        errors.finish(Some(ConsumerGroup { name: context.name.clone(), plugins }))
    }
}
