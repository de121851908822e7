//! How each event changes what the board knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use imbl::OrdMap;
use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1::{Crashed, ProxyReport};
use signalbox_rollout::{FleetTarget, Plan};

use super::event::{EndedBy, Event, Link, Node, Presented};
use super::fleet::Connection;
use super::proxy::{DUPLICATE_WINDOW, Proxy, RECONNECT_GRACE, Registration, Rejection};
use super::rollout::{RolloutRecord, fault};
use super::state::State;
use super::status::{ProxyError, ProxyResourceError, ProxyTraffic, RolloutState, TrafficClasses};

impl State {
    pub(super) fn fold(&mut self, now_us: i64, event: Event) {
        match event {
            Event::Published { revision, committed_at_us } => {
                self.published(now_us, revision, committed_at_us);
            }
            Event::Decided { targets } => {
                self.note_splits(now_us, &targets);
                let before = std::mem::replace(&mut self.targets, targets);
                self.progress = true;
                // Their assigned revision is another one, or the same by another decision.
                let concerned = (self.proxies.iter()).filter(|(_, proxy)| {
                    before.get(&proxy.node.fleet) != self.targets.get(&proxy.node.fleet)
                });
                self.unannounced.proxies.extend(concerned.map(|(id, _)| id.clone()));
            }
            Event::Opened { stream, node, presented, link } => {
                self.opened(now_us, stream, node, presented, link);
            }
            Event::Closed { stream, id, by } => self.on_stream(now_us, stream, &id, |proxy| {
                proxy.stream = None;
                proxy.connected = false;
                proxy.link = Link::default();
                // Not registered yet: whoever has the proxy meanwhile keeps it.
                proxy.registration = Registration::None;
                // One that drifted ends its stream by itself, to be sent everything on the next.
                if by == EndedBy::ControlPlane || proxy.drifted {
                    proxy.lost = true;
                    proxy.unknown = Some((Instant::now(), RECONNECT_GRACE));
                }
            }),
            Event::Purged { id, number } => {
                let proxy = self.proxies.get_mut(&id).filter(|proxy| proxy.stream.is_some());
                if let Some(proxy) = proxy.filter(|proxy| proxy.purged != number) {
                    proxy.purged = number;
                    self.progress = true;
                    self.mark_advanced(&id);
                }
            }
            Event::Sent { stream, id, revision } => {
                let proxy = self.proxies.get_mut(&id).filter(|proxy| proxy.stream == Some(stream));
                if let Some(proxy) = proxy {
                    proxy.sent = revision;
                    // Soon it is answered, and that is written.
                    self.unannounced.proxies.insert(id.clone());
                    self.heartbeats.insert(id);
                }
            }
            Event::Acked { stream, id, revision } => {
                let before = self.proxies.get(&id).filter(|proxy| proxy.stream == Some(stream));
                let Some(before) = before.map(|proxy| (self.served(proxy), proxy.connected_at_us)) else {
                    return;
                };
                let number = revision.number;
                self.clear_rejection(&id, number);
                self.record_propagation(&id, before.0, number, before.1, now_us);
                let is_present = self.change_on_stream(now_us, stream, &id, |proxy| {
                    proxy.rejections.retain(|rejection| {
                        rejection.revision != number || rejection.epoch != revision.epoch
                    });
                    // Under another generation it acknowledges what it serves already.
                    if proxy.acked_at_us.is_none()
                        || (&proxy.epoch, proxy.applied) != (&revision.epoch, number)
                    {
                        proxy.acked_at_us = Some(now_us);
                    }
                    proxy.epoch = revision.epoch;
                    proxy.applied = number;
                    proxy.verified = true;
                    proxy.drifted = false;
                    proxy.error.take_if(|error| error.revision <= number);
                });
                if is_present {
                    self.mark_advanced(&id);
                }
            }
            Event::Rejected { stream, id, revision, resources } => {
                if self.proxies.get(&id).is_none_or(|proxy| proxy.stream != Some(stream)) {
                    return;
                }
                let fault = fault(&id, revision, &resources);
                self.record_rejection(&id, revision, fault.clone());
                let epoch = self.head.as_ref().map(|head| head.epoch.clone());
                self.on_stream(now_us, stream, &id, |proxy| {
                    if let Some(epoch) = epoch {
                        proxy.keep_rejection(Rejection { epoch, revision, fault });
                    }
                    // It has checked the digest of the whole before it looked at the resources.
                    proxy.verified = true;
                    proxy.error = Some(ProxyError { revision, resources });
                });
            }
            Event::Drifted { stream, id, revision, message } => {
                let resources = vec![ProxyResourceError::of_revision(message)];
                self.on_stream(now_us, stream, &id, |proxy| {
                    proxy.drifted = true;
                    proxy.error = Some(ProxyError { revision, resources });
                });
            }
            Event::Reported(report) => self.reported(now_us, *report),
            Event::Forgotten { id } => self.forget(now_us, &id),
        }
    }

