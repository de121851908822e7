use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use signalbox_config::{HealthCheck, LoadBalancing};
use tokio::sync::watch;
use tracing::{info, warn};

use super::balance::{Balancer, Cursors};
use super::check::{Checker, Plan};
use super::hash::Table;
use super::target::{Checks, Health, Target};
use crate::core::target_label::label;
use crate::resolve::{Addresses, Changes};
use crate::services::{Checking, Services};
use crate::wire::tls::UpstreamTls;

/// The targets of an upstream, and the view from which requests pick.
///
/// Requests see a [`View`], in which everything is decided: the healthy targets, the weights after zones and slow
/// starts, the panic mode. Whenever something changes, [`Members::update`] makes the next view on the control side. An
/// upstream in which nothing can change has one view for good.
///
/// Several `Members` may know the same targets: those of a revision that is being compiled, those in use, and those of
/// earlier revisions that still have requests. Only those [in use](Members::activate) check targets and write their
/// health; the others build their views from those results.
#[derive(Debug)]
pub struct Members {
    settings: Settings,
    configured: Box<[Configured]>,
    /// The only view, if it can never change.
    fixed: Option<Arc<View>>,
    view: ArcSwap<View>,
    known: Mutex<UpdateState>,
    changes: Changes,
    generations: Arc<Generations>,
    /// The generation of these members among all that the upstream has had.
    generation: u64,
    cursors: Arc<Cursors>,
}

/// The generations of an upstream's members. There is one per upstream over all its revisions.
#[derive(Debug, Default)]
struct Generations {
    made: AtomicU64,
    in_use: AtomicU64,
}

/// The stage of these members' life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Not in use, and perhaps never will be.
    Candidate,
    InUse,
    Retired,
}

#[derive(Debug)]
struct Settings {
    policy: LoadBalancing,
    slow_start: Option<Duration>,
    health_check: HealthCheck,
    /// The plan of the active checks.
    plan: Option<Plan>,
}

/// A target as configured: an address, or a name that resolves to several.
#[derive(Debug)]
struct Configured {
    label: Box<str>,
    addresses: Addresses,
    weight: u32,
    /// True if the target is in the proxy's own zone.
    near: bool,
}

/// The state of the targets that requests see.
#[derive(Debug)]
pub struct View {
    pub targets: Box<[Arc<Target>]>,
    balancer: Balancer,
    /// The balancing weights; a target of weight 0 is not picked.
    weights: Box<[u32]>,
    /// The number of healthy targets.
    pub healthy: usize,
    /// Panic mode: too few targets are healthy, so all are used.
    pub panic: bool,
}

/// The state that [`Members::update`] continues from.
#[derive(Debug, Default)]
struct UpdateState {
    members: Vec<Member>,
    table: Option<Arc<Table>>,
    ejections: u64,
}

#[derive(Debug)]
struct Member {
    target: Arc<Target>,
    weight: u32,
    near: bool,
    checker: Option<Arc<Checker>>,
}

/// The inputs for picking a target.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// The number of the worker that picks.
    pub worker: usize,
    /// The current time; a slightly stale one will do.
    pub now: Instant,
    /// The request's hash, if the balancing policy hashes and the request has the property.
    pub hash: Option<u64>,
    /// Targets that have had the request already: another one is picked, if there is any.
    pub exclude: &'a [Arc<Target>],
}

/// A picked target. It must be dropped soon and never held across an await: a thread can hold few views at a time
/// without writing to their reference counts.
pub struct Picked<'a> {
    target: Guarded<'a>,
}

enum Guarded<'a> {
    Fixed(&'a Arc<Target>),
    Current { view: Guard<Arc<View>>, index: usize },
}

/// The inputs for a target's weight.
#[derive(Debug, Clone, Copy)]
struct WeightInput {
    weight: u32,
    healthy: bool,
    near: bool,
    /// The effective part of its weight, up to 1; less during a slow start.
    warmth: f64,
}

