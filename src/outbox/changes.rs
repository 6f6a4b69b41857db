//! The changes by hand, as the writer makes them: each in one transaction with its record and the act.

use super::acts::Acts;
use super::appended::Enqueued;
use super::commands::{Applied, ClaimedCommand, Commands, ErasedEvent, EventOutcome};
use super::id_segment::hash_id_text;
use super::row::{NewItem, State};
use super::tables::Tables;
use super::transitions::{Requeued, Transitions, erase};
use crate::clock::Timestamp;
use crate::reason::Code;
use rusqlite::{OptionalExtension, params};

/// A change that the writer makes in one transaction, with the record of it.
#[derive(Debug, Clone)]
pub struct Change {
    /// What is changed.
    pub work: Work,
    /// The command of which it is a step.
    pub of: Option<ClaimedCommand>,
    /// Whether the command is finished by it.
    pub is_last: bool,
}

/// What is changed in one transaction.
#[derive(Debug, Clone)]
pub enum Work {
    /// Nothing but the record.
    Nothing,
    /// Forgets who has claimed what: the one who had claimed it is gone.
    Unclaim,
    /// Claims a command.
    Claim(i64),
    /// Deletes commands that nobody waits for.
    Drop(Vec<i64>),
    /// Makes settled events pending again, as these items.
    Requeue(Vec<(i64, Vec<NewItem>)>),
    /// Drops events for good.
    Discard {
        /// The events.
        events: Vec<i64>,
        /// Those that were pending when the command came to them.
        waited: Vec<i64>,
        /// Items with a request that has got no answer.
        unanswered: Vec<i64>,
        /// Items in a request that is not answered yet: their events are left as they are.
        in_flight: Vec<i64>,
    },
    /// Suppresses a person, by the hash.
    Suppress(String),
    /// Ends that.
    Unsuppress(String),
    /// Erases events.
    Erase {
        /// The events.
        events: Vec<i64>,
        /// Items with a request that has got no answer.
        unanswered: Vec<i64>,
        /// Items in a request that is not answered yet.
        in_flight: Vec<i64>,
    },
    /// Erases the names of ingested files.
    ForgetNames(Vec<(i64, i64, i64)>),
}

impl Change {
    /// Makes the change. Must be called within [`Tables::transaction`].
    pub(super) fn apply(&self, tables: &mut Tables, now: Timestamp) -> Result<Applied, rusqlite::Error> {
        let applied = self.work.apply(tables, now)?;
        let Some(command) = &self.of else { return Ok(applied) };
        let mut command = command.clone();
        command.report.add(&applied);
        self.note_act(tables, &mut command, &applied, now)?;
        if let Some(id) = command.id {
            Commands(&tables.store.conn).record(id, &command, self.is_last.then_some(now))?;
        }
        Ok(Applied::Step { command: Box::new(command), enqueued: applied.enqueued() })
    }

    /// Records who has changed what.
    fn note_act(
        &self,
        tables: &Tables,
        command: &mut ClaimedCommand,
        applied: &Applied,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let Some(kind) = command.command.act() else { return Ok(()) };
        let changed = |(seq, outcome): &(i64, EventOutcome)| {
            matches!(outcome, EventOutcome::Requeued | EventOutcome::Discarded { .. }).then_some(*seq)
        };
        let (count, events): (usize, Vec<i64>) = match applied {
            Applied::Events { outcomes, .. } => {
                let events: Vec<i64> = outcomes.iter().filter_map(changed).collect();
                (events.len(), events)
            }
            // An erased person is not named by the events.
            Applied::Erased(events) => (events.len(), Vec::new()),
            Applied::WasSuppressed(true) => (1, Vec::new()),
            _ => return Ok(()),
        };
        let is_erasure = kind == "erase" && command.act.is_none();
        if count == 0 && !is_erasure {
            return Ok(());
        }
        let (acts, person) = (Acts(&tables.store.conn), command.command.person());
        let act = acts.add(command.act, kind, &command.asker, person, count as u64, now)?;
        acts.add_events(act, events)?;
        command.act = Some(act);
        Ok(())
    }
}

