//! The purges of cached responses: sends each proxy those that it has not carried out, and notes those that it has.

use std::time::Duration;

use signalbox_proto::signalbox::report::v1::{Purged, Purges};
use tonic::Status;

use super::grpc::Call;
use super::node_stream::NodeStream;
use super::shared::Shared;
use crate::publish::Due;

/// Serves one proxy until it ends the stream, does not read or answer, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let Some(mut stream) = NodeStream::open(shared, call, MAX_REPORT) else { return };
    let ended = exchange(shared, &mut stream).await;
    stream.end(ended);
}

async fn exchange(shared: &Shared, stream: &mut NodeStream<'_, Purged>) -> Result<(), Status> {
    let mut log = shared.publisher.purges().subscribe();
    let mut carried_out = None;
    let mut is_noted = true;
    loop {
        let due = carried_out.map(|number| log.borrow_and_update().due(number));
        if let Some(message) = due.and_then(message) {
            stream.send(&message).await?;
            // Nothing more is sent until it says that these are carried out.
            carried_out = None;
        }
        tokio::select! {
            _ = log.changed(), if carried_out.is_some() => {}
            // The discovery stream of a proxy may come a moment later.
            () = tokio::time::sleep(NOTE_AGAIN), if !is_noted => {}
            report = stream.next() => {
                let Some(report) = report? else { return Ok(()) };
                carried_out = Some(report.number);
                shared.publisher.purges().note(report.number);
                is_noted = false;
            }
        }
        if let Some(number) = carried_out
            && !is_noted
        {
            is_noted = shared.board.note_purged(&stream.node, number);
        }
    }
}

/// The message that has these purges; `None`: there are none.
fn message(due: Due) -> Option<Purges> {
    match due {
        Due::Nothing => None,
        Due::Some(purges, number) => {
            let purges = purges.iter().map(ToString::to_string).collect();
            Some(Purges { number, all: false, purges })
        }
        Due::All(number) => Some(Purges { number, all: true, purges: Vec::new() }),
    }
}

/// The largest message of a proxy: a number.
const MAX_REPORT: usize = 1 << 10;

/// How often the board is told again of a proxy that it does not know yet.
const NOTE_AGAIN: Duration = Duration::from_millis(200);