/// If the healthy part of its own zone is below this, a proxy sends the missing part of the requests to other zones:
/// Envoy's overprovisioning factor of 1.4.
const LOCAL_ZONE_THRESHOLD: f64 = 1.0 / 1.4;

/// The part of the weight with which a slow start begins; Envoy's `min_weight_percent`.
const SLOW_START_WEIGHT: f64 = 0.1;

/// The number of steps of a slow start.
const STEPS: u32 = 20;

/// Computed weights are integers in units of 1/`SCALE`.
const SCALE: f64 = 10_000.0;

impl Members {
    /// Creates the members for `spec`. The state that `before` has of targets is carried over. The new members change
    /// nothing until they are [activated](Members::activate), because their revision may yet be rejected.
    pub fn new(
        spec: &signalbox_config::Upstream,
        tls: Option<&Arc<UpstreamTls>>,
        before: Option<&Self>,
        services: &Services,
    ) -> Arc<Self> {
        let changes =
            before.map_or_else(|| Arc::new(watch::Sender::new(())), |before| Arc::clone(&before.changes));
        let configured: Box<[Configured]> = spec
            .targets
            .iter()
            .map(|target| Configured {
                label: label(target).into(),
                addresses: services.resolver.addresses(&target.host, target.port, &changes),
                weight: target.weight.get(),
                near: services.zone.is_some() && target.zone == services.zone,
            })
            .collect();
        let cursors = before
            .map_or_else(|| Arc::new(Cursors::new(services.workers)), |before| Arc::clone(&before.cursors));
        let generations = before.map_or_else(Arc::default, |before| Arc::clone(&before.generations));
        let checks = &spec.health_check;
        let names = configured.iter().any(|it| matches!(it.addresses, Addresses::Name { .. }));
        let changing =
            names || checks.active.is_some() || checks.passive.is_some() || spec.slow_start.is_some();
        let empty = View {
            targets: Box::default(),
            balancer: Balancer::new(spec.load_balancing, &[], Arc::clone(&cursors), None),
            weights: Box::default(),
            healthy: 0,
            panic: false,
        };
        let known = before.map_or_else(UpdateState::default, |before| {
            let known = before.known.lock().unwrap_or_else(PoisonError::into_inner);
            let members = known.members.iter().map(|member| Member {
                target: Arc::clone(&member.target),
                checker: member.checker.clone(),
                ..*member
            });
            let table = known.table.clone().filter(|_| before.settings.policy == spec.load_balancing);
            UpdateState { members: members.collect(), table, ejections: known.ejections }
        });
        let mut members = Self {
            settings: Settings {
                policy: spec.load_balancing,
                slow_start: spec.slow_start,
                health_check: checks.clone(),
                plan: checks.active.clone().map(|check| Plan {
                    check,
                    protocol: spec.protocol,
                    tls: tls.cloned(),
                }),
            },
            configured,
            fixed: None,
            view: ArcSwap::from_pointee(empty),
            known: Mutex::new(known),
            changes,
            generation: generations.made.fetch_add(1, Ordering::Relaxed) + 1,
            generations,
            cursors,
        };
        members.update(Instant::now(), before.is_none(), &services.checking);
        if !changing {
            members.fixed = Some(members.view.load_full());
        }
        Arc::new(members)
    }

    /// Puts these members in use. From now on they, and no others, check the targets and write their health.
    pub fn activate(self: &Arc<Self>, checking: &Checking) {
        // Every writer of a target's health reads this while it holds the lock on that health, so the previous members
        // write nothing after the update below.
        self.generations.in_use.store(self.generation, Ordering::Release);
        self.update(Instant::now(), false, checking);
        if self.fixed.is_none() {
            let keep = keep(Arc::downgrade(self), self.changes.subscribe(), checking.clone());
            checking.handle().spawn(keep);
        }
        // The previous members stop their checks.
        self.changes.send_replace(());
    }