impl Work {
    fn apply(&self, tables: &mut Tables, now: Timestamp) -> Result<Applied, rusqlite::Error> {
        let done = |()| Applied::Done;
        match self {
            Work::Nothing => Ok(Applied::Done),
            Work::Unclaim => Commands(&tables.store.conn).unclaim_all().map(done),
            Work::Claim(id) => Commands(&tables.store.conn)
                .claim(*id, now)
                .map(|command| Applied::Claimed(command.map(Box::new))),
            Work::Drop(ids) => Commands(&tables.store.conn).drop(ids).map(done),
            Work::Requeue(events) => requeue(tables, events, now),
            Work::Discard { events, waited, unanswered, in_flight } => {
                let mut outcomes = Vec::with_capacity(events.len());
                for seq in events {
                    let mut outcome = discard(tables, *seq, unanswered, in_flight, now)?;
                    if let EventOutcome::Delivered { is_meanwhile } = &mut outcome {
                        *is_meanwhile = waited.contains(seq);
                    }
                    outcomes.push((*seq, outcome));
                }
                Ok(Applied::Events { outcomes, enqueued: Enqueued::default() })
            }
            Work::Suppress(hash) => {
                let conn = &tables.store.conn;
                tables.suppression.add(conn, hash, now).map(done)
            }
            Work::Unsuppress(hash) => {
                let conn = &tables.store.conn;
                tables.suppression.remove(conn, hash).map(Applied::WasSuppressed)
            }
            Work::Erase { events, unanswered, in_flight } => {
                let mut erased = Vec::with_capacity(events.len());
                for seq in events {
                    erased.extend(erase_event(tables, *seq, unanswered, in_flight)?);
                }
                Ok(Applied::Erased(erased))
            }
            Work::ForgetNames(files) => {
                let mut forget = tables.cached(
                    "UPDATE spool_files SET name = x'' WHERE inode = ? AND born = ? AND modified = ? AND finished = 1",
                )?;
                files
                    .iter()
                    .try_for_each(|file| forget.execute(params![file.0, file.1, file.2]).map(drop))?;
                Ok(Applied::Done)
            }
        }
    }
}

fn requeue(
    tables: &mut Tables,
    events: &[(i64, Vec<NewItem>)],
    now: Timestamp,
) -> Result<Applied, rusqlite::Error> {
    let (mut outcomes, mut enqueued) = (Vec::new(), Enqueued::default());
    for (seq, items) in events {
        let requeued = Transitions { tables, now, status: None }.requeue(*seq, items)?;
        let is_requeued = requeued == Requeued::Done;
        let outcome = match requeued {
            Requeued::Done => EventOutcome::Requeued,
            Requeued::BodyGone(state) => EventOutcome::BodyGone(state),
            Requeued::Unsendable(state, reason) => EventOutcome::Unsendable(state, reason.code, reason.text),
            Requeued::NotSettled => match state_of(tables, *seq)? {
                Some(_) => EventOutcome::Pending,
                None => EventOutcome::Unknown,
            },
        };
        if is_requeued {
            let pending = tables.pending_items(*seq)?;
            enqueued.is_stale |= items.iter().any(|item| match &item.disposition {
                crate::item::Disposition::Send(addressee) => tables.keying.is_stale(addressee.keying),
                _ => false,
            });
            enqueued.items.extend(pending);
        }
        outcomes.push((*seq, outcome));
    }
    Ok(Applied::Events { outcomes, enqueued })
}

