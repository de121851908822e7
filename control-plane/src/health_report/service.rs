//! Looks at everything again and again, and keeps what was found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signalbox_config::{Kind, Name, ResourceKey, Snapshot};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::facts::{Facts, RevisionFacts, Traffic, Trouble};
use super::finding::Finding;
use super::incidents::{IncidentChange, Incidents, Report};
use super::rules::look;
use crate::board::Board;
use crate::clock::now_us;
use crate::publish::{Health, Publisher};
use crate::stats::{Dimension, Point, SeriesKey, Stats};
use crate::store::Store;

/// Keeps the present report of what is wrong.
pub struct HealthReports {
    store: Arc<dyn Store>,
    publisher: Arc<Publisher>,
    board: Arc<Board>,
    stats: Arc<Stats>,
    report: Mutex<Report>,
    changes: broadcast::Sender<Arc<IncidentChange>>,
    /// The last revisions, for as long as there is no later one.
    revisions: Mutex<(u64, Vec<RevisionFacts>)>,
}

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// The requests of this time are judged, in seconds.
const WINDOW: u64 = 60;

/// The requests of this time before are what is usual, in seconds.
const USUAL: u64 = 1800;

/// Reports come up to this much later than the requests, in seconds.
const DELAY: u64 = 10;

/// Changes of incidents that a subscriber may be behind before it loses some: all incidents open and close at once.
const CHANGES: usize = 512;

/// The revisions that may be to blame.
const REVISIONS: u32 = 10;

impl HealthReports {
    /// Has no report yet.
    pub fn new(
        store: Arc<dyn Store>,
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        stats: Arc<Stats>,
    ) -> Arc<Self> {
        let (report, revisions) = (Mutex::default(), Mutex::default());
        let changes = broadcast::Sender::new(CHANGES);
        Arc::new(Self { store, publisher, board, stats, report, changes, revisions })
    }

    /// Looks every ten seconds until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut incidents = Incidents::default();
        let mut troubles = Troubles::default();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = interval.tick() => {}
            }
            let mut facts = self.facts().await;
            troubles.apply(&mut facts);
            let findings = look(&facts);
            troubles.note(&facts, &findings);
            let changes = incidents.fold(now_s(), findings);
            let report = report(&facts, &incidents);
            *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
            for change in changes {
                match &change {
                    IncidentChange::Opened(incident) => {
                        tracing::warn!(rule = ?incident.rule, "{}", incident.sentence);
                    }
                    IncidentChange::Closed(incident) => {
                        tracing::info!(rule = ?incident.rule, "this has ended: {}", incident.sentence);
                    }
                }
                // Nobody may be listening.
                let _ = self.changes.send(Arc::new(change));
            }
        }
    }

    /// The present report.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sees every incident that opens or closes.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<IncidentChange>> {
        self.changes.subscribe()
    }

    async fn facts(&self) -> Facts {
        let proxies = self.board.proxies();
        let database = match self.publisher.health() {
            Health::InSync => None,
            Health::Away(reason) | Health::Behind(reason) => Some(reason),
            Health::ReadOnly => Some("it is read-only".to_owned()),
        };
        let begin = now_s().saturating_sub(DELAY + WINDOW);
        let usual = (begin.saturating_sub(USUAL), begin.saturating_sub(WINDOW));
        let stats = Arc::clone(&self.stats);
        // With thousands of series it takes some hundredths of a second.
        let counted = tokio::task::spawn_blocking(move || {
            let now = stats.counts((begin, u64::MAX), 10, |_| true);
            // The parts of a fleet are compared with the whole, so their latencies of half an hour are not needed.
            let before = stats.counts(usual, 60, |dimension| *dimension == Dimension::All);
            (now, before)
        });
        let (now, before) = counted.await.unwrap_or_default();
        // Until the traffic of before is read, nothing is known to be unusual.
        let now = if self.stats.is_complete() { now } else { HashMap::new() };
        let (revisions, at) = (self.revisions().await, now_s());
        Facts { proxies, database, now, before, revisions, at, ..Facts::default() }
    }

    /// The last revisions. Without the database, those that were known.
    async fn revisions(&self) -> Vec<RevisionFacts> {
        let head = self.publisher.current().snapshot.id().number;
        let (known, mut revisions) = self.revisions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known != head
            && let Ok(mut read) =
                self.store.revisions_after(head.saturating_sub(REVISIONS.into()), REVISIONS).await
        {
            read.reverse();
            let current = self.publisher.current();
            let facts = read.into_iter().map(|revision| {
                let changed: Vec<_> =
                    revision.changes.into_iter().map(|change| change.key).take(1000).collect();
                RevisionFacts {
                    number: revision.summary.number,
                    author: revision.summary.author.clone(),
                    committed_at_us: revision.summary.committed_at_us,
                    upstreams: upstreams_of(&current.snapshot, &changed),
                    changed,
                }
            });
            revisions = facts.collect();
            *self.revisions.lock().unwrap_or_else(PoisonError::into_inner) = (head, revisions.clone());
        }
        revisions
    }
}