    fn stage(&self) -> Stage {
        match self.generation.cmp(&self.generations.in_use.load(Ordering::Acquire)) {
            std::cmp::Ordering::Greater => Stage::Candidate,
            std::cmp::Ordering::Equal => Stage::InUse,
            std::cmp::Ordering::Less => Stage::Retired,
        }
    }

    /// Picks the target for a request.
    #[inline]
    pub fn pick(&self, by: &Pick<'_>) -> Option<Picked<'_>> {
        let target = match &self.fixed {
            Some(view) => Guarded::Fixed(view.targets.get(view.pick(by, self.settings.policy)?)?),
            None => {
                let view = self.view.load();
                let index = view.pick(by, self.settings.policy)?;
                view.targets.get(index)?;
                Guarded::Current { view, index }
            }
        };
        Some(Picked { target })
    }

    /// The current view.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The number of ejections so far.
    pub fn ejections(&self) -> u64 {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).ejections
    }

    /// The names that have no address.
    pub fn unresolved(&self) -> Vec<&str> {
        let unresolved = |it: &&Configured| it.addresses.all().is_empty();
        self.configured.iter().filter(unresolved).map(|it| &*it.label).collect()
    }

    /// The names whose last lookup failed, with the reason and the time. Addresses that were found before are still
    /// used.
    pub fn resolution_errors(&self) -> Vec<(&str, String, Timestamp)> {
        let failed = |it: &Configured| it.addresses.lookup_error();
        let failed = self.configured.iter().filter_map(|it| Some((&*it.label, failed(it)?)));
        failed.map(|(label, (error, at))| (label, error, at)).collect()
    }

    /// Reports that the state of a target has changed.
    pub fn changed(&self) {
        self.changes.send_replace(());
    }

