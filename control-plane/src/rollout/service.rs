//! Rollouts for the API and for the streams of proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1 as wire;
use signalbox_rollout::machine::{self, Action, Refused};
use signalbox_rollout::{Plan, Scope};
use tokio::sync::{Notify, broadcast, watch};

use super::counts::Counts;
use super::run::Run;
use super::view::{state, undecided, view};
use super::watched::{CountsWanted, usual_routes};
use crate::board::{Board, Rollout, RolloutState, RolloutSuccessor};
use crate::metrics::Metrics;
use crate::publish::{Published, Publisher};
use crate::store::{Store, StoreError};
use crate::writer::Writer;

/// For how long a command waits for the leader.
const COMMAND_WAIT: Duration = Duration::from_secs(10);

/// How often the answer to a command is looked for.
const ANSWER_INTERVAL: Duration = Duration::from_millis(50);

/// How often it is looked if a rollout has been made.
const RUN_INTERVAL: Duration = Duration::from_millis(200);

/// Changes of rollouts that a subscriber may be behind before it loses some.
const EVENT_BUFFER: usize = 1024;

/// The most rollouts that are followed from one to the one that took its place.
const MAX_SUCCESSORS: usize = 1000;

/// The progressive rollouts.
pub struct Rollouts {
    pub(super) store: Arc<dyn Store>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) writer: Writer,
    pub(super) counts: Counts,
    /// Wakes the leader's task.
    pub(super) ordered: Notify,
    /// True while this control plane has the lease, as far as it knows.
    pub(super) is_leader: AtomicBool,
    /// See [`Rollouts::announces`].
    pub(super) announces: watch::Sender<bool>,
    /// See [`Rollouts::another_led`].
    pub(super) another_led: Mutex<Option<Instant>>,
    wanted: watch::Sender<Arc<CountsWanted>>,
    /// The rollouts that have not ended, as this control plane saw them last.
    shown: Mutex<BTreeMap<Arc<str>, Run>>,
    /// Counts the changes of `shown`.
    changes: watch::Sender<u64>,
    events: broadcast::Sender<Arc<Rollout>>,
    /// The scopes that were found last.
    scopes: Mutex<BTreeMap<ScopesKey, BTreeSet<Scope>>>,
    usual: Mutex<UsualRoutes>,
}

/// The routes of each fleet of which it is to be known what is usual.
#[derive(Default)]
struct UsualRoutes {
    /// The revision for which they were found out.
    revision: Option<RevisionId>,
    fleets: BTreeMap<Arc<str>, Arc<[String]>>,
}

/// The epoch, the fleet, the stable revision and the candidate.
type ScopesKey = (Arc<str>, Arc<str>, u64, u64);

/// A command for the leader, as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) rollout: Arc<str>,
    pub(super) action: Action,
    pub(super) reason: Arc<str>,
    /// The name of the token of the person who gave it.
    pub(super) actor: String,
    /// The step that the person saw; in another one the command is refused.
    #[serde(default)]
    pub(super) step: Option<u32>,
}

/// The answer of the leader to a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Absent: the command was carried out. Else the reason why not, for a person.
    pub refused: Option<String>,
    /// The state of the rollout, if it was refused and there is such a rollout.
    pub state: Option<RolloutState>,
}

/// The numbers of rollouts that matter at the moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenRollouts {
    /// A part of the fleet, or all of it, has the revision, and it is not known yet if the fleet keeps it.
    pub under_way: u64,
    /// They need a decision of a person.
    pub held: u64,
    /// They were taken back, and hold their fleets.
    pub taken_back: u64,
}

/// The event that a wait for a rollout ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutWait {
    /// The first step has begun, and its proxies serve the revision.
    Step,
    /// The whole fleet serves the revision.
    Applied,
    /// The rollout has ended with success.
    Succeeded,
}

