//! The leader: it drives the rollouts of every fleet that has a progressive policy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_process::ErrorChain;
use signalbox_rollout::machine::State;
use signalbox_rollout::{FleetTarget, Plan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::broken::Broken;
use super::counts::{Deltas, in_parts};
use super::decide::Stopped;
use super::driver::Driver;
use super::history::{Kept, StoredHistory};
use super::run::Run;
use super::service::{Answer, Rollouts};
use super::turn::Turn;
use super::watched::{CountsWanted, Wanted};
use crate::clock::now_us;
use crate::publish::Published;
use crate::store::{Command, Decisions, FleetState, StoreError, Term};

/// The longest time between two looks for commands.
const TICK: Duration = Duration::from_millis(200);

/// How often counts are passed on, and how often a control plane that does not lead reads how rollouts stand.
const EXCHANGE: Duration = Duration::from_secs(1);

/// How often the past of the fleets is stored, and rows that are no longer needed are deleted.
const CLEANING: Duration = Duration::from_secs(60);

/// The state of the task between two turns.
#[derive(Default)]
pub(super) struct Leader {
    /// Set while this control plane leads.
    leading: Option<Leading>,
    /// The past of fleets that have no driver at the moment.
    histories: BTreeMap<Arc<str>, Kept>,
    last_exchange: Option<Instant>,
    last_cleaning: Option<Instant>,
    /// The last row of counts that was read.
    last_counts: Option<u64>,
    failing: bool,
    broken: Broken,
}

struct Leading {
    term: Term,
    epoch: Arc<str>,
    drivers: BTreeMap<Arc<str>, Driver>,
}

impl Rollouts {
    /// Leads, or waits to lead, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let needed = watch::Sender::new(false);
        let held = watch::Sender::new(None);
        let term = held.subscribe();
        // The lease is given back after the last decision.
        let end = CancellationToken::new();
        let leading = async {
            let _end = end.clone().drop_guard();
            self.lead(&needed, term, &shutdown).await;
        };
        tokio::join!(self.hold_lease(needed.subscribe(), held, end.clone()), leading);
    }

    async fn lead(
        &self,
        needed: &watch::Sender<bool>,
        mut term: watch::Receiver<Option<Term>>,
        shutdown: &CancellationToken,
    ) {
        let mut published = self.publisher.subscribe();
        let mut leader = Leader::default();
        while !shutdown.is_cancelled() {
            let current = published.borrow_and_update().clone();
            let has_fleets = led_fleets(&current).next().is_some();
            // Events are announced by one control plane as well.
            let is_needed = has_fleets || current.has_webhooks();
            needed.send_if_modified(|known| std::mem::replace(known, is_needed) != is_needed);
            if !has_fleets {
                leader = Leader::default();
                self.show(BTreeMap::new(), CountsWanted::default()).await;
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    _ = published.changed() => {}
                }
                continue;
            }
            let held = *term.borrow_and_update();
            match self.turn(&mut leader, held).await {
                Ok(()) => leader.failing = false,
                Err(Stopped::NotLeader | Stopped::Outdated) => leader.stop_leading(),
                Err(Stopped::Store(error)) => {
                    if !std::mem::replace(&mut leader.failing, true) {
                        let error = ErrorChain(&error);
                        tracing::error!(%error, "rollouts stand still: the database cannot be used");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = published.changed() => {}
                _ = term.changed() => {}
                () = self.ordered.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        if let Some(leading) = &leader.leading {
            // The next leader, perhaps this program after an upgrade, knows what was usual.
            let _ = self.store_histories(leading).await;
        }
    }

    /// One turn: drives all fleets as the leader, or tells the leader what was counted.
    async fn turn(&self, leader: &mut Leader, term: Option<Term>) -> Result<(), Stopped> {
        let now = Instant::now();
        let is_due =
            |last: Option<Instant>, interval| last.is_none_or(|last| now.duration_since(last) >= interval);
        let is_exchange_due = is_due(leader.last_exchange, EXCHANGE);
        if is_exchange_due {
            leader.last_exchange = Some(now);
        }
        leader.set_term(term, &self.publisher.current().snapshot.id().epoch);
        let Some(leading) = &mut leader.leading else {
            if is_exchange_due {
                self.tell_leader(self.counts.take()).await?;
                let runs = self.metrics.store_call("unfinished_runs", self.store.unfinished_runs()).await?;
                let runs = runs.into_iter().filter_map(|run| Run::read(&run.state));
                let runs: BTreeMap<_, _> = runs.map(|run| (Arc::clone(&run.rollout.id), run)).collect();
                let wanted = self.wanted_by(&runs).await;
                self.show(runs, wanted).await;
            }
            return Ok(());
        };
        if is_exchange_due {
            leading.add(self.counts.take());
            let rows = self.store.counts_after(self.board.instance(), leader.last_counts).await?;
            leader.last_counts = rows.last().map(|row| row.id).or(leader.last_counts);
            let deltas = rows.iter().filter_map(|row| serde_json::from_str::<Deltas>(&row.counts).ok());
            deltas.for_each(|deltas| leading.add(deltas));
        }
        if is_due(leader.last_cleaning, CLEANING) {
            leader.last_cleaning = Some(now);
            self.store_histories(leading).await?;
            self.store.delete_old_rollout_rows().await?;
        }
        self.drive(leading, &mut leader.histories, &mut leader.broken).await?;
        let runs = leading.drivers.values().flat_map(|driver| driver.runs.clone()).collect();
        let published = self.publisher.current();
        let wanted = |(fleet, driver): (&Arc<str>, &Driver)| {
            let target = published.assigned.targets.get(fleet).cloned();
            (Arc::clone(fleet), Arc::new(driver.wanted(self.usual_routes(&published, fleet), target)))
        };
        let fleets = leading.drivers.iter().map(wanted).collect();
        self.show(runs, CountsWanted { fleets }).await;
        Ok(())
    }

    /// Tells the leader what the proxies of this control plane have counted.
    async fn tell_leader(&self, deltas: Deltas) -> Result<(), StoreError> {
        for counts in in_parts(deltas) {
            let add = self.store.add_counts(self.board.instance(), &counts);
            self.metrics.store_call("add_counts", add).await?;
        }
        Ok(())
    }

    async fn store_histories(&self, leading: &Leading) -> Result<(), Stopped> {
        let text = |driver: &Driver| StoredHistory::text(driver.history(), now_us());
        let histories =
            leading.drivers.iter().filter_map(|(fleet, driver)| Some((Arc::clone(fleet), text(driver)?)));
        let decisions = Decisions { histories: histories.collect(), ..Decisions::default() };
        if decisions.histories.is_empty() {
            return Ok(());
        }
        self.decide(leading.term, &decisions).await
    }

    /// The counts that are wanted of proxies, as they follow from the rollouts under way.
    async fn wanted_by(&self, runs: &BTreeMap<Arc<str>, Run>) -> CountsWanted {
        let published = self.publisher.current();
        let mut wanted = CountsWanted::default();
        for fleet in led_fleets(&published) {
            let current = runs.values().find(|run| run.fleet == fleet && run.is_under_way());
            let scopes = match current {
                Some(run) => self.scopes_between(&fleet, run.stable, run.rollout.revision.number).await,
                None => None,
            };
            let target = published.assigned.targets.get(&fleet).cloned();
            let usual = self.usual_routes(&published, &fleet);
            let one = Wanted::of(current.is_some(), &scopes.unwrap_or_default(), usual, target);
            wanted.fleets.insert(fleet, Arc::new(one));
        }
        wanted
    }

    /// Drives all fleets. What goes wrong with one of them stops no other.
    async fn drive(
        &self,
        leading: &mut Leading,
        histories: &mut BTreeMap<Arc<str>, Kept>,
        broken: &mut Broken,
    ) -> Result<(), Stopped> {
        let published = self.publisher.current();
        self.load(leading, &published, histories, broken).await?;
        let commands = self.metrics.store_call("commands", self.store.commands()).await?;
        let fleets: Vec<Arc<str>> = leading.drivers.keys().cloned().collect();
        for fleet in fleets {
            let Some(driver) = leading.drivers.get_mut(&fleet) else { continue };
            let mine: Vec<&Command> = commands.iter().filter(|command| command.fleet == *fleet).collect();
            let mut turn = Turn { rollouts: self, term: leading.term, driver, published: &published };
            let stopped = match turn.run(&mine).await {
                Ok(()) => {
                    broken.forget(&fleet);
                    continue;
                }
                Err(stopped) => stopped,
            };
            // It is not known what was written, so the state is read again.
            if let Some(driver) = leading.drivers.remove(&fleet) {
                histories.insert(Arc::clone(&fleet), Kept::now(driver.into_history()));
            }
            match stopped {
                Stopped::Outdated => {}
                Stopped::Store(error @ StoreError::Broken(_)) => broken.note(&fleet, &error, Instant::now()),
                stopped => return Err(stopped),
            }
        }
        for command in commands.iter().filter(|command| !leading.drivers.contains_key(command.fleet.as_str()))
        {
            if broken.contains(&command.fleet) || led_fleets(&published).any(|fleet| *fleet == *command.fleet)
            {
                // Its state is read again; whoever gave the command waits.
                continue;
            }
            let answer =
                Answer::refused(None, format!("the fleet {} has no progressive policy", command.fleet));
            let decisions =
                Decisions { answers: vec![(command.id, answer.to_json())], ..Decisions::default() };
            match self.decide(leading.term, &decisions).await {
                // It has expired.
                Ok(()) | Err(Stopped::Outdated) => {}
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(())
    }

    /// Reads the states of fleets that are new, or about which a write made a decision.
    async fn load(
        &self,
        leading: &mut Leading,
        published: &Arc<Published>,
        histories: &mut BTreeMap<Arc<str>, Kept>,
        broken: &mut Broken,
    ) -> Result<(), Stopped> {
        let now = Instant::now();
        let led: BTreeSet<Arc<str>> = led_fleets(published).collect();
        leading.drivers.retain(|fleet, _| led.contains(fleet));
        let generation =
            |fleet: &Arc<str>| published.assigned.targets.get(fleet).map_or(0, |target| target.generation);
        let is_known = |fleet: &&Arc<str>| {
            let driver = leading.drivers.get(*fleet);
            driver.is_some_and(|driver| driver.state.generation >= generation(fleet))
        };
        let is_due = |fleet: &&Arc<str>| !is_known(fleet) && broken.is_due(fleet, now);
        let unknown: Vec<Arc<str>> = led.iter().filter(is_due).cloned().collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let stored = self.metrics.store_call("fleet_states", self.store.fleet_states()).await?;
        let unfinished = self.metrics.store_call("unfinished_runs", self.store.unfinished_runs()).await?;
        for fleet in unknown {
            let found = stored.iter().find(|state| state.target.fleet == fleet);
            let pinned = found.filter(|found| found.target.plan != Plan::Head);
            let Some(found) = pinned else {
                match self.pin(leading.term, found.map(|found| &found.target), &fleet, published).await {
                    // A write made a decision about it meanwhile; it is read again.
                    Ok(()) | Err(Stopped::Outdated) => continue,
                    Err(stopped) => return Err(stopped),
                }
            };
            let state = match self.state_of(found).await {
                Ok(state) => state,
                Err(error @ StoreError::Broken(_)) => {
                    broken.note(&fleet, &error, now);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut runs: BTreeMap<Arc<str>, Run> = (unfinished.iter())
                .filter(|run| *run.fleet == *fleet)
                .filter_map(|run| Run::read(&run.state))
                .map(|run| (Arc::clone(&run.rollout.id), run))
                .collect();
            if let Some(hold) = &state.hold
                && let Some(run) = self.store.rollout_run(&hold.rollout).await?
                && let Some(run) = Run::read(&run.state)
            {
                runs.insert(Arc::clone(&hold.rollout), run);
            }
            let before = leading.drivers.remove(&fleet).map(Driver::into_history);
            let kept = histories.remove(&fleet).and_then(Kept::recent);
            let history =
                before.or(kept).or_else(|| StoredHistory::read(found.history.as_deref()?, now_us()));
            let driver = Driver::new(state, runs, history.unwrap_or_default());
            leading.drivers.insert(fleet, driver);
        }
        Ok(())
    }

    /// Pins a fleet at the head whose policy is progressive. Usually the write that makes it so has done that; but a decision that ended
    /// the pin by the policy before may have come later.
    async fn pin(
        &self,
        term: Term,
        target: Option<&FleetTarget>,
        fleet: &Arc<str>,
        published: &Published,
    ) -> Result<(), Stopped> {
        let target = FleetTarget {
            fleet: Arc::clone(fleet),
            generation: target.map_or(0, |target| target.generation) + 1,
            term: term.0,
            plan: Plan::Stable { revision: published.snapshot.id().number },
        };
        self.decide(term, &Decisions { targets: vec![target], ..Decisions::default() }).await?;
        self.publisher.catch_up_soon();
        Ok(())
    }

    /// The state of a fleet as it is stored, or that of a fleet that was pinned just now.
    async fn state_of(&self, found: &FleetState) -> Result<State, StoreError> {
        if let Some(text) = &found.state {
            let state: State = serde_json::from_str(text).map_err(|error| {
                let fleet = &found.target.fleet;
                StoreError::Broken(format!(
                    "the state of the rollouts of fleet {fleet} cannot be read: {error}"
                ))
            })?;
            // Else it is from before the fleet was pinned.
            if state.generation == found.target.generation {
                return Ok(state);
            }
        }
        let stable = found.target.revisions().next().unwrap_or_default();
        let stable = self.revision(&found.target.fleet, stable).await?;
        let mut state = State::new(Arc::clone(&found.target.fleet), stable);
        state.generation = found.target.generation;
        Ok(state)
    }
}

impl Leader {
    /// Follows the lease. In a new epoch, revision numbers mean other revisions.
    fn set_term(&mut self, term: Option<Term>, epoch: &Arc<str>) {
        let is_same = |leading: &Leading| Some(leading.term) == term && leading.epoch == *epoch;
        if self.leading.as_ref().is_some_and(is_same) {
            return;
        }
        self.stop_leading();
        if let Some(term) = term {
            self.last_counts = None;
            self.leading = Some(Leading { term, epoch: Arc::clone(epoch), drivers: BTreeMap::new() });
        }
    }

    /// Keeps what was usual: the next lead may be soon.
    fn stop_leading(&mut self) {
        let drivers = self.leading.take().map(|leading| leading.drivers).unwrap_or_default();
        let kept = drivers.into_iter().map(|(fleet, driver)| (fleet, Kept::now(driver.into_history())));
        self.histories.extend(kept);
    }
}

impl Leading {
    fn add(&mut self, deltas: Deltas) {
        for (fleet, deltas) in deltas {
            if let Some(driver) = self.drivers.get_mut(&fleet) {
                driver.add(deltas);
            }
        }
    }
}

/// The fleets whose rollouts somebody has to decide about: those that are pinned, and those whose policy is progressive.
fn led_fleets(published: &Published) -> impl Iterator<Item = Arc<str>> + use<> {
    let is_pinned = |(_, target): &(&Arc<str>, &Arc<FleetTarget>)| target.plan != Plan::Head;
    let pinned = published.assigned.targets.iter().filter(is_pinned).map(|(fleet, _)| Arc::clone(fleet));
    let all: BTreeSet<Arc<str>> = pinned.chain(published.progressive_fleets()).collect();
    all.into_iter()
}
