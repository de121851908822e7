use std::sync::Arc;

use imbl::OrdSet;
use signalbox_config::{Body, Change, Name, Resource};
use signalbox_plugin::precedence::{Source, TypeSet};
use signalbox_plugin::{Context, Hooks, Logger, OnConditionError, Tasks};

use super::revision::{put, rejected};
use crate::active::{PluginStats, Step, StepCondition};
use crate::core::map::Map;
use crate::services::Services;
use crate::source::Rejected;

/// Compiles plugins into the steps of chains.
#[derive(Clone, Default)]
pub(super) struct PluginCompiler {
    /// The plugins that are enabled.
    steps: Map<Name, Step>,
    /// The names of the global ones.
    globals: OrdSet<Name>,
}

#[derive(Default)]
pub(super) struct PluginDelta {
    changed: Vec<(Name, Option<CompiledPlugin>)>,
    /// True if one of them was global, or is now: every chain has the global plugins.
    pub(super) changes_globals: bool,
}

struct CompiledPlugin {
    step: Step,
    global: bool,
}

impl PluginCompiler {
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        services: &Services,
    ) -> Result<PluginDelta, Vec<Rejected>> {
        let mut delta = PluginDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            let name = &change.key().name;
            let plugin = match put(change) {
                None => None,
                Some(resource) => match build(resource, self.steps.get(name), services) {
                    Ok(plugin) => plugin,
                    Err(errors) => {
                        rejections.extend(errors);
                        continue;
                    }
                },
            };
            delta.changes_globals |=
                self.globals.contains(name) || plugin.as_ref().is_some_and(|plugin| plugin.global);
            delta.changed.push((name.clone(), plugin));
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &PluginDelta) {
        for (name, plugin) in &delta.changed {
            self.steps.remove(name);
            self.globals.remove(name);
            let Some(plugin) = plugin else { continue };
            self.steps.insert(name.clone(), plugin.step.clone());
            if plugin.global {
                self.globals.insert(name.clone());
            }
        }
    }

    /// The steps of those of `plugins` that are enabled, attached to `source`.
    pub(super) fn steps<'a>(&self, plugins: impl IntoIterator<Item = &'a Name>, source: Source) -> Vec<Step> {
        let steps = plugins.into_iter().filter_map(|name| self.steps.get(name));
        steps.map(|step| Step { source, ..step.clone() }).collect()
    }

    /// The steps of the global plugins, which every request passes.
    pub(super) fn global_steps(&self) -> Vec<Step> {
        self.steps(&self.globals, Source::Global)
    }

    /// The measurements of enabled plugins.
    pub(super) fn stats(&self) -> impl Iterator<Item = &Arc<PluginStats>> {
        self.steps.values().map(|step| &step.stats)
    }
}

/// Builds a plugin. Its measurements continue if it was enabled `before` with the same type. Returns `None` if it is not enabled.
fn build(
    resource: &Resource,
    before: Option<&Step>,
    services: &Services,
) -> Result<Option<CompiledPlugin>, Vec<Rejected>> {
    let key = resource.key();
    let Body::Plugin(spec) = resource.body() else { return Ok(None) };
    if !spec.enabled {
        return Ok(None);
    }
    let types = &services.types;
    let found = types.position(&spec.type_name);
    let Some((index, plugin_type)) = found.zip(types.find(&spec.type_name)) else {
        return Err(vec![rejected(key, "type", format!("unknown plugin type {:?}", spec.type_name))]);
    };
    let before = before.filter(|before| before.type_set == TypeSet::of(index));
    let stats = before.map_or_else(
        || Arc::new(PluginStats::new(&key.name, plugin_type.outcomes, services.workers)),
        |before| Arc::clone(&before.stats),
    );
    let log = Logger::new(key.name.clone(), services.clock.clone());
    let tasks = Tasks::new(Arc::clone(&services.spawner), log.clone());
    let Services { states, clock, blobs, .. } = services;
    let context = Context::new(&key.name, states, clock, &tasks, &log, &stats.outcomes, blobs);
    let plugin = plugin_type.build(&spec.config, &context).map_err(|errors| {
        let field = |field: &str| match field {
            "" => "config".to_owned(),
            field => format!("config.{field}"),
        };
        let errors = errors.into_iter().map(|error| rejected(key, field(&error.field), error.message));
        errors.collect::<Vec<_>>()
    })?;
    let condition = spec.when.clone().map(|when| StepCondition {
        when,
        runs_on_error: plugin_type.on_condition_error == OnConditionError::Run,
    });
    let step = Step {
        name: key.name.clone(),
        type_set: TypeSet::of(index),
        source: Source::Global,
        order: spec.order,
        response_order: plugin_type.response_order.unwrap_or(spec.order),
        // A plugin in shadow decides in `on_request`, and has no other part in the request.
        hooks: if spec.shadow { Hooks::REQUEST } else { plugin.hooks() },
        answers_preflights: plugin_type.answers_preflights && !spec.shadow,
        condition,
        is_shadow: spec.shadow,
        stats,
        plugin,
    };
    Ok(Some(CompiledPlugin { step, global: spec.global }))
}
