use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bounds::between;
use crate::error::{Errors, FieldError};
use crate::freeze::{FreezeSpec, FreezeWindow};
use crate::gates::{Gates, GatesSpec};
use crate::narrowing::Narrowing;
use crate::node::{MAX_LABELS, check_label};
use crate::specification::{Audience, Common, Context, Specification};
use crate::values::{HumanDuration, is_default, millionths};

/// A fleet as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetSpec {
    /// The name of the fleet, as its proxies have it in `--fleet`.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How revisions reach the proxies of the fleet. Absent: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,
}

/// How revisions reach the proxies of a fleet, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutSpec {
    /// The strategy. The other fields have a meaning only for `progressive`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strategy: Strategy,
    /// The steps, at most 20. Each one contains the proxies of those before it and must be larger. All remaining proxies follow as the
    /// last step by itself. Absent: 10 % for 60s, then 50 % for 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<StepSpec>>,
    /// The time after the last step until the revision is proven, up to 7d; default 5m. The gates are watched further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake: Option<HumanDuration>,
    /// The gates, which compare the canaries with the other proxies. A gate or field that is absent has its default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<GatesSpec>,
    /// The treatment of a revision that fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// The treatment of a step that has too little evidence at its deadline.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_inconclusive: OnInconclusive,
    /// The treatment of revisions that are written during a rollout.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_new_write: OnNewWrite,
    /// The treatment of a revision while the fleet has no proxy that can take it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_empty: WhenEmpty,
    /// The time in which a step must have soaked, from 1s to 30d and longer than each `soak`; default 15m. Then `on_inconclusive` says what
    /// happens. Each step has the whole time. Pauses and freeze windows do not count. The bake time has this time in addition to `bake`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_deadline: Option<HumanDuration>,
    /// Windows of time in which rollouts do not go forward; at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<FreezeSpec>,
    /// Approval of a rollout before its first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalSpec>,
}

/// One step, as people write it: exactly one of `percent`, `count` and `labels`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// The share of the fleet's proxies, in percent: above 0, at most 100. It is rounded up to whole proxies.
    #[schemars(range(min = 0, max = 100), example = 10)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// The number of proxies, from 1 to 1000000.
    #[schemars(range(min = 1, max = 1_000_000), example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Labels that proxies must all have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// For `percent`: the fewest proxies, from 1 to 1000000; default 1.
    #[schemars(range(min = 1, max = 1_000_000), example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// The healthy time, with enough requests to judge, until the next step, up to 7d; default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soak: Option<HumanDuration>,
}

/// Approval of rollouts, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalSpec {
    /// True: a rollout waits for approval before its first step.
    #[serde(default)]
    pub required: bool,
    /// True: somebody who wrote one of the revisions of a rollout may approve it, too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub author: bool,
}

/// The strategy by which revisions reach a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// All proxies get a revision at once.
    #[default]
    Immediate,
    /// Some proxies, the canaries, get a revision first. Gates compare them with the others before the next step.
    Progressive,
}

/// The treatment of a revision that fails. Its canaries always return to the revision before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The resources stay as they were written, and the fleet is held at the revision before them until somebody acts.
    #[default]
    Hold,
    /// A new revision also takes the change back, unless later writes touch the same resources.
    Revert,
}

/// The treatment of a step that has too little evidence at its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnInconclusive {
    /// The rollout is held: its canaries keep the revision until somebody acts.
    #[default]
    Hold,
    /// The rollout goes on.
    Promote,
    /// The rollout is aborted: its canaries return.
    Abort,
}

/// The treatment of revisions that are written during a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNewWrite {
    /// They wait for the end of the rollout. Then the newest follows.
    #[default]
    Wait,
    /// The rollout starts anew with the newest revision, on the same canaries.
    Supersede,
}

/// The treatment of a revision while the fleet has no proxy that can take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WhenEmpty {
    /// The rollout waits for a proxy.
    #[default]
    Wait,
    /// The fleet is assigned the revision. It is not proven.
    Promote,
}

/// A fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// How revisions reach its proxies.
    pub rollout: RolloutPolicy,
}

/// How revisions reach the proxies of a fleet. The default is that of a fleet without a resource.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutPolicy {
    /// The strategy.
    pub strategy: Strategy,
    /// The steps, from small to large. The last one, and no other, is [`StepSize::All`].
    pub steps: Box<[RolloutStep]>,
    /// The time after the last step until the revision is proven.
    pub bake: Duration,
    /// The gates.
    pub gates: Gates,
    /// The treatment of a revision that fails.
    pub on_failure: OnFailure,
    /// The treatment of a step that has too little evidence at its deadline.
    pub on_inconclusive: OnInconclusive,
    /// The treatment of revisions that are written during a rollout.
    pub on_new_write: OnNewWrite,
    /// The treatment of a revision while the fleet has no proxy that can take it.
    pub when_empty: WhenEmpty,
    /// The longest time of one step, longer than each step's soak.
    pub step_deadline: Duration,
    /// The windows of time in which rollouts do not go forward.
    pub freeze: Box<[FreezeWindow]>,
    /// True if a rollout waits for approval before its first step.
    pub needs_approval: bool,
    /// True if somebody who wrote one of its revisions may approve a rollout.
    pub author_may_approve: bool,
}

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RolloutStep {
    /// The proxies that have the revision in this step.
    pub size: StepSize,
    /// The healthy time, with enough requests to judge, until the next step.
    pub soak: Duration,
}