/// The upstreams of those of the resources that are routes and in the set.
fn upstreams_of(set: &Snapshot, keys: &[ResourceKey]) -> HashMap<Name, Vec<Name>> {
    let routes = keys.iter().filter(|key| key.kind == Kind::Route).filter_map(|key| set.find(key));
    routes
        .map(|route| {
            let upstreams = route.references().into_iter().filter(|(key, _)| key.kind == Kind::Upstream);
            (route.key().name.clone(), upstreams.map(|(key, _)| key.name).collect())
        })
        .collect()
}

/// The fleets whose requests go wrong, by how they do. The requests that were usual before are kept for each trouble, because after half an
/// hour the failures would be usual; and for it alone, because another one began when other requests were usual.
#[derive(Default)]
struct Troubles(HashMap<(Arc<str>, Trouble), Begun>);

struct Begun {
    /// When it was seen first and last, in seconds since 1970.
    since: u64,
    last: u64,
    /// The requests of the fleet in the half hour before.
    usual: Arc<Traffic>,
}

/// After this time without a finding, a fleet is as usual again, in seconds.
const USUAL_AFTER: u64 = 300;

/// After this time, in seconds, whatever goes on is usual.
const LONGEST: u64 = 24 * 3600;

impl Troubles {
    /// Gives the facts what was usual, and since when it is not.
    fn apply(&mut self, facts: &mut Facts) {
        let at = facts.at;
        self.0.retain(|_, begun| at < begun.last + USUAL_AFTER && at < begun.since + LONGEST);
        for (key, begun) in &self.0 {
            facts.failing_since.insert(key.clone(), begun.since);
            facts.pinned.insert(key.clone(), Arc::clone(&begun.usual));
        }
    }

    /// Notes what was found.
    fn note(&mut self, facts: &Facts, findings: &[Finding]) {
        let about = findings.iter().filter_map(|it| Some((it.fleet.as_ref()?, it.rule.trouble()?)));
        for (fleet, trouble) in about {
            let begun = self.0.entry((Arc::clone(fleet), trouble)).or_insert_with(|| {
                let usual = facts.before.iter().filter(|(key, _)| key.fleet == *fleet);
                let usual = usual.map(|(key, point)| (key.clone(), point.clone())).collect();
                Begun { since: facts.at, last: facts.at, usual: Arc::new(usual) }
            });
            begun.last = facts.at;
        }
    }
}