    /// Applies what has changed, and makes the new view. Returns the time of the next update if nothing else happens
    /// before.
    fn update(&self, now: Instant, first: bool, checking: &Checking) -> Option<Instant> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = &mut *known;
        let same = self.follow_addresses(known, now, first, checking);
        let settings = &self.settings;
        let mut next: Option<Instant> = None;
        let mut at = |moment: Option<Instant>| next = [next, moment].into_iter().flatten().min();
        self.eject(known, now);
        let slow_start = settings.slow_start;
        let mut inputs = Vec::with_capacity(known.members.len());
        for member in &known.members {
            let mut health = member.target.health();
            let in_use = self.stage() == Stage::InUse;
            if in_use {
                health.checked_by = member.checker.as_ref().map(|checker| checker.id());
                if settings.plan.is_none() && health.checks.passed.is_some() {
                    health.checks = Checks::default();
                }
            }
            let checked = settings.plan.is_none() || health.checks.passed != Some(false);
            let ejected = settings.health_check.passive.is_some() && health.ejection.until.is_some();
            let healthy = checked && !ejected;
            if in_use && health.set(healthy, now, slow_start.is_some()) {
                log_health(&member.target, &health);
            }
            if ejected {
                at(health.ejection.until);
            }
            let mut warmth = 1.0;
            if let (Some(began), Some(lasts)) = (health.warming, slow_start) {
                let passed = now.saturating_duration_since(began);
                if passed >= lasts {
                    if in_use {
                        health.warming = None;
                    }
                } else {
                    let part = passed.as_secs_f64() / lasts.as_secs_f64();
                    warmth = SLOW_START_WEIGHT + (1.0 - SLOW_START_WEIGHT) * part;
                    at(Some(now + lasts / STEPS));
                }
            }
            drop(health);
            inputs.push(WeightInput { weight: member.weight, healthy, near: member.near, warmth });
        }
        let threshold = settings.health_check.panic_threshold_percent;
        let panic = is_panic(&inputs, threshold);
        let weights = weights(&inputs, panic, settings.policy.hashes());
        let healthy = inputs.iter().filter(|it| it.healthy).count();
        let before = self.view.load();
        if same && *before.weights == *weights && before.healthy == healthy && before.panic == panic {
            return next;
        }
        if panic && !before.panic {
            warn!(healthy, of = inputs.len(), "too few targets are healthy: all are used");
        }
        if !same || (settings.policy.hashes() && known.table.is_none()) {
            known.table = table(settings.policy, &known.members);
        }
        let view = View {
            targets: known.members.iter().map(|member| Arc::clone(&member.target)).collect(),
            balancer: Balancer::new(
                settings.policy,
                &weights,
                Arc::clone(&self.cursors),
                known.table.clone(),
            ),
            weights: weights.into(),
            healthy,
            panic,
        };
        self.view.store(Arc::new(view));
        next
    }

    /// Updates the members from the configuration and the resolved addresses. Returns true if they are the same as
    /// before.
    fn follow_addresses(
        &self,
        known: &mut UpdateState,
        now: Instant,
        first: bool,
        checking: &Checking,
    ) -> bool {
        let running = !first && !known.members.is_empty();
        let mut before = std::mem::take(&mut known.members);
        let count = before.len();
        let labels: Vec<Arc<Target>> = before.iter().map(|member| Arc::clone(&member.target)).collect();
        let mut indexes: Option<HashMap<(&str, SocketAddr), usize>> = None;
        let mut same = true;
        for configured in &self.configured {
            for address in configured.addresses.all() {
                let next = known.members.len();
                let is = |target: &Arc<Target>| target.address == address && target.label == configured.label;
                let found = match labels.get(next) {
                    // Most targets are at the same index as before.
                    Some(target) if is(target) => Some(next),
                    _ => {
                        let all = labels.iter().zip(0..).map(|(it, index)| ((&*it.label, it.address), index));
                        let indexes = indexes.get_or_insert_with(|| all.collect());
                        indexes.get(&(&*configured.label, address)).copied()
                    }
                };
                same &= found == Some(next);
                let (target, checker) = match found.and_then(|index| before.get_mut(index)) {
                    Some(member) => {
                        same &= member.weight == configured.weight && member.near == configured.near;
                        (Arc::clone(&member.target), member.checker.take())
                    }
                    None => {
                        let target = Arc::new(Target::new(&configured.label, address, now));
                        if running && self.settings.slow_start.is_some() {
                            target.health().warming = Some(now);
                        }
                        (target, None)
                    }
                };
                let checker = self.checker(&target, checker, checking);
                let Configured { weight, near, .. } = *configured;
                known.members.push(Member { target, weight, near, checker });
            }
        }
        same && count == known.members.len()
    }

    /// Returns the checker of `target` from now on; `known` is the previous one.
    fn checker(
        &self,
        target: &Arc<Target>,
        known: Option<Arc<Checker>>,
        checking: &Checking,
    ) -> Option<Arc<Checker>> {
        let plan = self.settings.plan.as_ref()?;
        let known = known.filter(|it| it.is(plan));
        let mut health = target.health();
        match self.stage() {
            Stage::Candidate => known,
            Stage::InUse if known.is_some() => known,
            Stage::InUse => {
                // The checker cannot record its first result before it is stored here, because recording takes the
                // lock.
                let checker = Checker::start(target, plan, &self.changes, checking);
                health.checked_by = Some(checker.id());
                Some(Arc::new(checker))
            }
            Stage::Retired => None,
        }
    }

    /// Returns targets whose ejection is over, and ejects failing ones, within the configured maximum of ejected
    /// targets.
    fn eject(&self, known: &mut UpdateState, now: Instant) {
        let Some(passive) = &self.settings.health_check.passive else { return };
        let mut out = 0;
        for member in &known.members {
            let mut health = member.target.health();
            if self.stage() != Stage::InUse {
                return;
            }
            if health.ejection.end_if_due(now) {
                member.target.forget_failures();
            }
            out += usize::from(health.ejection.until.is_some());
        }
        let most = (known.members.len() * usize::from(passive.max_ejected_percent) / 100).max(1);
        for member in &known.members {
            if out >= most {
                return;
            }
            if member.target.failures() < passive.consecutive_failures {
                continue;
            }
            let mut health = member.target.health();
            if self.stage() == Stage::InUse && health.ejection.until.is_none() {
                health.ejection.eject(passive.ejection, passive.interval, now);
                out += 1;
                known.ejections += 1;
            }
        }
    }
}

