//! How events leave the pending, and come back to them: each along a legal arrow, counted as it goes.

use super::row::{Addressee, NewItem, State};
use super::store::Store;
use crate::clock::Timestamp;
use crate::item::Disposition;
use crate::reason::{Code, Reason};
use rusqlite::{OptionalExtension, params};

/// Answers kept for one event: the first trouble is seldom older than this many, the last ones matter most.
const MAX_ATTEMPTS_KEPT: i64 = 16;

/// How one pending event is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The receiver accepted it.
    Delivered,
    /// There is nothing to send; whether its body is kept for a while.
    Skipped(Reason),
    /// No request can be made of it, or the receiver refused it.
    Failed(Reason),
    /// Given up by hand.
    Discarded,
}

impl Settled {
    /// The state that it leads to.
    pub fn state(&self) -> State {
        match self {
            Settled::Delivered => State::Delivered,
            Settled::Skipped(_) => State::Skipped,
            Settled::Failed(_) => State::Failed,
            Settled::Discarded => State::Discarded,
        }
    }

    pub(super) fn reason(&self) -> (&str, &str) {
        match self {
            Settled::Skipped(r) | Settled::Failed(r) => (r.code.as_str(), &r.text),
            Settled::Delivered | Settled::Discarded => ("", ""),
        }
    }
}

impl Store {
    /// Whether the body of an event settled like this stays for a while.
    pub(super) fn keeps_body(&self, settled: &Settled) -> bool {
        match settled {
            Settled::Delivered => !self.settings.keep_bodies.is_zero(),
            Settled::Skipped(reason) => {
                // The producer has said that this event is none of Koala's business.
                !matches!(reason.code, Code::IntegrationsOff | Code::NoConsent | Code::Erased)
                    && !self.settings.keep_skipped.is_zero()
            }
            Settled::Failed(_) => true,
            Settled::Discarded => false,
        }
    }

    /// Settles pending items, and with its last item an event; those that are not pending any more are left as they
    /// are. `is_read_version`: those that are delivered are pending, each all that is made of its event.
    pub(super) fn settle(
        &mut self,
        rows: &[(i64, Settled)],
        is_read_version: bool,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        for (seq, settled) in rows {
            debug_assert!(State::Pending.may_become(settled.state()));
            if is_read_version && *settled == Settled::Delivered {
                self.mark(*seq, now);
                continue;
            }
            let row: Option<(String, Option<i64>, String)> = self
                .cached("SELECT person, event_seq, mapping FROM pending WHERE seq = ?")?
                .query_row([seq], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
                .optional()?;
            let Some((mut person, event_seq, mapping)) = row.filter(|_| !self.acks.contains(*seq)) else {
                continue;
            };
            if event_seq.is_none() && *settled == Settled::Delivered {
                self.mark(*seq, now);
                continue;
            }
            let summed;
            let settled = match event_seq {
                None => settled,
                Some(event_seq) => {
                    self.settle_item(event_seq, &mapping, settled, now)?;
                    if self.others_wait(event_seq, *seq)? {
                        self.cached("DELETE FROM pending WHERE seq = ?")?.execute([seq])?;
                        continue;
                    }
                    summed = self.sum_of_items(event_seq)?;
                    &summed
                }
            };
            let state = settled.state();
            let keeps_body = self.keeps_body(settled);
            if !keeps_body {
                person = self.person_key.hashed(&person);
            }
            let (code, reason) = settled.reason();
            self.cached(
                "INSERT INTO settled (seq, state, message_id, type, event, person, digest, file, place,
                                      spooled_at, received_at, settled_at, attempts, code, reason)
                 SELECT coalesce(event_seq, seq), ?2, message_id, type, event, ?3, digest, file, place, spooled_at,
                        received_at, ?4,
                        (SELECT coalesce(max(n), 0) FROM attempts a WHERE a.seq = coalesce(event_seq, p.seq)) + ?5,
                        ?6, ?7
                   FROM pending p WHERE seq = ?1",
            )?
            .execute(params![
                seq, state.as_str(), person, now.0, i64::from(state == State::Delivered), code, reason
            ])?;
            if keeps_body {
                self.cached(
                    "INSERT INTO bodies (seq, state, settled_at, body)
                     SELECT coalesce(event_seq, seq), ?2, ?3, body FROM pending WHERE seq = ?1",
                )?
                .execute(params![seq, state.as_str(), now.0])?;
            }
            self.cached("DELETE FROM pending WHERE seq = ?")?.execute([seq])?;
            self.counted.add(State::Pending.as_str(), "", -1);
            self.counted.add(state.as_str(), Code::parse(code).map_or("", Code::as_str), 1);
        }
        Ok(())
    }