fn report(facts: &Facts, incidents: &Incidents) -> Report {
    let incidents = incidents.open();
    // One that is quiet may be over: it is shown, and is no reason for a score.
    let worst = incidents.iter().find(|incident| incident.quiet_since(facts.at).is_none());
    if let Some(worst) = worst {
        let score = Some(100_u32.saturating_sub(worst.penalty));
        return Report { score, sentence: worst.sentence.clone(), incidents, at: facts.at };
    }
    let count = facts.present().count();
    let requests: u64 = facts
        .fleets()
        .iter()
        .filter_map(|fleet| {
            let key = SeriesKey { fleet: Arc::clone(fleet), dimension: Dimension::All };
            facts.now.get(&key).map(Point::requests)
        })
        .sum();
    if count == 0 {
        return Report {
            score: None,
            sentence: "No proxy is connected, so there is nothing to judge.".into(),
            incidents,
            at: facts.at,
        };
    }
    let proxies = if count == 1 { "1 proxy is".to_owned() } else { format!("{count} proxies are") };
    let again = if incidents.is_empty() { "" } else { " again" };
    let sentence = format!(
        "All is well{again}: {proxies} connected, and answered {requests} requests in the last minute."
    );
    Report { score: Some(100), sentence, incidents, at: facts.at }
}

fn now_s() -> u64 {
    u64::try_from(now_us() / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health_report::finding::Rule;

    fn facts(at: u64, failures: u64, usual_failures: u64) -> Facts {
        let key = SeriesKey { fleet: "edge".into(), dimension: Dimension::All };
        let point = |server_errors| Point { succeeded: 1000, server_errors, ..Point::default() };
        let [now, before] =
            [failures, usual_failures].map(|count| HashMap::from([(key.clone(), point(count))]));
        Facts { now, before, at, ..Facts::default() }
    }

    #[test]
    fn another_trouble_does_not_keep_a_revision_from_being_blamed() {
        let mut troubles = Troubles::default();
        let series = |dimension, point| (SeriesKey { fleet: "edge".into(), dimension }, point);
        let at = |at, server_errors, client_errors| {
            let failing = Point { succeeded: 1000, server_errors, client_errors, ..Point::default() };
            let fine = Point { succeeded: 1000, ..Point::default() };
            let now = [Dimension::All, Dimension::Revision(50)].map(|it| series(it, failing.clone()));
            let revision = RevisionFacts {
                number: 50,
                author: "alice".into(),
                committed_at_us: 7_990_000_000,
                changed: vec!["plugin/auth".parse().unwrap()],
                upstreams: HashMap::new(),
            };
            let (now, before) = (HashMap::from(now), HashMap::from([series(Dimension::All, fine)]));
            Facts { now, before, revisions: vec![revision], at, ..Facts::default() }
        };
        let mut seen = |mut facts| {
            troubles.apply(&mut facts);
            let findings = look(&facts);
            troubles.note(&facts, &findings);
            findings
        };
        for (second, server_errors, client_errors, is_blamed) in
            [(1000, 0, 200, false), (1200, 0, 200, false), (1400, 0, 200, false), (8000, 300, 200, true)]
        {
            let findings = seen(at(second, server_errors, client_errors));
            assert!(!findings.is_empty());
            let blamed = findings.iter().any(|finding| finding.rule == Rule::Revision);
            assert_eq!(blamed, is_blamed, "{second}: {findings:?}");
            // It goes on all the time.
            for second in (second..8000).step_by(200) {
                seen(at(second, 0, 200));
            }
        }
    }

    #[test]
    fn an_outage_does_not_become_usual_while_it_lasts() {
        let mut troubles = Troubles::default();
        let mut found = |at, failures, usual| {
            let mut facts = facts(at, failures, usual);
            troubles.apply(&mut facts);
            let findings = look(&facts);
            troubles.note(&facts, &findings);
            findings.len()
        };
        assert_eq!(found(1000, 500, 0), 1);
        // Half an hour later, all that is before has failed as well.
        assert_eq!(found(1200, 500, 100), 1);
        assert_eq!(found(1400, 500, 500), 1);
        assert_eq!(found(1600, 0, 500), 0);
        assert_eq!(found(1899, 500, 500), 0, "it was quiet for five minutes, and this is usual");
    }
}
