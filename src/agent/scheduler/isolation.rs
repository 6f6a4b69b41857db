//! Events were refused (a 400): are they at fault, or is everybody refused?
//!
//! The request waits, and one event of another ordering key is the canary. Is that refused too, everybody is: the destination
//! is `refused` and nothing is split. Is it taken, the request is split in order, until one event is refused alone; that
//! one has an isolation of its own, and fails if its canary is taken.
//!
//! An isolation lasts from a refusal to the answer of its canary. Whatever else happens meanwhile ends it without a
//! conclusion, and the events are asked again: so an event fails only by the receiver's refusal right beside proof
//! that it takes others.

use super::{AnswerEffects, InFlight, MAX_REQUEST_BYTES, Next, Scheduler, Selection};
use crate::clock::Moment;
use crate::item::OrderingKey;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};

/// Events that were refused, and nobody knows yet whether the fault is theirs. Their ordering key stands still.
#[derive(Debug)]
pub(super) struct Isolation {
    key: OrderingKey,
    first: i64,
    count: usize,
    reason: Reason,
    /// The ordering key's second event was looked for, to be the canary.
    pub(super) sought_second: bool,
}

/// An isolation ended with nobody to compare with: all that waits was refused. The next to arrive is the canary.
#[derive(Debug)]
pub(super) struct AwaitedCanary {
    key: OrderingKey,
    /// The ordering key's own next event would do: it has been refused but one.
    own: bool,
    /// Somebody has arrived.
    pub(super) over: bool,
}

impl Scheduler {
    /// Events were refused. Returns the reason as it is shown with them.
    pub(super) fn doubtful(
        &mut self,
        in_flight: &InFlight,
        mut reason: Reason,
        is_canary: bool,
        current: bool,
        now: Moment,
    ) -> Reason {
        let (key, count) = (in_flight.plan.key, in_flight.seqs.len());
        let Some(&first) = in_flight.seqs.first() else { return reason };
        if let Some(isolation) = self.isolation.take_if(|_| is_canary) {
            // Two were refused one after the other: the fault is not theirs.
            self.keys.set_bisect_range(isolation.key, isolation.count);
            if key != isolation.key {
                self.keys.set_bisect_range(key, count);
            }
            let awaited_canary =
                (key == isolation.key).then_some(AwaitedCanary { key, own: false, over: false });
            self.refuse_all(&reason, awaited_canary, now);
            return reason;
        }
        let busy = self.isolation.is_some() || self.exclusive.is_some();
        let splitting = self.keys.bisect_range(key) > 0 && count > 1;
        let known = self.destination.refuses() && (self.destination.refuses_all() || !current);
        if busy || splitting || known || in_flight.plan.selection == Selection::Second {
            if in_flight.plan.selection != Selection::Second {
                self.keys.set_bisect_range(key, count);
            }
            if known && current {
                let awaited_canary = self.awaited_canary.take();
                self.refuse_all(&reason, awaited_canary, now);
            }
            return reason;
        }
        if self.destination.refuses() {
            // It refused the key or the address before; now it reads what it is sent.
            self.destination.reopen(now);
            self.entered();
        }
        self.isolation = Some(Isolation { key, first, count, reason: reason.clone(), sought_second: false });
        if count == 1 {
            reason.text.push_str("; in doubt until the receiver takes an event that is sent after this one");
        }
        reason
    }

    /// The canary was taken: an event that was refused alone fails, several are split.
    pub(super) fn conclude(&mut self, isolation: Isolation, effects: &mut AnswerEffects) {
        if isolation.count > 1 {
            return self.keys.set_bisect_range(isolation.key, isolation.count);
        }
        self.keys.clear(isolation.key, 1);
        effects.rows.push((isolation.first, Settled::Failed(isolation.reason)));
        if !effects.keys.contains(&isolation.key) {
            effects.keys.push(isolation.key);
        }
    }

    /// An event of that ordering key has come, which may serve as a canary.
    pub(super) fn arrived(&mut self, key: OrderingKey) {
        if let Some(awaited_canary) = &mut self.awaited_canary {
            awaited_canary.over |=
                self.keys.bisect_range(key) == 0 || (awaited_canary.own && awaited_canary.key == key);
        }
    }

    /// With nobody else to serve as a canary a request can still be split, which blames nobody; and the person's
    /// next event can be the canary for one alone.
    pub(super) fn without_canary(&mut self, mut isolation: Isolation, now: Moment) -> Next {
        let (key, count) = (isolation.key, isolation.count);
        if count == 1 && !isolation.sought_second {
            isolation.sought_second = true;
            self.isolation = Some(isolation);
            let plan = self.plan_of(key, Selection::Second);
            return self.start(plan);
        }
        self.keys.set_bisect_range(key, count);
        if count == 1 {
            self.refuse_all(&isolation.reason, Some(AwaitedCanary { key, own: true, over: false }), now);
        }
        self.next(now)
    }

    fn refuse_all(&mut self, reason: &Reason, awaited_canary: Option<AwaitedCanary>, now: Moment) {
        self.destination.refuse(Reason::new(Code::RefusesAll, reason.text.clone()), now);
        self.entered();
        self.awaited_canary = awaited_canary;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// Ends an isolation without a conclusion.
    pub(super) fn abort(&mut self) {
        if let Some(isolation) = self.isolation.take() {
            self.keys.set_bisect_range(isolation.key, isolation.count);
        }
    }
}