    /// Notes an answer other than acceptance with the events of these items.
    pub(super) fn note_attempts(
        &mut self,
        seqs: &[i64],
        reason: &Reason,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        for seq in seqs {
            let event: Option<i64> = self
                .cached("SELECT coalesce(event_seq, seq) FROM pending WHERE seq = ?")?
                .query_row([seq], |r| r.get(0))
                .optional()?;
            let Some(seq) = event else { continue };
            self.cached(
                "INSERT INTO attempts (seq, n, at, code, reason)
                 SELECT ?1, coalesce((SELECT max(n) FROM attempts WHERE seq = ?1), 0) + 1, ?2, ?3, ?4",
            )?
            .execute(params![seq, now.0, reason.code.as_str(), reason.text])?;
            self.cached(
                "DELETE FROM attempts
                  WHERE seq = ?1 AND n <= (SELECT max(n) FROM attempts WHERE seq = ?1) - ?2",
            )?
            .execute(params![seq, MAX_ATTEMPTS_KEPT])?;
        }
        Ok(())
    }

    /// Puts a settled event whose body was kept back among the pending: those of its items that were not delivered, or
    /// all of an event that was. `false`: it is not settled, may not go back, or has no body any more.
    pub(super) fn requeue(
        &mut self,
        seq: i64,
        items: &[NewItem],
        now: Timestamp,
    ) -> Result<bool, rusqlite::Error> {
        let Some((state, code)) = self.settled_state(seq)? else { return Ok(false) };
        let has_body: bool = self
            .cached("SELECT EXISTS (SELECT 1 FROM bodies WHERE seq = ?)")?
            .query_row([seq], |r| r.get(0))?;
        if !state.may_become(State::Pending) || !has_body {
            return Ok(false);
        }
        let again = if state == State::Delivered { "true" } else { "state <> 'delivered'" };
        self.cached(&format!("DELETE FROM settled_items WHERE seq = ? AND {again}"))?.execute([seq])?;
        let left = self.undelivered(seq, items)?;
        let waiting = left.iter().filter(|item| matches!(item.disposition, Disposition::Send(_))).count();
        if waiting == 0 {
            return Ok(false);
        }
        let event_seq = (items.len() > 1).then_some(seq);
        let mut n = 0;
        for item in left {
            let Disposition::Send(Addressee { ordering_key, person }) = &item.disposition else {
                self.settle_item(seq, &item.mapping, &Settled::from(&item.disposition), now)?;
                continue;
            };
            let place = self.place_for_item(seq, n)?;
            n += 1;
            self.cached(
                "INSERT INTO pending (seq, ordering_key, message_id, type, event, person, digest, file, place,
                                      spooled_at, received_at, body, mapping, event_seq)
                 SELECT ?2, ?3, s.message_id, s.type, s.event, ?4, s.digest, s.file, s.place, s.spooled_at,
                        s.received_at, b.body, ?5, ?6
                   FROM settled s JOIN bodies b ON b.seq = s.seq WHERE s.seq = ?1",
            )?
            .execute(params![seq, place, ordering_key.0, person, &*item.mapping, event_seq])?;
        }
        self.cached("DELETE FROM settled WHERE seq = ?")?.execute([seq])?;
        self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
        self.counted.add(state.as_str(), code, -1);
        self.counted.add(State::Pending.as_str(), "", 1);
        Ok(true)
    }

    /// Gives up an event: its body is erased and it is never sent. `false`: it may not become `discarded`.
    pub(super) fn discard(&mut self, seq: i64, now: Timestamp) -> Result<bool, rusqlite::Error> {
        if let Some((state, code)) = self.settled_state(seq)? {
            if !state.may_become(State::Discarded) {
                return Ok(false);
            }
            let person: Option<String> =
                self.cached("SELECT person FROM settled WHERE seq = ?")?.query_row([seq], |r| r.get(0))?;
            let person = person.map(|p| self.person_key.hashed(&p));
            self.cached(
                "UPDATE settled SET state = 'discarded', person = ?2, settled_at = ?3, code = '', reason = ''
                  WHERE seq = ?1",
            )?
            .execute(params![seq, person, now.0])?;
            self.cached("DELETE FROM bodies WHERE seq = ?")?.execute([seq])?;
            self.counted.add(state.as_str(), code, -1);
            self.counted.add(State::Discarded.as_str(), "", 1);
            return Ok(true);
        }
        // Of several items one is left to carry the event.
        self.cached(
            "DELETE FROM pending WHERE event_seq = ?1 AND seq > (SELECT min(seq) FROM pending WHERE event_seq = ?1)",
        )?
        .execute([seq])?;
        self.cached("DELETE FROM settled_items WHERE seq = ?")?.execute([seq])?;
        self.cached("UPDATE pending SET seq = event_seq, event_seq = NULL WHERE event_seq = ?")?
            .execute([seq])?;
        self.settle(&[(seq, Settled::Discarded)], false, now)?;
        Ok(self.settled_state(seq)?.is_some())
    }

    pub(super) fn settled_state(&self, seq: i64) -> Result<Option<(State, &'static str)>, rusqlite::Error> {
        let row: Option<(String, String)> = self
            .cached("SELECT state, code FROM settled WHERE seq = ?")?
            .query_row([seq], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        Ok(row.and_then(|(state, code)| {
            Some((State::parse(&state)?, Code::parse(&code).map_or("", Code::as_str)))
        }))
    }
}
