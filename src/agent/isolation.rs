//! Finds out whether refused events (a 400) are to blame, or the receiver refuses everybody. Pure.
//!
//! The refused events are held, and one event of another ordering key is sent as the canary. If the receiver refuses that
//! too, it refuses everybody: the destination is `refused`, and no event is blamed. If it accepts the canary, the refused
//! request is bisected in order, until one event is refused alone; an isolation of its own then decides whether it fails.
//!
//! An isolation lasts from a refusal to the answer to its canary. Anything else that happens meanwhile aborts it without a
//! conclusion, and the events are sent again: so an event fails only by a refusal right before the proof that the receiver
//! accepts others. A count of refusals would blame events for a receiver that refuses everybody for a while.

use super::ordering_keys::OrderingKeys;
use crate::item::OrderingKey;
use crate::reason::Reason;

/// The state of the isolation: none is running, events are held, or the next event to arrive is awaited as a canary.
#[derive(Debug, Default)]
pub struct Isolation {
    held: Option<RefusedEvents>,
    pub awaited_canary: Option<AwaitedCanary>,
}

/// Refused events that are held until the answer to the canary.
#[derive(Debug)]
struct RefusedEvents {
    key: OrderingKey,
    oldest: i64,
    count: usize,
    reason: Reason,
    /// Whether the second event of the ordering key was tried as the canary.
    has_tried_second: bool,
}

/// The next event to arrive is the canary of an isolation that ended for want of one: all pending events were refused.
#[derive(Debug)]
pub struct AwaitedCanary {
    key: OrderingKey,
    /// Whether the next event of `key` itself serves, because only one of its events was refused.
    accepts_own: bool,
    has_arrived: bool,
}

/// The next step when no ordering key is left to serve as the canary.
#[derive(Debug)]
pub enum WithoutCanary {
    /// Send the second event of this ordering key as the canary.
    TrySecond(OrderingKey),
    /// Go on with the request bisected, which blames nobody.
    Bisect,
    /// Treat the receiver as refusing everybody, for this reason, until a canary arrives.
    RefusesAll(Reason, AwaitedCanary),
}

impl Isolation {
    pub fn is_running(&self) -> bool {
        self.held.is_some()
    }

    /// Holds the `count` oldest events of an ordering key, which were refused.
    pub fn begin(&mut self, key: OrderingKey, oldest: i64, count: usize, reason: Reason) {
        self.held = Some(RefusedEvents { key, oldest, count, reason, has_tried_second: false });
    }

    /// Ends a running isolation without a conclusion.
    pub fn abort(&mut self, keys: &mut OrderingKeys) {
        if let Some(held) = self.held.take() {
            keys.set_bisect_range(held.key, held.count);
        }
    }

    /// Concludes that the receiver accepts others. Several events are bisected; one that was refused alone has failed,
    /// and is returned.
    pub fn canary_accepted(&mut self, keys: &mut OrderingKeys) -> Option<(OrderingKey, i64, Reason)> {
        let held = self.held.take()?;
        if held.count > 1 {
            keys.set_bisect_range(held.key, held.count);
            return None;
        }
        keys.forget_failures(held.key, 1);
        Some((held.key, held.oldest, held.reason))
    }

    /// Concludes that the receiver refuses everybody, because it refused the canary: `count` events of `key`. Returns the
    /// canary to await, if the canary was of the same ordering key.
    pub fn canary_refused(
        &mut self,
        key: OrderingKey,
        count: usize,
        keys: &mut OrderingKeys,
    ) -> Option<AwaitedCanary> {
        let held = self.held.take()?;
        keys.set_bisect_range(held.key, held.count);
        if key == held.key {
            return Some(AwaitedCanary { key, accepts_own: false, has_arrived: false });
        }
        keys.set_bisect_range(key, count);
        None
    }

    /// Decides how to go on where no other ordering key can serve as the canary; `None`: no isolation is running.
    pub fn without_canary(&mut self, keys: &mut OrderingKeys) -> Option<WithoutCanary> {
        let held = self.held.as_mut()?;
        let (key, count) = (held.key, held.count);
        if count == 1 && !held.has_tried_second {
            held.has_tried_second = true;
            return Some(WithoutCanary::TrySecond(key));
        }
        let reason = self.held.take()?.reason;
        keys.set_bisect_range(key, count);
        if count > 1 {
            return Some(WithoutCanary::Bisect);
        }
        let awaited = AwaitedCanary { key, accepts_own: true, has_arrived: false };
        Some(WithoutCanary::RefusesAll(reason, awaited))
    }

    /// Notes that the second event was settled without being sent, so that there may be another second one.
    pub fn second_is_settled(&mut self) {
        if let Some(held) = &mut self.held {
            held.has_tried_second = false;
        }
    }

    /// Whether the awaited canary has arrived.
    pub fn has_canary_arrived(&self) -> bool {
        self.awaited_canary.as_ref().is_some_and(|awaited| awaited.has_arrived)
    }

    /// Notes that an event of that ordering key has arrived.
    pub fn event_arrived(&mut self, key: OrderingKey, keys: &OrderingKeys) {
        if let Some(awaited) = &mut self.awaited_canary {
            awaited.has_arrived |= keys.bisect_range(key) == 0 || (awaited.accepts_own && awaited.key == key);
        }
    }
}
