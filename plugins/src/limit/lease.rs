//! The part of a shared limit that a proxy holds for a client, and spends without asking.

use smallvec::SmallVec;

use super::budget::Verdict;
use super::shared::Grant;

/// The units that a proxy holds for a client. Times are the proxy's, nanoseconds.
///
/// The units are counted in the shared count from the time when they were granted. So a fleet never admits more than the limit,
/// except that a unit may be spent up to `life` after it was counted: in a span of time no more pass than the limit and the
/// units that all proxies held at its beginning.
#[derive(Debug, Clone, Default)]
pub(super) struct Lease {
    /// Oldest first.
    parcels: SmallVec<[Parcel; 2]>,
    /// True while a wish for more is under way.
    pub(super) asks: bool,
    /// Until when requests are refused without asking.
    refused_until: u64,
    /// The content of the last answer, and the time when it came.
    told: Option<(u64, Verdict)>,
}

/// Units that were granted at once.
#[derive(Debug, Clone, Copy)]
struct Parcel {
    units: u64,
    /// The time under which the shared count has them.
    counted_at: u64,
    expires: u64,
}

/// The way in which a request is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spend {
    /// It is admitted, or refused.
    Decided(Verdict),
    /// It is admitted, and so many units are to be asked for, because few are left.
    Renew(Verdict, u64),
    /// It must ask: for itself, and for so many units more.
    Ask(u64),
}

/// Units to give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Returned {
    pub(super) units: u64,
    pub(super) counted_at: u64,
}

impl Lease {
    /// Decides on a request. `size` is the number of units that the proxy holds at most.
    pub(super) fn spend(&mut self, now: u64, size: u64) -> Spend {
        if let Some(parcel) = self.parcels.iter_mut().find(|parcel| parcel.units > 0 && parcel.expires > now)
        {
            parcel.units -= 1;
            let held = self.held();
            let verdict = self.verdict(now, None);
            // Not before the lease is half spent, and one at a time.
            if 2 * held <= size && !self.asks {
                self.asks = true;
                return Spend::Renew(verdict, size - held);
            }
            return Spend::Decided(verdict);
        }
        if self.refused_until > now {
            return Spend::Decided(self.verdict(now, Some(self.refused_until - now)));
        }
        // Several requests that ask at once must not take several leases.
        let extra =
            if std::mem::replace(&mut self.asks, true) { 0 } else { size.saturating_sub(self.held()) };
        Spend::Ask(extra)
    }

    /// Notes the answer to a wish that came at `now`, of which `spent` units were for a request; the others can be spent for
    /// `life`. `asked_extra`: the wish was the one that [`Lease::asks`] stands for.
    pub(super) fn granted(&mut self, now: u64, grant: &Grant, spent: u64, life: u64, asked_extra: bool) {
        self.told = Some((now, grant.verdict));
        if asked_extra {
            self.asks = false;
        }
        self.parcels.retain(|parcel| parcel.units > 0);
        let units = grant.granted.saturating_sub(spent);
        if units > 0 {
            let counted_at = grant.verdict.counted_at;
            self.parcels.push(Parcel { units, counted_at, expires: now.saturating_add(life) });
        }
        if let Some(wait) = grant.verdict.refused_for {
            // Others may give back what they hold.
            self.refused_until = now.saturating_add(wait.min(life));
        }
    }

    /// Notes that a wish was not answered.
    pub(super) fn failed(&mut self, asked_extra: bool) {
        if asked_extra {
            self.asks = false;
        }
    }

    /// Takes out the units that were not spent in time.
    pub(super) fn expired(&mut self, now: u64) -> SmallVec<[Returned; 2]> {
        let due = self.parcels.iter().filter(|parcel| parcel.expires <= now && parcel.units > 0);
        let returned =
            due.map(|parcel| Returned { units: parcel.units, counted_at: parcel.counted_at }).collect();
        self.parcels.retain(|parcel| parcel.expires > now && parcel.units > 0);
        returned
    }

    /// True if nothing would be lost with it.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        self.parcels.is_empty() && !self.asks && self.refused_until <= now
    }

    /// The units that are held, those that have expired and are not given back yet included.
    pub(super) fn held(&self) -> u64 {
        self.parcels.iter().map(|parcel| parcel.units).sum()
    }

    /// The knowledge at `now`.
    fn verdict(&self, now: u64, refused_for: Option<u64>) -> Verdict {
        let Some((at, told)) = &self.told else {
            return Verdict { remaining: self.held(), more_in: 0, reset_in: 0, refused_for, counted_at: 0 };
        };
        let elapsed = now.saturating_sub(*at);
        let remaining = if refused_for.is_some() { 0 } else { told.remaining + self.held() };
        let more_in = told.more_in.saturating_sub(elapsed);
        // More cannot come later than a request would pass.
        let more_in = refused_for.map_or(more_in, |wait| more_in.min(wait));
        let reset_in = told.reset_in.saturating_sub(elapsed);
        Verdict { remaining, more_in, reset_in, refused_for, counted_at: 0 }
    }
}
