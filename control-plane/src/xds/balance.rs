//! Spreading the proxies over the replicas: a stream that is old enough is ended while its replica has more than its share, and
//! the proxy connects to another one.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::board::StreamShare;

/// Ends streams until the server ends.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut drain = Drain { rate: shared.limits.drained_per_second, credit: 0.0 };
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = interval.tick() => {}
        }
        let count = drain.tick(shared.board.stream_share());
        if count > 0 {
            let ended = shared.streams.end_oldest(count);
            drain.credit -= ended as f64;
            if ended > 0 {
                tracing::info!(ended, "streams are ended, because this replica has more than its share");
            }
        }
    }
}

/// How many streams may be ended.
#[derive(Debug)]
struct Drain {
    /// The share of the streams that may be ended in a second.
    rate: f64,
    credit: f64,
}

impl Drain {
    /// How many streams may be ended now.
    fn tick(&mut self, share: StreamShare) -> usize {
        let surplus = surplus(share);
        if surplus == 0 {
            self.credit = 0.0;
            return 0;
        }
        let added = share.own as f64 * self.rate * TICK.as_secs_f64();
        self.credit = (self.credit + added).min(added.max(1.0));
        surplus.min(self.credit as usize)
    }
}

/// How many streams this replica has beyond 1.1 times its share.
fn surplus(StreamShare { own, all, replicas }: StreamShare) -> usize {
    if replicas < 2 {
        return 0;
    }
    let allowed = (all as f64 / replicas as f64 * TOLERANCE).ceil() as usize;
    own.saturating_sub(allowed)
}

const TICK: Duration = Duration::from_secs(1);

const TOLERANCE: f64 = 1.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_beyond_the_share_is_ended_and_never_on_a_single_replica() {
        for (own, all, replicas, expected) in [
            (1000, 1000, 1, 0),
            (1000, 1000, 2, 450),
            (550, 1000, 2, 0),
            (551, 1000, 2, 1),
            (400, 1000, 3, 33),
            (0, 0, 3, 0),
            (1, 1, 3, 0),
            (2, 2, 2, 0),
            (10, 10, 2, 4),
        ] {
            assert_eq!(surplus(StreamShare { own, all, replicas }), expected, "{own} of {all} on {replicas}");
        }
    }

    #[test]
    fn at_most_a_hundredth_is_ended_in_a_second() {
        let mut drain = Drain { rate: 0.01, credit: 0.0 };
        let share = StreamShare { own: 1000, all: 1000, replicas: 2 };
        let mut ended = 0;
        for _ in 0..20 {
            let count = drain.tick(share);
            assert!(count <= 10);
            drain.credit -= count as f64;
            ended += count;
        }
        assert!((199..=200).contains(&ended), "{ended}");
        // One of a few streams now and then.
        let share = StreamShare { own: 20, all: 20, replicas: 2 };
        let mut drain = Drain { rate: 0.01, credit: 0.0 };
        let counts: Vec<_> = (0..12)
            .map(|_| {
                let count = drain.tick(share);
                drain.credit -= count as f64;
                count
            })
            .collect();
        assert!(counts.iter().sum::<usize>() == 2 && counts.iter().all(|count| *count <= 1), "{counts:?}");
    }
}