    /// Notes since when each fleet is split by the rollout under way.
    fn note_splits(&mut self, now_us: i64, targets: &OrdMap<Arc<str>, Arc<FleetTarget>>) {
        let rollout = |target: &FleetTarget| match &target.plan {
            Plan::Split { candidate, .. } => Some(Arc::clone(&candidate.rollout)),
            Plan::Head | Plan::Stable { .. } => None,
        };
        let before = std::mem::take(&mut self.split_since);
        let splits = targets.iter().filter_map(|(fleet, target)| Some((fleet, rollout(target)?)));
        self.split_since = splits
            .map(|(fleet, rollout)| {
                let known = before.get(fleet).filter(|(known, _)| *known == rollout);
                (Arc::clone(fleet), known.cloned().unwrap_or((rollout, now_us)))
            })
            .collect();
    }

    fn published(&mut self, now_us: i64, revision: RevisionId, committed_at_us: i64) {
        let base = match &self.head {
            Some(head) if head.epoch == revision.epoch && head.number >= revision.number => return,
            Some(head) if head.epoch == revision.epoch => head.number,
            _ => revision.number.saturating_sub(1),
        };
        let new_epoch = self.head.as_ref().is_some_and(|head| head.epoch != revision.epoch);
        let first = self.head.is_none();
        let number = revision.number;
        self.head = Some(revision);
        self.head_committed_at_us = committed_at_us;
        self.progress = true;
        if new_epoch || first {
            self.recount();
        }
        let names: Vec<_> = self.fleets.keys().cloned().collect();
        for name in names {
            let Some(fleet) = self.fleets.get_mut(&name) else { continue };
            if new_epoch {
                // Numbers of the old epoch say nothing about those of the new one.
                fleet.rollouts.clear();
                fleet.final_up_to = 0;
            }
            for (older, record) in fleet.rollouts.range_mut(..number).rev() {
                if record.finished_at_us.is_some() && record.state != RolloutState::Failed {
                    break;
                }
                if record.finished_at_us.is_none() {
                    record.state = RolloutState::Superseded;
                    record.finished_at_us = Some(now_us);
                    self.unsaved.rollouts.insert((*older, name.clone()));
                    self.unannounced.rollouts.insert((*older, name.clone()));
                }
            }
            // The leader makes the rollouts of pinned fleets.
            let is_pinned = self.targets.get(&name).is_some_and(|target| target.plan != Plan::Head);
            if number > 0 && !is_pinned {
                // Nobody made revision 0.
                fleet.rollouts.entry(number).or_insert_with(|| RolloutRecord::new(base, committed_at_us));
            }
            while fleet.rollouts.len() > Self::ROLLOUTS {
                fleet.rollouts.pop_first();
            }
            self.update_rollouts(now_us, &name);
        }
    }

    fn opened(&mut self, now_us: i64, stream: u64, node: Node, presented: Option<Presented>, link: Link) {
        let id = node.id.clone();
        let fleet = node.fleet.clone();
        if !self.proxies.contains_key(&id) {
            self.make_room(now_us);
        }
        let before = self.proxies.get(&id).map(|proxy| self.contribution(proxy));
        let new = || Proxy { first_seen_us: now_us, ..Proxy::new(&node) };
        let mut proxy = self.proxies.remove(&id).unwrap_or_else(new);
        let presented = presented.unwrap_or_else(|| Presented {
            revision: RevisionId { epoch: "".into(), number: 0 },
            verified: false,
        });
        let Presented { revision, verified } = presented;
        if (&proxy.epoch, proxy.applied) != (&revision.epoch, revision.number) {
            proxy.acked_at_us = None;
        }
        if let Some(duplicate) = proxy.record_process(&node, &link.process) {
            let told = proxy.duplicate_logged.is_some_and(|told| told.elapsed() < DUPLICATE_WINDOW);
            if !told && self.duplicates.len() < MAX_LOGGED {
                proxy.duplicate_logged = Some(Instant::now());
                self.duplicates.push((id.clone(), duplicate));
            }
        }
        proxy.node = Arc::new(node);
        proxy.replica = self.replica.clone();
        proxy.instance = self.instance.clone();
        proxy.stream = Some(stream);
        proxy.registration = Registration::Pending;
        if self.lease_lost || self.unwritable {
            link.registered.cancel();
        } else {
            self.registering = true;
        }
        proxy.link = link;
        proxy.connected = true;
        proxy.lost = false;
        proxy.unknown = None;
        proxy.connected_at_us = now_us;
        proxy.last_seen_us = now_us;
        proxy.sent = revision.number;
        let other_epoch = !revision.epoch.is_empty() && proxy.epoch != revision.epoch;
        proxy.error.take_if(|error| other_epoch || error.revision <= revision.number);
        proxy.epoch = revision.epoch;
        proxy.applied = revision.number;
        proxy.verified = verified;
        // Else it is so until it serves a revision.
        proxy.drifted &= !verified;
        self.proxies.insert(id.clone(), proxy);
        self.add_fleet(fleet);
        self.update_counts(now_us, &id, before);
        self.mark_changed(&id);
    }

