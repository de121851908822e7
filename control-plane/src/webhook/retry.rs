//! Decides what follows from an attempt to deliver an event.

use std::time::Duration;

use http::StatusCode;

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver answered; with the pause that it asks for, if it does.
    Answered(StatusCode, Option<Duration>),
    /// It did not: the connection, TLS or the time failed, or a secret of the webhook could not be read.
    Failed,
}

/// The consequence of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has the event.
    Delivered,
    /// The receiver does not want it, so that it is not sent again.
    Refused,
    /// It has failed for too long.
    GaveUp,
    /// It is sent again after this time.
    Again(Duration),
}

/// An event is not sent again so long after its first attempt.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The first pause, and the longest one. A receiver may ask for less, but not for less than `SHORTEST`.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);
const SHORTEST: Duration = Duration::from_millis(200);

/// Decides after the attempt number `attempts`, from 1. `age` is the time since the first one began. `jitter`, from 0 to 1, spreads the
/// attempts of many webhooks.
pub(super) fn judge(outcome: Outcome, attempts: u32, age: Duration, jitter: f64) -> Verdict {
    let wanted = match outcome {
        Outcome::Answered(status, _) if status.is_success() => return Verdict::Delivered,
        Outcome::Answered(status, after) if is_worth_another(status) => after,
        Outcome::Answered(..) => return Verdict::Refused,
        Outcome::Failed => None,
    };
    let doubled = FIRST.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1))).min(LONGEST);
    // From one half of it to all of it.
    let pause = doubled.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    let pause = wanted.map_or(pause, |wanted| wanted.clamp(SHORTEST, LONGEST));
    if age.saturating_add(pause) > PATIENCE { Verdict::GaveUp } else { Verdict::Again(pause) }
}

/// True if the receiver may give another answer later. Redirects are not followed, so they are none.
fn is_worth_another(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answered(status: u16) -> Outcome {
        Outcome::Answered(StatusCode::from_u16(status).unwrap(), None)
    }

    fn asked(status: u16, after: Duration) -> Outcome {
        Outcome::Answered(StatusCode::from_u16(status).unwrap(), Some(after))
    }

    #[test]
    fn statuses_decide() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judge(answered(status), 1, SECOND, 0.0), Verdict::Delivered, "{status}");
        }
        for status in [300, 301, 302, 307, 308, 400, 401, 403, 404, 409, 410, 413, 422, 451] {
            assert_eq!(judge(answered(status), 1, SECOND, 0.0), Verdict::Refused, "{status}");
        }
        for status in [408, 429, 500, 501, 502, 503, 504, 599] {
            assert_eq!(judge(answered(status), 1, SECOND, 1.0), Verdict::Again(SECOND), "{status}");
        }
        assert_eq!(judge(Outcome::Failed, 1, SECOND, 1.0), Verdict::Again(SECOND));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_are_spread() {
        for (attempts, jitter, millis) in [
            (1, 0.0, 500),
            (1, 1.0, 1000),
            (2, 1.0, 2000),
            (4, 0.5, 6000),
            (10, 1.0, 512_000),
            (11, 1.0, 600_000),
            (50, 0.0, 300_000),
            (u32::MAX, 1.0, 600_000),
            (0, 1.0, 1000),
        ] {
            let pause = Duration::from_millis(millis);
            assert_eq!(judge(Outcome::Failed, attempts, SECOND, jitter), Verdict::Again(pause), "{attempts}");
        }
    }

    #[test]
    fn the_receiver_may_ask_for_a_pause_within_bounds() {
        for (after, pause) in [
            (Duration::ZERO, SHORTEST),
            (SECOND, SECOND),
            (Duration::from_secs(90), Duration::from_secs(90)),
            (Duration::from_secs(86_400), LONGEST),
            (Duration::MAX, LONGEST),
        ] {
            for status in [408, 429, 503] {
                assert_eq!(judge(asked(status, after), 7, SECOND, 0.3), Verdict::Again(pause), "{after:?}");
            }
        }
        assert_eq!(judge(asked(404, SECOND), 1, SECOND, 0.0), Verdict::Refused);
    }

    #[test]
    fn it_is_given_up_after_an_hour() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!(judge(Outcome::Failed, 12, minutes(49), 1.0), Verdict::Again(minutes(10)));
        assert_eq!(judge(Outcome::Failed, 13, minutes(51), 1.0), Verdict::GaveUp);
        assert_eq!(judge(Outcome::Failed, 1, Duration::MAX, 0.0), Verdict::GaveUp);
        assert_eq!(judge(answered(200), 13, minutes(51), 1.0), Verdict::Delivered);
        // So often in the usual case.
        let (mut age, mut attempts) = (Duration::ZERO, 1);
        while let Verdict::Again(pause) = judge(Outcome::Failed, attempts, age, 0.5) {
            age += pause;
            attempts += 1;
        }
        assert!((12..20).contains(&attempts) && age > minutes(45), "{attempts} in {age:?}");
    }
}