/// The proxies that have a revision in a step. The control plane stores it as JSON, with the progress of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepSize {
    /// A share of the proxies.
    Share {
        /// The share in millionths, from 1 to 1,000,000.
        millionths: u32,
        /// The fewest proxies; at least 1.
        min: u32,
    },
    /// A number of proxies; at least 1.
    Count(u32),
    /// The proxies that have all these labels; at least one label.
    Labels(BTreeMap<Box<str>, Box<str>>),
    /// The whole fleet.
    All,
}

const MAX_STEPS: usize = 20;
const MAX_PROXIES: u32 = 1_000_000;
const MAX_FREEZES: usize = 64;
/// Milliseconds.
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const DAY: u64 = 24 * 60 * MINUTE;
const ALL: u32 = 1_000_000;

impl Specification for FleetSpec {
    type Parsed = Fleet;

    const TITLE: &'static str = "Fleet";
    const TITLES: &'static str = "Fleets";
    const ABOUT: &'static str =
        "A fleet is a named set of proxies and the policy by which revisions reach them.";
    const AUDIENCE: Audience = Audience::ControlPlane;

    fn common(&self) -> Common<'_> {
        Common {
            name: &self.name,
            description: self.description.as_deref(),
            labels: &self.labels,
            // It is itself the fleet.
            fleets: None,
        }
    }

    fn schema() -> &'static schemars::Schema {
        static SCHEMA: std::sync::LazyLock<schemars::Schema> =
            std::sync::LazyLock::new(|| schemars::schema_for!(FleetSpec));
        &SCHEMA
    }

    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const { &[Narrowing::not_empty(&["rollout", "steps"], "for the default steps")] }
    }

    fn parse(&self, _: &Context<'_>) -> Result<Fleet, Vec<FieldError>> {
        let mut errors = Errors::default();
        let none = RolloutSpec::default();
        let rollout = self.rollout.as_ref().unwrap_or(&none).parse(&mut errors);
        errors.finish(Some(Fleet { rollout }))
    }
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        RolloutSpec::default().parse(&mut Errors::default())
    }
}

impl RolloutSpec {
    fn parse(&self, errors: &mut Errors) -> RolloutPolicy {
        let steps = self.parse_steps(errors);
        let field = "rollout.step_deadline";
        let step_deadline = between(self.step_deadline, 15 * MINUTE, SECOND, 30 * DAY, field, errors);
        let longest = steps.iter().map(|step| step.soak).max().unwrap_or_default();
        if step_deadline <= longest {
            let longest = HumanDuration(longest);
            errors.push(
                field,
                format_args!("must be longer than the longest soak, {longest}; no step could end in time"),
            );
        }
        if self.freeze.len() > MAX_FREEZES {
            errors.push(
                "rollout.freeze",
                format_args!("has {} entries; at most {MAX_FREEZES}", self.freeze.len()),
            );
        }
        let mut freeze = Vec::with_capacity(self.freeze.len());
        for (index, spec) in self.freeze.iter().enumerate() {
            freeze.extend(spec.parse(&format!("rollout.freeze[{index}]"), errors));
        }
        let gates = self.gates.clone().unwrap_or_default();
        RolloutPolicy {
            strategy: self.strategy,
            steps,
            bake: between(self.bake, 5 * MINUTE, 0, 7 * DAY, "rollout.bake", errors),
            gates: gates.parse("rollout.gates", errors),
            on_failure: self.on_failure,
            on_inconclusive: self.on_inconclusive,
            on_new_write: self.on_new_write,
            when_empty: self.when_empty,
            step_deadline,
            freeze: freeze.into(),
            needs_approval: self.approval.as_ref().is_some_and(|approval| approval.required),
            author_may_approve: self.approval.as_ref().is_some_and(|approval| approval.author),
        }
    }