    /// Forgets the proxy that has been without a stream for longest when there are as many as there may be.
    fn make_room(&mut self, now_us: i64) {
        if self.proxies.len() < Self::PROXIES {
            return;
        }
        let closed = self.proxies.values().filter(|proxy| self.connection(proxy) == Connection::Disconnected);
        let oldest = closed.min_by_key(|proxy| proxy.last_seen_us).map(|proxy| proxy.node.id.clone());
        if let Some(id) = oldest {
            self.forget(now_us, &id);
            self.unsaved.forgotten.push(id);
        }
    }

    /// Changes a proxy, if `stream` is its present one.
    fn on_stream(&mut self, now_us: i64, stream: u64, id: &Arc<str>, change: impl FnOnce(&mut Proxy)) {
        if self.change_on_stream(now_us, stream, id, change) {
            self.mark_changed(id);
        }
    }

    /// Likewise, without marking that; `false`: it is not the present one.
    fn change_on_stream(
        &mut self,
        now_us: i64,
        stream: u64,
        id: &Arc<str>,
        change: impl FnOnce(&mut Proxy),
    ) -> bool {
        let Some(proxy) = self.proxies.get(id).filter(|proxy| proxy.stream == Some(stream)) else {
            return false;
        };
        let before = self.contribution(proxy);
        if let Some(proxy) = self.proxies.get_mut(id) {
            proxy.last_seen_us = now_us;
            change(proxy);
        }
        self.update_counts(now_us, id, Some(before));
        true
    }

    fn reported(&mut self, now_us: i64, report: ProxyReport) {
        let Some(proxy) =
            self.proxies.get_mut(report.node_id.as_str()).filter(|proxy| proxy.stream.is_some())
        else {
            return;
        };
        let id = proxy.node.id.clone();
        proxy.last_seen_us = now_us;
        let reported = Some((report.revision, report.applied_at_us, report.apply_us));
        let listeners: BTreeMap<_, _> = report.listeners.into_iter().collect();
        let lasting = proxy.reported != reported
            || proxy.listeners != listeners
            || proxy.admin_address != report.admin_address
            || proxy.warnings != report.warnings;
        proxy.reported = reported;
        proxy.listeners = listeners;
        proxy.admin_address = report.admin_address;
        proxy.warnings = report.warnings;
        proxy.traffic = report.traffic.map(|traffic| {
            let share = |count: u64| ratio(count as f64, traffic.requests as f64);
            let classes = traffic.classes.map(|classes| TrafficClasses {
                no_route: share(classes.no_route),
                client_errors: share(classes.client_errors),
                server_errors: share(traffic.errors),
            });
            ProxyTraffic {
                requests_per_second: ratio(traffic.requests as f64 * 1e6, traffic.interval_us as f64),
                error_ratio: share(traffic.errors),
                p99_ms: traffic.p99_us as f64 / 1e3,
                classes,
            }
        });
        if lasting {
            self.mark_changed(&id);
        } else {
            self.unannounced.proxies.insert(id.clone());
            self.heartbeats.insert(id.clone());
        }
        if let Some(crashed) = report.crashed {
            self.crashed(now_us, &id, crashed);
        }
    }

    /// Records that a proxy refuses a revision because it crashed on it: the same as a rejection on its stream. The proxy
    /// repeats it with every report.
    fn crashed(&mut self, now_us: i64, id: &Arc<str>, Crashed { epoch, revision, message }: Crashed) {
        let Some(head) = self.head.as_ref().filter(|head| *head.epoch == *epoch) else { return };
        let epoch = head.epoch.clone();
        let Some((proxy, stream)) = self.proxies.get(id).and_then(|proxy| Some((proxy, proxy.stream?)))
        else {
            return;
        };
        let served = self.served(proxy);
        let is_known =
            proxy.rejections.iter().any(|known| known.revision == revision && known.epoch == epoch);
        let shows_later = proxy.error.as_ref().is_some_and(|error| error.revision >= revision);
        let is_shown = revision <= served || shows_later;
        if revision == served || is_known && is_shown {
            return;
        }
        let resources = vec![ProxyResourceError::of_revision(message)];
        let fault = fault(id, revision, &resources);
        self.record_rejection(id, revision, fault.clone());
        self.on_stream(now_us, stream, id, |proxy| {
            proxy.keep_rejection(Rejection { epoch, revision, fault });
            if !is_shown {
                proxy.error = Some(ProxyError { revision, resources });
            }
        });
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Duplicates that are logged at once.
const MAX_LOGGED: usize = 20;

#[cfg(test)]
mod tests;