/// Keeps the view up to date while the members exist.
async fn keep(members: Weak<Members>, mut changes: watch::Receiver<()>, checking: Checking) {
    loop {
        let next = match members.upgrade() {
            Some(members) => members.update(Instant::now(), false, &checking),
            None => return,
        };
        let later = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = later => {}
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // The task wakes, and sees that the members are gone.
        self.changes.send_replace(());
    }
}

impl View {
    #[inline]
    fn pick(&self, by: &Pick<'_>, policy: LoadBalancing) -> Option<usize> {
        let target = |index: usize| self.targets.get(index);
        self.balancer.pick(
            by.worker,
            by.hash,
            |index| match target(index) {
                None => f64::MAX,
                Some(target) if policy == LoadBalancing::PeakEwma => target.cost(by.now),
                Some(target) => f64::from(target.in_flight()),
            },
            |index| target(index).is_some_and(|it| by.exclude.iter().any(|tried| Arc::ptr_eq(it, tried))),
        )
    }

    /// The share of requests that target number `index` is to get, if the policy uses weights.
    pub fn share(&self, index: usize) -> f64 {
        let sum: f64 = self.weights.iter().map(|weight| f64::from(*weight)).sum();
        self.weights.get(index).map_or(0.0, |weight| f64::from(*weight) / sum.max(1.0))
    }
}

impl Deref for Picked<'_> {
    type Target = Arc<Target>;

    #[inline]
    fn deref(&self) -> &Arc<Target> {
        match &self.target {
            Guarded::Fixed(target) => target,
            // The index was found in this view, and views do not change.
            Guarded::Current { view, index } => &view.targets[*index],
        }
    }
}

/// Logs that a target's health has changed.
fn log_health(target: &Target, health: &Health) {
    let Target { label, address, .. } = target;
    let failure = health.checks.failure.as_deref();
    match health.healthy {
        true => info!(target = %label, %address, "a target is healthy again"),
        false if health.checks.passed == Some(false) => {
            warn!(target = %label, %address, failure, "a target is unhealthy: its checks fail");
        }
        false => warn!(target = %label, %address, "a target is ejected: requests to it failed"),
    }
}

fn table(policy: LoadBalancing, members: &[Member]) -> Option<Arc<Table>> {
    let make = match policy {
        LoadBalancing::RingHash => Table::ring,
        LoadBalancing::Maglev => Table::maglev,
        LoadBalancing::RoundRobin
        | LoadBalancing::LeastRequest
        | LoadBalancing::Random
        | LoadBalancing::PeakEwma => return None,
    };
    // The targets of one name differ in their addresses.
    let names: Vec<String> = members.iter().map(|member| member.target.address.to_string()).collect();
    let targets: Vec<(&str, u32)> =
        names.iter().zip(members).map(|(name, member)| (name.as_str(), member.weight)).collect();
    Some(Arc::new(make(&targets)))
}

/// True if too few targets are healthy to bear the load of all.
fn is_panic(inputs: &[WeightInput], threshold_percent: u8) -> bool {
    let healthy = inputs.iter().filter(|it| it.healthy).count();
    healthy * 100 < inputs.len() * usize::from(threshold_percent)
}

