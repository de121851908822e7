//! The proxy's reports to a control plane, beside the xDS stream. Nothing depends on them: a failure ends the reports
//! of this connection, and the next connection starts its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proto::signalbox::report::v1::{Crashed, ErrorClasses, ProxyReport, Traffic};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use super::authorize::authorize;
use super::data_plane::DataPlane;
use super::status::Status;

/// Reports every two seconds, and as soon as another revision is served.
pub(super) struct Reporter {
    pub(super) node_id: String,
    pub(super) admin_address: String,
    pub(super) token: Option<MetadataValue<Ascii>>,
    pub(super) data_plane: Arc<dyn DataPlane>,
    pub(super) status: watch::Receiver<Status>,
}

impl Reporter {
    pub(super) async fn run(self, channel: Channel) {
        let token = self.token.clone();
        let (reports, outbound) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, token.as_ref());
        let mut client = ReportServiceClient::new(channel);
        tokio::select! {
            answer = client.report(request) => {
                if let Err(status) = answer {
                    tracing::debug!(%status, "reports ended");
                }
            }
            () = self.send(reports) => {}
        }
    }

    async fn send(mut self, reports: mpsc::Sender<ProxyReport>) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since = Instant::now();
        let mut reported = None;
        // No report is made until the last one has been taken.
        while let Ok(room) = reports.reserve().await {
            loop {
                tokio::select! {
                    _ = interval.tick() => break,
                    changed = self.status.changed() => match changed {
                        Ok(()) if self.serving() != reported => break,
                        Ok(()) => {}
                        Err(_) => return,
                    },
                }
            }
            reported = self.serving();
            room.send(self.report(std::mem::replace(&mut since, Instant::now()).elapsed()));
        }
    }

    fn serving(&self) -> Option<(u64, i64)> {
        let status = self.status.borrow();
        status.serving.as_ref().map(|serving| (serving.revision.number, serving.applied_at_us))
    }

    fn report(&self, interval: Duration) -> ProxyReport {
        let (serving, warnings, crashed) = {
            let status = self.status.borrow();
            (status.serving.clone(), status.warnings(), status.crashed.clone())
        };
        let traffic = self.data_plane.traffic();
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        ProxyReport {
            node_id: self.node_id.clone(),
            epoch: serving.as_ref().map(|serving| serving.revision.epoch.to_string()).unwrap_or_default(),
            revision: serving.as_ref().map_or(0, |serving| serving.revision.number),
            applied_at_us: serving.as_ref().map_or(0, |serving| serving.applied_at_us),
            apply_us: serving.as_ref().map_or(0, |serving| micros(serving.took)),
            traffic: Some(Traffic {
                interval_us: micros(interval),
                requests: traffic.requests,
                errors: traffic.errors,
                p50_us: traffic.p50_us,
                p99_us: traffic.p99_us,
                active_connections: traffic.active_connections,
                classes: Some(ErrorClasses {
                    no_route: traffic.no_route,
                    client_errors: traffic.client_errors,
                }),
            }),
            listeners: (self.data_plane.listeners().into_iter())
                .map(|(name, address)| (name, address.to_string()))
                .collect(),
            admin_address: self.admin_address.clone(),
            warnings,
            crashed: crashed.map(|crashed| Crashed {
                epoch: crashed.exact.revision.epoch.to_string(),
                revision: crashed.exact.revision.number,
                message: crashed.message,
            }),
        }
    }
}

const INTERVAL: Duration = Duration::from_secs(2);