fn discard(
    tables: &mut Tables,
    seq: i64,
    unanswered: &[i64],
    in_flight: &[i64],
    now: Timestamp,
) -> Result<EventOutcome, rusqlite::Error> {
    let Some((state, _)) = state_of(tables, seq)? else { return Ok(EventOutcome::Unknown) };
    let items: Vec<i64> = tables.pending_items(seq)?.iter().map(|item| item.seq).collect();
    let are_in = |list: &[i64]| items.iter().any(|item| list.contains(item));
    match state {
        State::Delivered => return Ok(EventOutcome::Delivered { is_meanwhile: false }),
        State::Discarded => return Ok(EventOutcome::AlreadyDiscarded),
        _ if are_in(in_flight) => return Ok(EventOutcome::InFlight),
        State::Pending | State::Skipped | State::Failed => {}
    }
    let is_unanswered = are_in(unanswered) || has_unanswered(tables, seq)?;
    let is_discarded = Transitions { tables, now, status: None }.discard(seq)?;
    Ok(match is_discarded {
        true => EventOutcome::Discarded { is_unanswered },
        false => EventOutcome::AlreadyDiscarded,
    })
}

/// Erases an event whatever its state. `None`: it is gone.
fn erase_event(
    tables: &mut Tables,
    seq: i64,
    unanswered: &[i64],
    in_flight: &[i64],
) -> Result<Option<ErasedEvent>, rusqlite::Error> {
    let Some((state, settled_at)) = state_of(tables, seq)? else { return Ok(None) };
    let id: Option<String> = tables
        .cached("SELECT message_id FROM events WHERE seq = ?")?
        .query_row([seq], |r| r.get(0))
        .optional()?;
    let items: Vec<i64> = tables.pending_items(seq)?.iter().map(|item| item.seq).collect();
    let is_unanswered = items.iter().any(|item| unanswered.contains(item)) || has_unanswered(tables, seq)?;
    let in_flight: Vec<i64> = items.into_iter().filter(|item| in_flight.contains(item)).collect();
    let is_in_flight = is_unanswered || !in_flight.is_empty();
    tables.note_removed(in_flight);
    erase(tables, seq)?;
    Acts(&tables.store.conn).forget_event(seq)?;
    if let Some(id) = id {
        tables.ids.remove(&tables.store.conn, &hash_id_text(&id), seq)?;
    }
    Ok(Some(ErasedEvent { seq, state, settled_at, is_in_flight }))
}

/// Whether a request with the event, of those that are remembered, has got no answer: a later one may have been refused,
/// and the receiver has it all the same.
fn has_unanswered(tables: &Tables, seq: i64) -> Result<bool, rusqlite::Error> {
    let [a, b] = Code::UNANSWERED.map(Code::as_str);
    tables
        .cached("SELECT EXISTS (SELECT 1 FROM attempts WHERE seq = ? AND code IN (?, ?))")?
        .query_row(params![seq, a, b], |r| r.get(0))
}

