//! One turn of the leader for one fleet.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use signalbox_config::RolloutPolicy;
use signalbox_rollout::machine::{Event, RevertRange, Urgency, Write};

use super::decide::Stopped;
use super::driver::{Driver, Facts, Outcome};
use super::revisions::revision_in;
use super::service::{Answer, Order, Rollouts};
use crate::clock::now_us;
use crate::publish::Published;
use crate::store::{Command, Decisions, StoreError, Term, UrgentMode};
use crate::writer::{Author, Mode, Operation, Rights, WriteError};

/// The fleet, and the means to decide about it.
pub(super) struct Turn<'a> {
    pub(super) rollouts: &'a Rollouts,
    pub(super) term: Term,
    pub(super) driver: &'a mut Driver,
    pub(super) published: &'a Arc<Published>,
}

impl Turn<'_> {
    /// Tells the machine what has happened since the last turn, and stores what it decides.
    pub(super) async fn run(&mut self, commands: &[&Command]) -> Result<(), Stopped> {
        self.lead().await?;
        self.write().await?;
        for command in commands {
            self.obey(command).await?;
        }
        self.end_revert().await?;
        self.look().await
    }

    /// Tells the machine of a new leader.
    async fn lead(&mut self) -> Result<(), Stopped> {
        if self.driver.state.term >= self.term.0 {
            return Ok(());
        }
        self.event(&Event::Lead { term: self.term.0 }, None, None).await
    }

    /// Tells the machine of the revisions that were written.
    async fn write(&mut self) -> Result<(), Stopped> {
        let head = self.published.snapshot.id().number;
        if self.driver.state.head >= head {
            return Ok(());
        }
        let fleet = Arc::clone(&self.driver.state.fleet);
        let urgent = self.rollouts.store.urgent_revisions(self.driver.state.head).await?;
        let mut writes = Vec::new();
        for urgent in urgent.into_iter().filter(|urgent| urgent.number <= head) {
            let reason = urgent.urgent.reason.into();
            let urgency = match urgent.urgent.mode {
                UrgentMode::Emergency => Urgency::Emergency(reason),
                UrgentMode::BreakGlass => Urgency::BreakGlass(reason),
            };
            writes.push(Write { revision: self.rollouts.revision(&fleet, urgent.number).await?, urgency });
        }
        if writes.last().is_none_or(|last| last.revision.number < head) {
            writes.push(Write { revision: revision_in(self.published, &fleet), urgency: Urgency::Normal });
        }
        for write in writes {
            self.event(&Event::Write(write), None, None).await?;
        }
        Ok(())
    }

    /// Carries out a command, or refuses it.
    async fn obey(&mut self, command: &Command) -> Result<(), Stopped> {
        let order: Order = match serde_json::from_str(&command.command) {
            Ok(order) => order,
            Err(error) => {
                let answer = Answer::refused(None, format!("the command cannot be read: {error}"));
                return self.answer(command.id, &answer).await;
            }
        };
        let present = self.driver.step_of(&order.rollout);
        if let Some((step, state)) = present.filter(|(step, _)| order.step.is_some_and(|seen| seen != *step))
        {
            let answer = Answer::refused(Some(state), format!("the rollout is in step {step} meanwhile"));
            return self.answer(command.id, &answer).await;
        }
        let actor = order.actor.clone();
        self.event(&Event::Operator(order.into()), Some(&actor), Some(command.id)).await
    }

    async fn answer(&self, command: u64, answer: &Answer) -> Result<(), Stopped> {
        let decisions = Decisions { answers: vec![(command, answer.to_json())], ..Decisions::default() };
        match self.rollouts.decide(self.term, &decisions).await {
            // It has expired.
            Err(Stopped::Outdated) => Ok(()),
            decided => decided,
        }
    }

    async fn look(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        if !self.driver.is_look_due(now) {
            return Ok(());
        }
        let fleet = Arc::clone(&self.driver.state.fleet);
        let changed = match self.driver.compared() {
            Some((stable, candidate)) => {
                let scopes = self.rollouts.scopes_between(&fleet, stable, candidate).await;
                // Without them, nobody knows what has to be covered.
                let Some(scopes) = scopes else { return Ok(()) };
                scopes
            }
            None => BTreeSet::new(),
        };
        self.driver.set_changed(changed);
        let policy = self.policy();
        let proxies = self.rollouts.board.fleet_proxies(&fleet);
        let facts = Facts { policy: &policy, proxies: &proxies, now, now_us: now_us() };
        self.driver.see(&facts);
        let outcome = self.driver.look(&facts);
        self.store(outcome, None).await
    }

    /// Folds an event. `command` is answered in the same transaction.
    async fn event(
        &mut self,
        event: &Event<'_>,
        actor: Option<&str>,
        command: Option<u64>,
    ) -> Result<(), Stopped> {
        let policy = self.policy();
        let proxies = self.rollouts.board.fleet_proxies(&self.driver.state.fleet);
        let facts = Facts { policy: &policy, proxies: &proxies, now: Instant::now(), now_us: now_us() };
        self.driver.see(&facts);
        match self.driver.event(event, &facts, actor) {
            Ok(outcome) => self.store(outcome, command).await,
            Err(refused) => match command {
                Some(command) => self.answer(command, &refused.into()).await,
                None => Ok(()),
            },
        }
    }

    fn policy(&self) -> RolloutPolicy {
        self.published.policy(&self.driver.state.fleet).cloned().unwrap_or_default()
    }

    /// Stores what an event led to, and takes it over.
    async fn store(&mut self, mut outcome: Outcome, command: Option<u64>) -> Result<(), Stopped> {
        if let Some(command) = command {
            outcome.decisions.answers.push((command, Answer::obeyed().to_json()));
        }
        if outcome.decisions != Decisions::default() {
            self.rollouts.decide(self.term, &outcome.decisions).await?;
        }
        if !outcome.decisions.targets.is_empty() {
            self.rollouts.publisher.catch_up_soon();
        }
        let reverts = std::mem::take(&mut outcome.reverts);
        self.driver.commit(outcome, Instant::now());
        for (rollout, range) in reverts {
            self.begin_revert(rollout, range);
        }
        Ok(())
    }

    /// Begins to take the changes of a range back by a new revision. That may take long, and goes on beside the turns; the machine asks for
    /// it again until it is told the result.
    fn begin_revert(&mut self, rollout: Arc<str>, range: RevertRange) {
        if self.driver.reverting.is_some() {
            return;
        }
        let (publisher, writer) = (Arc::clone(&self.rollouts.publisher), self.rollouts.writer.clone());
        let fleet = Arc::clone(&self.driver.state.fleet);
        let id = Arc::clone(&rollout);
        let task = tokio::spawn(async move {
            let before = publisher.state_of(range.after).await?;
            let after = publisher.state_of(range.through).await?;
            let author = Author {
                name: "signalbox".into(),
                message: format!("Take back {id}"),
                action: format!("revert of rollout {id}"),
                urgent: None,
                rights: Rights::Administrator,
            };
            writer.write(author, Operation::TakeBack { before, after, fleet }, Mode::Store).await
        });
        self.driver.reverting = Some((rollout, task));
    }

    /// Tells the machine the result of a revert that has ended.
    async fn end_revert(&mut self) -> Result<(), Stopped> {
        let Some((rollout, task)) = self.driver.reverting.take_if(|(_, task)| task.is_finished()) else {
            return Ok(());
        };
        let result = match task.await {
            Ok(Ok(_)) => Ok(()),
            // The machine asks again.
            Ok(Err(
                WriteError::Busy | WriteError::Store(StoreError::Unavailable(_) | StoreError::ReadOnly),
            ))
            | Err(_) => return Ok(()),
            Ok(Err(error)) => Err(error.to_string().into()),
        };
        self.event(&Event::Reverted { rollout, result }, None, None).await
    }
}
