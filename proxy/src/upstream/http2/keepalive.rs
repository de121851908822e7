//! Finds out if the target of an HTTP/2 connection still answers, by PING frames (RFC 9113, section 6.7).

use std::task::{Context, Waker};

use h2::{Ping, PingPong};

/// The liveness check of one connection.
#[derive(Default)]
pub struct Keepalive {
    pub pings: Option<PingPong>,
    state: State,
}

/// The state, with the number of sweeps that it has lasted; they are a second apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Silent(u32),
    /// A PING was sent, and not answered.
    Pinged(u32),
    /// The PING was answered, and nothing else has come.
    Ponged(u32),
}

/// A target that is silent for so many sweeps while it has requests gets a PING.
const PING_AFTER: u32 = 5;
/// A target that does not answer a PING within so many sweeps is dead.
const PONG_WITHIN: u32 = 5;
/// A target that answers but is silent gets the next PING after so many sweeps: gRPC servers close connections on which they
/// are pinged more often (gRPC proposal A8).
const PING_AGAIN_AFTER: u32 = 300;

impl Keepalive {
    /// Goes one sweep on, and tells if the target is dead. `received`: something was read since the last sweep. `busy`: there are
    /// requests.
    pub fn is_dead(&mut self, received: bool, busy: bool) -> bool {
        let Some(pings) = &mut self.pings else { return false };
        let mut ping = false;
        self.state = match self.state {
            State::Pinged(_) if pings.poll_pong(&mut Context::from_waker(Waker::noop())).is_ready() => {
                State::Ponged(0)
            }
            State::Pinged(_) if received => State::Pinged(0),
            State::Pinged(sweeps) if sweeps + 1 >= PONG_WITHIN => return true,
            State::Pinged(sweeps) => State::Pinged(sweeps + 1),
            _ if received || !busy => State::Silent(0),
            State::Silent(sweeps) if sweeps + 1 >= PING_AFTER => {
                ping = true;
                State::Pinged(0)
            }
            State::Silent(sweeps) => State::Silent(sweeps + 1),
            State::Ponged(sweeps) if sweeps + 1 >= PING_AGAIN_AFTER => {
                ping = true;
                State::Pinged(0)
            }
            State::Ponged(sweeps) => State::Ponged(sweeps + 1),
        };
        if ping && pings.send_ping(Ping::opaque()).is_err() {
            // The connection is ending, or another ping is on its way.
            self.state = State::Silent(0);
        }
        false
    }
}

impl Default for State {
    fn default() -> Self {
        Self::Silent(0)
    }
}