/// Computes the balancing weights; 0 excludes a target. With `plain`, zones and slow starts are ignored.
fn weights(inputs: &[WeightInput], panic: bool, plain: bool) -> Vec<u32> {
    let used = |it: &WeightInput| panic || it.healthy;
    let sum = |near: bool, all: bool| -> f64 {
        inputs.iter().filter(|it| it.near == near && (all || used(it))).map(|it| f64::from(it.weight)).sum()
    };
    let (near, far) = (sum(true, false), sum(false, false));
    // The own zone's share of the requests, if both zones have usable targets.
    let choice = !plain && !panic && near > 0.0 && far > 0.0;
    let share = choice.then(|| (near / sum(true, true) / LOCAL_ZONE_THRESHOLD).min(1.0));
    let factor = |it: &WeightInput| match share {
        None => 1.0,
        Some(share) if it.near => share / near,
        Some(share) => (1.0 - share) / far,
    };
    let cold = |it: &WeightInput| used(it) && it.warmth < 1.0 && !plain;
    if share.is_none() && !inputs.iter().any(cold) {
        return inputs.iter().map(|it| if used(it) { it.weight } else { 0 }).collect();
    }
    let effective: Vec<f64> = inputs
        .iter()
        .map(|it| if used(it) { f64::from(it.weight) * it.warmth * factor(it) } else { 0.0 })
        .collect();
    let greatest = effective.iter().copied().fold(0.0, f64::max);
    let scaled = |weight: f64| match weight / greatest * SCALE {
        part if part > 0.0 => part.round().max(1.0) as u32,
        _ => 0,
    };
    effective.into_iter().map(scaled).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a test's targets: `H` healthy and `u` unhealthy in another zone; `N` and `n` the same in the own zone;
    /// `c` at the beginning of a slow start.
    fn inputs(text: &str) -> Vec<WeightInput> {
        text.chars()
            .map(|kind| WeightInput {
                weight: 100,
                healthy: matches!(kind, 'H' | 'N' | 'c'),
                near: matches!(kind, 'N' | 'n'),
                warmth: if kind == 'c' { SLOW_START_WEIGHT } else { 1.0 },
            })
            .collect()
    }

    #[test]
    fn all_are_used_when_too_few_are_healthy() {
        for (targets, threshold, panic) in [
            ("HHHH", 50, false),
            ("HHuu", 50, false),
            ("Huuu", 50, true),
            ("uuuu", 50, true),
            ("uuuu", 0, false),
            ("Huuu", 25, false),
            ("HHHu", 100, true),
            ("", 50, false),
        ] {
            assert_eq!(is_panic(&inputs(targets), threshold), panic, "{targets} {threshold}");
        }
    }

    #[test]
    fn weights_follow_health_zone_and_slow_start() {
        for (targets, panic, plain, expected) in [
            ("HHu", false, false, &[100, 100, 0][..]),
            ("uuu", false, false, &[0, 0, 0]),
            ("Huu", true, false, &[100, 100, 100]),
            // A slow start begins with a tenth.
            ("HcH", false, false, &[10_000, 1_000, 10_000]),
            ("HcH", false, true, &[100, 100, 100]),
            // Only the own zone is used while it is healthy.
            ("NNHH", false, false, &[10_000, 10_000, 0, 0]),
            ("NNNnHH", false, false, &[10_000, 10_000, 10_000, 0, 0, 0]),
            // Half of the own zone is down: it keeps 70 %, and the other zone gets the rest.
            ("NnHH", false, false, &[10_000, 0, 2_143, 2_143]),
            ("nnHH", false, false, &[0, 0, 100, 100]),
            ("Nnuu", false, false, &[100, 0, 0, 0]),
            ("NNHH", false, true, &[100, 100, 100, 100]),
            ("nnnH", true, false, &[100, 100, 100, 100]),
        ] {
            assert_eq!(weights(&inputs(targets), panic, plain), expected, "{targets}");
        }
    }
}
