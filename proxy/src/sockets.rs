//! The listening sockets of a revision, planned from those of the one before.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use signalbox_config::{Kind, Listener, Name, ResourceKey};
use tracing::info;

use crate::active::ActiveListener;
use crate::hot_restart::InheritedSockets;
use crate::listener;
use crate::source::Rejected;
use crate::telemetry::access_log::ListenerLog;
use crate::telemetry::spans::ListenerTracing;
use crate::wire::tls::ListenerTls;

/// A socket that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundSocket {
    pub listener: Name,
    /// As configured or overridden; port 0 is still 0.
    pub configured: SocketAddr,
    pub bound: SocketAddr,
}

/// A listener of a revision.
pub struct Wanted {
    pub name: Name,
    /// The address that it is to have on this host.
    pub address: SocketAddr,
    pub listener: Listener,
    pub tls: Option<Arc<ListenerTls>>,
    pub tracing: Option<Arc<ListenerTracing>>,
    pub access_log: Option<Arc<ListenerLog>>,
}

/// The sockets of a revision, derived from those of the one before.
pub struct SocketPlan {
    pub sockets: Vec<Option<BoundSocket>>,
    pub active: Vec<Option<Arc<ActiveListener>>>,
    pub opened: Vec<(u16, Vec<TcpListener>)>,
    pub closed: Vec<u16>,
}

impl SocketPlan {
    /// Binds new sockets. A socket whose address is still wanted stays, even if its listener has another name now.
    pub fn make(
        sockets: &[Option<BoundSocket>],
        labels: &mut Vec<Name>,
        wanted: Vec<Wanted>,
        workers: usize,
        draining: bool,
        inherited: &[InheritedSockets],
    ) -> Result<Self, Vec<Rejected>> {
        let mut plan =
            Self { sockets: sockets.to_vec(), active: Vec::new(), opened: Vec::new(), closed: Vec::new() };
        let mut rejected = Vec::new();
        let mut kept = BTreeSet::new();
        let mut to_bind = Vec::new();
        let mut listeners: Vec<(usize, ActiveListener)> = Vec::new();
        for Wanted { name, address: configured, listener, tls, tracing, access_log } in wanted {
            let known = sockets.iter().enumerate().find_map(|(index, socket)| {
                let socket = socket.as_ref()?;
                // Any free port is another one for each listener.
                let same =
                    socket.configured == configured && (configured.port() != 0 || socket.listener == name);
                (same && !kept.contains(&index)).then_some(index)
            });
            let label = label_of(labels, &name);
            let Listener { limits, edge, .. } = listener;
            let bound =
                known.and_then(|index| sockets.get(index)?.as_ref()).map_or(configured, |it| it.bound);
            let settings = ActiveListener { name, bound, label, limits, edge, tls, tracing, access_log };
            match known {
                Some(index) => {
                    kept.insert(index);
                    listeners.push((index, settings));
                }
                None => to_bind.push((configured, settings)),
            }
        }
        for (configured, mut settings) in to_bind {
            if draining {
                continue;
            }
            let shared =
                plan.sockets.iter().flatten().any(|socket| listener::overlap(socket.bound, configured));
            match take_or_bind(inherited, configured, workers, shared) {
                Ok((bound, opened)) => {
                    settings.bound = bound;
                    let socket = BoundSocket { listener: settings.name.clone(), configured, bound };
                    // Numbers of sockets that are to be closed are still in use.
                    let index = match plan.sockets.iter().position(Option::is_none) {
                        Some(free) => free,
                        None => {
                            plan.sockets.push(None);
                            plan.sockets.len() - 1
                        }
                    };
                    plan.sockets[index] = Some(socket);
                    kept.insert(index);
                    plan.opened.push((index as u16, opened));
                    info!(listener = %settings.name, address = %bound, "listening");
                    listeners.push((index, settings));
                }
                Err(error) => rejected.push(Rejected {
                    key: Some(ResourceKey::new(Kind::Listener, settings.name)),
                    field: "address".to_owned(),
                    message: listener::explain(configured, &error),
                }),
            }
        }
        if !rejected.is_empty() {
            return Err(rejected);
        }
        plan.active.resize_with(plan.sockets.len(), || None);
        for (index, settings) in listeners {
            if let Some(socket) = &mut plan.sockets[index] {
                socket.listener = settings.name.clone();
            }
            plan.active[index] = Some(Arc::new(settings));
        }
        for (index, socket) in plan.sockets.iter_mut().enumerate() {
            if !kept.contains(&index)
                && let Some(socket) = socket.take()
            {
                info!(listener = %socket.listener, address = %socket.bound, "no longer listening");
                plan.closed.push(index as u16);
            }
        }
        Ok(plan)
    }
}

/// Takes the predecessor's sockets if it listened at `address`; else binds new ones. Inherited sockets are duplicated:
/// if the revision is rejected for another listener, they remain for the next one.
fn take_or_bind(
    inherited: &[InheritedSockets],
    address: SocketAddr,
    workers: usize,
    shared: bool,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let Some(found) = inherited.iter().find(|found| found.address == address) else {
        return listener::bind(address, workers, shared);
    };
    let mut sockets = found.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    if let Some(missing) = workers.checked_sub(sockets.len()).filter(|missing| *missing > 0) {
        sockets.extend(listener::bind(address, missing, true)?.1);
    }
    Ok((address, sockets))
}

/// The number of a listener's name.
fn label_of(labels: &mut Vec<Name>, name: &Name) -> u16 {
    let index = labels.iter().position(|known| known == name).unwrap_or_else(|| {
        labels.push(name.clone());
        labels.len() - 1
    });
    // Beyond that many names the last one stands for all.
    u16::try_from(index).unwrap_or(u16::MAX)
}