    fn parse_steps(&self, errors: &mut Errors) -> Box<[RolloutStep]> {
        let Some(specs) = &self.steps else { return default_steps() };
        if specs.is_empty() {
            errors.push("rollout.steps", "must not be empty; leave it out for the default steps");
        }
        if specs.len() > MAX_STEPS {
            errors.push("rollout.steps", format_args!("has {} entries; at most {MAX_STEPS}", specs.len()));
        }
        let mut steps: Vec<RolloutStep> = Vec::with_capacity(specs.len() + 1);
        for (index, spec) in specs.iter().enumerate() {
            let field = format!("rollout.steps[{index}]");
            let soak = between(spec.soak, MINUTE, 0, 7 * DAY, &format!("{field}.soak"), errors);
            let Some(size) = spec.parse_size(&field, errors) else { continue };
            if let Err((name, message)) = check_growth(&steps, &size) {
                errors.push(format_args!("{field}{name}"), message);
            }
            steps.push(RolloutStep { size, soak });
        }
        if steps.last().is_none_or(|last| last.size != StepSize::All) {
            steps.push(RolloutStep { size: StepSize::All, soak: Duration::ZERO });
        }
        steps.into()
    }
}

fn default_steps() -> Box<[RolloutStep]> {
    let step = |size, soak| RolloutStep { size, soak: Duration::from_secs(soak) };
    let share = |percent: u32| StepSize::Share { millionths: percent * 10_000, min: 1 };
    Box::new([step(share(10), 60), step(share(50), 120), step(StepSize::All, 0)])
}

impl StepSpec {
    fn parse_size(&self, field: &str, errors: &mut Errors) -> Option<StepSize> {
        if self.min.is_some() && self.percent.is_none() {
            errors.push(format_args!("{field}.min"), "has a meaning only with percent");
        }
        let mut limit = |name: &str, value: u32| {
            if !(1..=MAX_PROXIES).contains(&value) {
                errors.push(format_args!("{field}.{name}"), format_args!("must be from 1 to {MAX_PROXIES}"));
            }
            value
        };
        match (self.percent, self.count, &self.labels) {
            (Some(percent), None, None) => {
                let min = limit("min", self.min.unwrap_or(1));
                match millionths(percent / 100.0) {
                    None | Some(0) => {
                        errors.push(format_args!("{field}.percent"), "must be above 0 and at most 100");
                        None
                    }
                    Some(ALL) => Some(StepSize::All),
                    Some(millionths) => Some(StepSize::Share { millionths, min }),
                }
            }
            (None, Some(count), None) => Some(StepSize::Count(limit("count", count))),
            (None, None, Some(labels)) => {
                let field = format!("{field}.labels");
                if labels.is_empty() || labels.len() > MAX_LABELS {
                    errors.push(&field, format_args!("must have from 1 to {MAX_LABELS} labels"));
                }
                for (key, value) in labels {
                    if let Err(message) = check_label(key, value) {
                        errors.push(format_args!("{field}.{key}"), message);
                    }
                }
                let boxed =
                    labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect();
                Some(StepSize::Labels(boxed))
            }
            _ => {
                errors.push(field, "needs exactly one of percent, count and labels");
                None
            }
        }
    }
}

/// Checks that a step can be larger than those before it, as far as that can be known without the fleet. The error has the field within
/// the step.
fn check_growth(before: &[RolloutStep], size: &StepSize) -> Result<(), (&'static str, String)> {
    let sizes = || before.iter().enumerate().map(|(index, step)| (index, &step.size)).rev();
    if let Some((index, _)) = sizes().find(|(_, size)| **size == StepSize::All) {
        return Err(("", format!("comes after steps[{index}], which has the whole fleet already")));
    }
    match size {
        StepSize::Share { millionths, .. } => {
            let last = sizes().find_map(|(index, size)| match size {
                StepSize::Share { millionths, .. } => Some((index, *millionths)),
                StepSize::Count(_) | StepSize::Labels(_) | StepSize::All => None,
            });
            match last {
                Some((index, last)) if last >= *millionths => Err((
                    ".percent",
                    format!("must be more than that of steps[{index}], {}", f64::from(last) / 1e4),
                )),
                _ => Ok(()),
            }
        }
        StepSize::Count(count) => {
            let last = sizes().find_map(|(index, size)| match size {
                StepSize::Count(count) => Some((index, *count)),
                StepSize::Share { .. } | StepSize::Labels(_) | StepSize::All => None,
            });
            match last {
                Some((index, last)) if last >= *count => {
                    Err((".count", format!("must be more than that of steps[{index}], {last}")))
                }
                _ => Ok(()),
            }
        }
        StepSize::Labels(labels) => {
            // Proxies that have all of these have all of those.
            let contains = |larger: &StepSize| match larger {
                StepSize::Labels(larger) => larger.iter().all(|(key, value)| labels.get(key) == Some(value)),
                StepSize::Share { .. } | StepSize::Count(_) | StepSize::All => false,
            };
            match sizes().find(|(_, size)| contains(size)) {
                Some((index, _)) => {
                    Err((".labels", format!("adds no proxy to steps[{index}], whose labels they have too")))
                }
                None => Ok(()),
            }
        }
        StepSize::All => Ok(()),
    }
}
