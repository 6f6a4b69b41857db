//! Events were refused (a 400): are they at fault, or is everybody refused?
//!
//! The request waits, and one event of another lane is the control. Is that refused too, everybody is: the destination
//! is `refused` and nothing is split. Is it taken, the request is split in order, until one event is refused alone; that
//! one has a trial of its own, and fails if its control is taken.
//!
//! A trial lasts from a refusal to the answer of its control. Whatever else happens meanwhile ends it without a
//! sentence, and the events are asked again: so an event fails only by the receiver's refusal right beside proof
//! that it takes others.

use super::{Dispatch, MAX_REQUEST_BYTES, Next, Outcome, Take, Ticket};
use crate::clock::Moment;
use crate::item::Lane;
use crate::outbox::Settled;
use crate::reason::{Code, Reason};

/// Events that were refused, and nobody knows yet whether the fault is theirs. Their lane stands still.
#[derive(Debug)]
pub(super) struct Trial {
    lane: Lane,
    first: i64,
    count: usize,
    reason: Reason,
    /// The lane's second event was looked for, to be the control.
    pub(super) sought_second: bool,
}

/// A trial ended with nobody to compare with: all that waits was refused. The next to arrive is the control.
#[derive(Debug)]
pub(super) struct Lonely {
    lane: Lane,
    /// The lane's own next event would do: it has been refused but one.
    own: bool,
    /// Somebody has arrived.
    pub(super) over: bool,
}

impl Dispatch {
    /// Events were refused. Returns the reason as it is shown with them.
    pub(super) fn doubtful(
        &mut self,
        ticket: &Ticket,
        mut reason: Reason,
        is_control: bool,
        current: bool,
        now: Moment,
    ) -> Reason {
        let (lane, count) = (ticket.order.lane, ticket.seqs.len());
        let Some(&first) = ticket.seqs.first() else { return reason };
        if let Some(trial) = self.trial.take_if(|_| is_control) {
            // Two were refused one after the other: the fault is not theirs.
            self.lanes.suspect(trial.lane, trial.count);
            if lane != trial.lane {
                self.lanes.suspect(lane, count);
            }
            let lonely = (lane == trial.lane).then_some(Lonely { lane, own: false, over: false });
            self.refuse_all(&reason, lonely, now);
            return reason;
        }
        let busy = self.trial.is_some() || self.decisive.is_some();
        let splitting = self.lanes.suspects(lane) > 0 && count > 1;
        let known = self.destination.refuses() && (self.destination.refuses_all() || !current);
        if busy || splitting || known || ticket.order.take == Take::Second {
            if ticket.order.take != Take::Second {
                self.lanes.suspect(lane, count);
            }
            if known && current {
                let lonely = self.lonely.take();
                self.refuse_all(&reason, lonely, now);
            }
            return reason;
        }
        if self.destination.refuses() {
            // It refused the key or the address before; now it reads what it is sent.
            self.destination.reopen(now);
            self.entered();
        }
        self.trial = Some(Trial { lane, first, count, reason: reason.clone(), sought_second: false });
        if count == 1 {
            reason.text.push_str("; in doubt until the receiver takes an event that is sent after this one");
        }
        reason
    }

    /// The control was taken: an event that was refused alone fails, several are split.
    pub(super) fn sentence(&mut self, trial: Trial, outcome: &mut Outcome) {
        if trial.count > 1 {
            return self.lanes.suspect(trial.lane, trial.count);
        }
        self.lanes.clear(trial.lane, 1);
        outcome.rows.push((trial.first, Settled::Failed(trial.reason)));
        if !outcome.lanes.contains(&trial.lane) {
            outcome.lanes.push(trial.lane);
        }
    }

    /// An event of that lane has come, which may serve as a control.
    pub(super) fn arrived(&mut self, lane: Lane) {
        if let Some(lonely) = &mut self.lonely {
            lonely.over |= self.lanes.suspects(lane) == 0 || (lonely.own && lonely.lane == lane);
        }
    }

    /// With nobody else to serve as a control a request can still be split, which blames nobody; and the person's
    /// next event can be the control for one alone.
    pub(super) fn without_control(&mut self, mut trial: Trial, now: Moment) -> Next {
        let (lane, count) = (trial.lane, trial.count);
        if count == 1 && !trial.sought_second {
            trial.sought_second = true;
            self.trial = Some(trial);
            let order = self.order_of(lane, Take::Second);
            return self.launch(order);
        }
        self.lanes.suspect(lane, count);
        if count == 1 {
            self.refuse_all(&trial.reason, Some(Lonely { lane, own: true, over: false }), now);
        }
        self.next(now)
    }

    fn refuse_all(&mut self, reason: &Reason, lonely: Option<Lonely>, now: Moment) {
        self.destination.refuse(Reason::new(Code::RefusesAll, reason.text.clone()), now);
        self.entered();
        self.lonely = lonely;
        self.max_bytes = MAX_REQUEST_BYTES;
    }

    /// Ends a trial without a sentence.
    pub(super) fn adjourn(&mut self) {
        if let Some(trial) = self.trial.take() {
            self.lanes.suspect(trial.lane, trial.count);
        }
    }
}