impl Rollouts {
    /// The rollouts of a store.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            writer: Writer::new(Arc::clone(&publisher)),
            publisher,
            board,
            metrics,
            counts: Counts::default(),
            ordered: Notify::new(),
            is_leader: AtomicBool::new(false),
            announces: watch::Sender::new(false),
            another_led: Mutex::default(),
            wanted: watch::Sender::default(),
            shown: Mutex::default(),
            changes: watch::Sender::default(),
            events: broadcast::Sender::new(EVENT_BUFFER),
            scopes: Mutex::default(),
            usual: Mutex::default(),
        })
    }

    /// True if this control plane decides about rollouts.
    pub fn leads(&self) -> bool {
        self.is_leader.load(Ordering::Relaxed)
    }

    /// Sees if this control plane is the one that announces events to webhooks: it has the lease, or had it last and cannot reach the
    /// database. An outage of the database must be announced, too, and nobody has a lease then.
    pub fn announces(&self) -> watch::Receiver<bool> {
        self.announces.subscribe()
    }

    /// The last time when this control plane saw that another one has the lease, which is renewed every second and expires after five. `None`:
    /// it has never seen that.
    pub fn another_led(&self) -> Option<Instant> {
        *self.another_led.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the control plane that has the lease; `None`: none has it, or it has just begun.
    pub async fn leader_name(&self) -> Result<Option<String>, StoreError> {
        let Some(holder) = self.metrics.store_call("leader", self.store.leader()).await? else {
            return Ok(None);
        };
        let replicas = self.metrics.store_call("replicas", self.store.replicas()).await?;
        Ok(replicas.into_iter().find(|replica| replica.instance == holder).map(|replica| replica.name))
    }

    /// Takes in what a proxy of `fleet` has counted.
    pub fn report(&self, fleet: &Arc<str>, counts: wire::Counts) {
        self.counts.report(fleet, counts);
    }

    /// Sees what proxies are to count.
    pub fn counts_wanted(&self) -> watch::Receiver<Arc<CountsWanted>> {
        self.wanted.subscribe()
    }

    /// Sees every change of a rollout that has not ended, and its end.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Rollout>> {
        self.events.subscribe()
    }

    /// The last rollouts of a pinned fleet (`None`: of all), newest revision first.
    pub async fn list(&self, fleet: Option<&str>, limit: u32) -> Result<Vec<Rollout>, StoreError> {
        let runs = self.metrics.store_call("rollout_runs", self.store.rollout_runs(fleet, limit)).await?;
        Ok(runs.iter().filter_map(|run| Run::read(&run.state)).map(|run| self.view(&run)).collect())
    }

    /// A rollout of a pinned fleet.
    pub async fn get(&self, id: &str) -> Result<Option<Rollout>, StoreError> {
        let run = self.metrics.store_call("rollout_run", self.store.rollout_run(id)).await?;
        match run.and_then(|run| Run::read(&run.state)) {
            Some(run) => Ok(Some(self.view(&run))),
            None => self.undecided(id).await,
        }
    }

    /// The rollout of a revision that the leader has not seen yet, or will never see because a newer one came at once.
    async fn undecided(&self, id: &str) -> Result<Option<Rollout>, StoreError> {
        let published = self.publisher.current();
        let found = id.split_once('-').and_then(|(number, fleet)| Some((number.parse::<u64>().ok()?, fleet)));
        let Some((revision, fleet)) = found else { return Ok(None) };
        let target = published.assigned.targets.get(fleet).filter(|target| target.plan != Plan::Head);
        let stable = target.and_then(|target| target.revisions().next());
        let Some(stable) = stable.filter(|stable| *stable < revision) else { return Ok(None) };
        if revision > published.snapshot.id().number {
            return Ok(None);
        }
        let newer = self.store.rollout_runs(Some(fleet), 1).await?;
        let newer = match newer.first().filter(|newest| newest.revision > revision) {
            Some(newest) => {
                let fleet: Arc<str> = fleet.into();
                let contents =
                    (self.revision(&fleet, revision).await, self.revision(&fleet, newest.revision).await);
                // Content that cannot be read any more does not count as the same.
                let same_content =
                    matches!(contents, (Ok(this), Ok(newest)) if this.content == newest.content);
                Some(RolloutSuccessor { id: newest.id.clone(), same_content })
            }
            None => None,
        };
        let Some(summary) = self.store.revisions(Some(revision + 1), 1).await?.into_iter().next() else {
            return Ok(None);
        };
        let counts = self.board.assigned_counts(fleet, revision);
        Ok(Some(undecided(id, fleet, stable, &summary, newer, counts)))
    }

    /// The rollout that brings to the fleet what this one was to bring: itself, or the last of those that took its place with the same
    /// content.
    pub async fn successor(&self, rollout: Rollout) -> Result<Rollout, StoreError> {
        let mut last = rollout;
        for _ in 0..MAX_SUCCESSORS {
            let Some(next) = last.superseded_by.as_ref().filter(|next| next.same_content) else { break };
            match self.get(&next.id).await? {
                Some(found) => last = found,
                None => break,
            }
        }
        Ok(last)
    }

    fn view(&self, run: &Run) -> Rollout {
        let counts = run.counts;
        view(
            run,
            counts.unwrap_or_else(|| self.board.assigned_counts(&run.fleet, run.rollout.revision.number)),
        )
    }

    /// Has the leader carry out a command; `None`: no leader answered in time, and the command is not carried out any more.
    pub async fn command(
        &self,
        rollout: &Rollout,
        action: Action,
        reason: &str,
        actor: &str,
        step: Option<u32>,
    ) -> Result<Option<Answer>, StoreError> {
        let order = Order {
            rollout: rollout.id.as_str().into(),
            action,
            reason: reason.into(),
            actor: actor.to_owned(),
            step,
        };
        let order = serde_json::to_string(&order)
            .map_err(|error| StoreError::Broken(format!("a command cannot be written: {error}")))?;
        let deadline = Instant::now() + COMMAND_WAIT;
        let id = self.store.add_command(&rollout.fleet, &order, COMMAND_WAIT).await?;
        self.ordered.notify_one();
        while Instant::now() < deadline {
            if let Some(answer) = self.store.command_answer(id).await? {
                return Ok(serde_json::from_str(&answer).ok());
            }
            tokio::time::sleep(ANSWER_INTERVAL).await;
        }
        // From now on it is not carried out any more, unless it was at this moment.
        if self.store.cancel_command(id).await? {
            return Ok(None);
        }
        let answer = self.store.command_answer(id).await?;
        Ok(answer.and_then(|answer| serde_json::from_str(&answer).ok()))
    }

    /// Waits for a rollout. Returns it as it is at the end of the wait, and whether it got there; cancel safe.
    pub async fn wait(
        &self,
        id: &str,
        event: RolloutWait,
        deadline: Instant,
    ) -> Result<(Option<Rollout>, bool), StoreError> {
        let deadline = tokio::time::Instant::from_std(deadline);
        let mut changes = self.changes.subscribe();
        let mut progress = self.board.progress();
        loop {
            changes.mark_unchanged();
            progress.mark_unchanged();
            let rollout = match self.get(id).await? {
                Some(rollout) => Some(self.successor(rollout).await?),
                None => None,
            };
            match rollout.as_ref().map(|rollout| event.outcome(rollout, self.generation(&rollout.fleet))) {
                Some(Some(is_reached)) => return Ok((rollout, is_reached)),
                None | Some(None) if tokio::time::Instant::now() >= deadline => return Ok((rollout, false)),
                None | Some(None) => {}
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = progress.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
                // The leader may be another control plane.
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// Waits for the rollout that brings a revision, or a later one, to a pinned fleet. Returns it as it is at the end of the wait, and
    /// whether it got there; cancel safe.
    pub async fn wait_for_revision(
        &self,
        fleet: &str,
        revision: u64,
        event: RolloutWait,
        deadline: Instant,
    ) -> Result<(Option<Rollout>, bool), StoreError> {
        let mut revision = revision;
        loop {
            let runs =
                self.metrics.store_call("rollout_runs", self.store.rollout_runs(Some(fleet), 1000)).await?;
            // The list has the newest revision first, and its last attempt.
            let oldest = runs.iter().map(|run| run.revision).filter(|found| *found >= revision).min();
            let found = runs.iter().find(|run| Some(run.revision) == oldest);
            let Some(id) = found.map(|run| run.id.clone()) else {
                if Instant::now() >= deadline {
                    return Ok((None, false));
                }
                tokio::time::sleep(RUN_INTERVAL).await;
                continue;
            };
            let (rollout, is_reached) = self.wait(&id, event, deadline).await?;
            match &rollout {
                // The newer revision contains this one.
                Some(found) if found.state == RolloutState::Superseded && !is_reached => {
                    revision = found.revision + 1;
                }
                _ => return Ok((rollout, is_reached)),
            }
        }
    }

    /// The generation of the decision about a fleet that this control plane has published.
    fn generation(&self, fleet: &str) -> u64 {
        self.publisher.current().assigned.targets.get(fleet).map_or(0, |target| target.generation)
    }

    /// The numbers of rollouts under way, of those that need a decision of a person, and of fleets that are held at an earlier revision.
    pub fn open(&self) -> OpenRollouts {
        let shown = self.shown();
        let is_held = |run: &Run| run.rollout.state() == machine::RolloutState::Held;
        let count = |is: &dyn Fn(&Run) -> bool| shown.values().filter(|run| is(run)).count() as u64;
        OpenRollouts {
            under_way: count(&|run| run.is_under_way() && !is_held(run)),
            held: count(&is_held),
            taken_back: count(&|run| {
                let is_open = |other: &Run| other.fleet == run.fleet && other.finished_at_us.is_none();
                run.finished_at_us.is_some() && !shown.values().any(is_open)
            }),
        }
    }

    /// Shows the rollouts that have not ended, and asks for what proxies are to count.
    pub(super) async fn show(&self, runs: BTreeMap<Arc<str>, Run>, wanted: CountsWanted) {
        self.wanted.send_if_modified(|known| {
            let is_changed = **known != wanted;
            if is_changed {
                *known = Arc::new(wanted);
            }
            is_changed
        });
        let before = std::mem::replace(&mut *self.shown(), runs.clone());
        if before == runs {
            return;
        }
        self.changes.send_modify(|count| *count += 1);
        let changed = runs.iter().filter(|(id, run)| before.get(*id) != Some(run));
        for (_, run) in changed {
            self.announce(run);
        }
        for id in before.keys().filter(|id| !runs.contains_key(*id)) {
            match self.store.rollout_run(id).await {
                Ok(run) => {
                    run.and_then(|run| Run::read(&run.state)).iter().for_each(|run| self.announce(run));
                }
                Err(error) => tracing::debug!(%error, "the end of a rollout could not be read"),
            }
        }
    }

    fn announce(&self, run: &Run) {
        // Nobody may be listening.
        let _ = self.events.send(Arc::new(self.view(run)));
    }

    fn shown(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Run>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn known_scopes(&self, key: &ScopesKey) -> Option<BTreeSet<Scope>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The routes of a fleet of which it is to be known what is usual. Asked for at each turn, and found out once for each revision.
    pub(super) fn usual_routes(&self, published: &Published, fleet: &Arc<str>) -> Arc<[String]> {
        let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        let id = published.snapshot.id();
        if usual.revision.as_ref() != Some(id) {
            *usual = UsualRoutes { revision: Some(id.clone()), fleets: BTreeMap::new() };
        }
        let routes = usual.fleets.entry(Arc::clone(fleet));
        Arc::clone(routes.or_insert_with(|| usual_routes(&published.snapshot, fleet)))
    }

    pub(super) fn keep_scopes(&self, key: ScopesKey, scopes: &BTreeSet<Scope>) {
        const KEPT: usize = 100;
        let mut known = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, scopes.clone());
    }
}

impl Answer {
    pub(super) fn obeyed() -> Self {
        Self { refused: None, state: None }
    }

    pub(super) fn refused(state: Option<RolloutState>, text: String) -> Self {
        Self { refused: Some(text), state }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        Self::refused(refused.state.map(state), refused.text)
    }
}

impl From<Order> for machine::Command {
    fn from(order: Order) -> Self {
        Self { rollout: order.rollout, action: order.action, reason: order.reason }
    }
}

impl RolloutWait {
    /// True if a rollout is where the wait ends, false if it will not get there by itself; `None`: it may. `published` is the generation of
    /// the decision that proxies get: before it is the rollout's, they are not counted by it.
    fn outcome(self, rollout: &Rollout, published: u64) -> Option<bool> {
        let counts = &rollout.counts;
        let is_applied = published >= rollout.generation
            && counts.pending == 0
            && counts.unknown == 0
            && counts.rejected == 0;
        let is_last = rollout.steps.len() <= rollout.step as usize + 1;
        match rollout.state {
            RolloutState::Succeeded => Some(true),
            RolloutState::Failed
            | RolloutState::Aborted
            | RolloutState::Superseded
            | RolloutState::Held
            | RolloutState::Paused => Some(false),
            RolloutState::Waiting => None,
            RolloutState::Running => match self {
                Self::Step => is_applied.then_some(true),
                Self::Applied => (is_applied && is_last).then_some(true),
                Self::Succeeded => None,
            },
            RolloutState::Baking => match self {
                Self::Step | Self::Applied => is_applied.then_some(true),
                Self::Succeeded => None,
            },
        }
    }
}