/// The state of an event, and when it was settled.
fn state_of(tables: &Tables, seq: i64) -> Result<Option<(State, Option<Timestamp>)>, rusqlite::Error> {
    let settled: Option<(String, i64)> = tables
        .cached("SELECT state, settled_at FROM settled WHERE seq = ?")?
        .query_row([seq], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    if let Some((state, at)) = settled {
        return Ok(State::parse(&state).map(|state| (state, Some(Timestamp(at)))));
    }
    // Asked after the rows: after a crash, an ack of an event that was settled otherwise later may still be in memory.
    if let Some(at) = tables.acks.at(seq) {
        return Ok(Some((State::Delivered, Some(at))));
    }
    let is_pending: bool = tables
        .cached("SELECT EXISTS (SELECT 1 FROM queue WHERE id = ?1 AND seq IS NULL OR seq = ?1)")?
        .query_row([seq], |r| r.get(0))?;
    Ok(is_pending.then_some((State::Pending, None)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::Disposition;
    use crate::outbox::append::Append;
    use crate::outbox::fixture::{self, numbered_event};
    use crate::outbox::{NewEvent, Settled};
    use crate::reason::Reason;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn settle(tables: &mut Tables, seq: i64, settled: Settled) {
        let settle = |tables: &mut Tables| {
            Transitions { tables, now: NOW, status: None }.settle(&[(seq, settled)], false)
        };
        tables.transaction(settle).unwrap();
    }

    fn items_of(event: &NewEvent) -> Vec<NewItem> {
        let Disposition::Send(items) = &event.disposition else { panic!() };
        items.clone()
    }

    fn retry(tables: &mut Tables, seq: i64, items: &[NewItem]) -> EventOutcome {
        let events = [(seq, items.to_vec())];
        let applied = tables.transaction(|tables| requeue(tables, &events, NOW)).unwrap();
        let Applied::Events { outcomes, .. } = applied else { panic!() };
        outcomes[0].1.clone()
    }

    #[test]
    fn an_ack_of_its_first_time_in_the_queue_says_nothing_about_an_event_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        tables.retention.config.keep_bodies = std::time::Duration::from_secs(60);
        let events: Vec<NewEvent> = (1..4).map(numbered_event).collect();
        tables.transaction(|tables| Append::run(tables, &events, &[], NOW)).unwrap();
        // The second waits, so the acks of both others stay in the table when the first is settled.
        settle(&mut tables, 1, Settled::Delivered);
        settle(&mut tables, 3, Settled::Delivered);
        tables.transaction(|tables| tables.compact_some(1, false, NOW)).unwrap();
        assert_eq!(retry(&mut tables, 1, &items_of(&events[0])), EventOutcome::Requeued);
        settle(&mut tables, 1, Settled::Failed(Reason::new(Code::Refused, "")));
        drop(tables);
        let mut tables = fixture::tables(dir.path());
        tables.transaction(|_| Ok(())).unwrap();
        assert!(tables.acks.contains(1), "the ack is in memory again");
        let state = |tables: &mut Tables| {
            tables.transaction(|tables| Ok(state_of(tables, 1)?.map(|(state, _)| state))).unwrap()
        };
        assert_eq!(state(&mut tables), Some(State::Failed));
        assert_eq!(retry(&mut tables, 1, &items_of(&events[0])), EventOutcome::Requeued);
        assert_eq!(state(&mut tables), Some(State::Pending));
        settle(&mut tables, 1, Settled::Failed(Reason::new(Code::Refused, "")));
        assert_eq!(state(&mut tables), Some(State::Failed), "its settlement was left out");
    }

    #[test]
    fn an_event_that_cannot_be_sent_again_says_why_and_keeps_its_items() {
        let dir = tempfile::tempdir().unwrap();
        let mut tables = fixture::tables(dir.path());
        let mut items = items_of(&numbered_event(1));
        items.push(NewItem { mapping: "Pages".into(), ..items[0].clone() });
        let event = NewEvent { disposition: Disposition::Send(items.clone()), ..numbered_event(1) };
        tables.transaction(|tables| Append::run(tables, &[event], &[], NOW)).unwrap();
        settle(&mut tables, 1, Settled::Delivered);
        settle(&mut tables, 2, Settled::Failed(Reason::new(Code::Refused, "no")));
        let stored = |tables: &Tables| {
            let sql = "SELECT count(*), sum(state = 'failed') FROM items WHERE seq = 1";
            tables.store.conn.query_row(sql, [], |r| Ok([0, 1].map(|n| r.get::<_, i64>(n).unwrap()))).unwrap()
        };
        let fails = Disposition::Fail(Reason::new(Code::NoMapping, "it lacks a name"));
        let failing = [items[0].clone(), NewItem { disposition: fails, ..items[1].clone() }];
        for (items, text) in [
            (&failing[..], "Pages: it lacks a name"),
            (&failing[..1], "all mappings that take it now have delivered it before"),
        ] {
            let unsendable = EventOutcome::Unsendable(State::Failed, Code::NoMapping, text.to_owned());
            assert_eq!(retry(&mut tables, 1, items), unsendable);
            assert_eq!(stored(&tables), [2, 1]);
        }
        assert_eq!(retry(&mut tables, 1, &items), EventOutcome::Requeued);
    }
}
