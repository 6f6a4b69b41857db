//! What is held against a person whose requests are not accepted, and when it is proof against an event. Pure.
//!
//! A suspicion delays its person alone. A person's refused request is split until one event is refused alone; that event
//! fails only by a proof that no receiver gives by chance or by refusing everybody: it was refused alone
//! [`REFUSALS`] times, over at least [`PROOF_TIME`], on more than one connection; the receiver showed itself well between
//! any two of these refusals and after the last, and accepted another event between the first and the last. A single
//! event that is accepted right after a refusal proves less: one bad node in ten would fail good events, and so would a
//! receiver that refuses everybody for a while.

use crate::clock::Mono;
use crate::outbox::Settled;
use crate::reason::Reason;
use std::time::Duration;

/// Refusals of an event alone that prove its fault. A receiver that refuses one request in ten by chance refuses an event
/// this often once in ten million.
const REFUSALS: u32 = 7;
/// The shortest time from the first of those refusals to the last.
const PROOF_TIME: Duration = Duration::from_secs(60);
/// The wait between two of them, and up to a fifth more.
const REFUSAL_WAIT: Duration = Duration::from_secs(10);
/// The time after a refusal in which a witness may be tried.
const WITNESS_TIME: Duration = Duration::from_secs(1);
/// The wait for the receiver to show itself well after the last of them, and between two conflicts.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// Refusals after which another connection is asked for, if all were on one: behind it may be one bad node.
const REFUSALS_ON_A_CONNECTION: u32 = 3;
/// The longest first wait after trouble that says nothing about an event, and the longest of all.
const TROUBLE_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Minutes between tries that bring no proof nearer. The last number repeats.
pub const FRUITLESS_MINUTES: [u64; 5] = [1, 2, 4, 8, 15];

/// The wait after that many tries without fruit, and up to a tenth more.
pub fn fruitless_wait(tries: usize, rng: &mut fastrand::Rng) -> Duration {
    let minutes = FRUITLESS_MINUTES[tries.min(FRUITLESS_MINUTES.len() - 1)];
    Duration::from_secs(60 * minutes).mul_f64(1.0 + 0.1 * rng.f64())
}

/// A wait drawn evenly from nothing to a bound that doubles with each failure up to the longest (full jitter), so that
/// many agents that lost one receiver do not all come back to it at once.
pub fn backoff((first, longest): (Duration, Duration), failures: u32, rng: &mut fastrand::Rng) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest).mul_f64(rng.f64())
}

/// What the receiver has shown on a path since the start, in counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Accepted requests.
    pub accepted: u64,
    /// Accepted requests, and answers of `/auth` that the receiver is well.
    pub well: u64,
}

/// What is held against one person.
#[derive(Debug, Default)]
pub struct Suspicion {
    /// The person is not tried before.
    pub until: Mono,
    /// Trouble since the person's last acceptance.
    failures: u32,
    /// The number of oldest events that were refused together, so that at least one of them is suspect.
    range: usize,
    proof: Option<Proof>,
}

/// A refusal of one event alone.
#[derive(Debug)]
pub struct Refusal {
    pub seq: i64,
    pub reason: Reason,
    /// Whether the receiver says that it has the event already. It counts as delivered if the receiver accepted another
    /// since it was first sent alone; a receiver that says so to everybody delivers nobody's.
    pub is_conflict: bool,
    /// What the path had shown when the request was sent.
    pub sent: Evidence,
    /// The connections that the request was sent over.
    pub connections: u64,
}

/// The refusals of the person's oldest event alone.
#[derive(Debug)]
struct Proof {
    last: Refusal,
    refusals: u32,
    first_connections: u64,
    first_at: Mono,
    last_at: Mono,
    /// The evidence at the first refusal, and at the last that counts.
    first_evidence: Evidence,
    last_evidence: Evidence,
    /// Tries since the last refusal that counts.
    fruitless: usize,
    /// The place of the event that is tried next as a witness.
    witness: usize,
    /// The end of the moment after a refusal in which the witness may be tried.
    witness_until: Mono,
}

impl Suspicion {
    /// The most events of the person's next request; `usize::MAX`: none of them is suspect.
    pub fn most(&self) -> usize {
        match self.range {
            0 => usize::MAX,
            range => (range / 2).max(1),
        }
    }

    /// Notes trouble that says nothing about an event. The person waits at least for the pause that was asked for.
    pub fn met_trouble(&mut self, pause: Duration, now: Mono, rng: &mut fastrand::Rng) {
        self.until = now + backoff(TROUBLE_WAIT, self.failures, rng).max(pause);
        self.failures += 1;
    }

    /// Notes that this many events, more than one, were refused together. They are split at once.
    pub fn refused_together(&mut self, count: usize, now: Mono) {
        (self.range, self.proof, self.until) = (count, None, now);
    }

    /// Notes that the oldest of so many events of the person was refused alone. It counts if the receiver was well since
    /// the last refusal that counted.
    pub fn refused_alone(
        &mut self,
        refusal: Refusal,
        pending: usize,
        evidence: Evidence,
        now: Mono,
        rng: &mut fastrand::Rng,
    ) {
        self.range = 1;
        let (connections, sent, last_is_conflict) = (refusal.connections, refusal.sent, refusal.is_conflict);
        let before =
            self.proof.take_if(|p| p.last.seq == refusal.seq && p.last.is_conflict == refusal.is_conflict);
        let mut proof = match before {
            Some(before) => Proof { last: refusal, ..before },
            None => Proof {
                last: refusal,
                refusals: 0,
                first_connections: connections,
                first_at: now,
                last_at: now,
                first_evidence: if last_is_conflict { sent } else { evidence },
                last_evidence: evidence,
                fruitless: 0,
                witness: 1,
                witness_until: Mono::ZERO,
            },
        };
        if proof.refusals == 0 || evidence.well > proof.last_evidence.well {
            let was_complete = proof.is_complete();
            (proof.refusals, proof.last_at, proof.last_evidence) = (proof.refusals + 1, now, evidence);
            if proof.refusals <= REFUSALS || was_complete != proof.is_complete() {
                proof.fruitless = 0;
            }
        }
        // A witness overtakes the event, so it is tried right after a refusal of it and at no other time.
        let lacks_acceptance = proof.has_enough() && evidence.accepted == proof.first_evidence.accepted;
        if lacks_acceptance && pending > 1 {
            (proof.witness_until, self.until) = (now + WITNESS_TIME, now);
        } else {
            self.until = now + proof.wait(rng);
        }
        self.proof = Some(proof);
    }

    /// Notes that the witness was not accepted: of so many events of the person, the one after it is the next one.
    pub fn witness_refused(&mut self, pending: usize, now: Mono, rng: &mut fastrand::Rng) {
        let Some(proof) = &mut self.proof else { return };
        let has_next = proof.witness + 1 < pending;
        proof.witness = if has_next { proof.witness + 1 } else { 1 };
        if has_next {
            proof.fruitless = 0;
        }
        proof.witness_until = Mono::ZERO;
        self.until = now + proof.wait(rng);
    }

    /// Notes that the witness was accepted: the oldest event is tried again beside that.
    pub fn witness_accepted(&mut self, now: Mono) {
        self.until = now;
        if let Some(proof) = &mut self.proof {
            proof.witness_until = Mono::ZERO;
        }
    }

    /// Notes that the person's oldest `count` events are settled, one of them accepted. Returns whether nothing is left
    /// to suspect.
    pub fn accepted(&mut self, count: usize) -> bool {
        self.range = self.range.saturating_sub(count);
        (self.failures, self.proof) = (0, None);
        self.range == 0
    }

    /// Whether one more refusal would not count, because the receiver has not shown itself well since the last one.
    pub fn needs_well(&self, evidence: Evidence) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.last_evidence.well == evidence.well)
    }

    /// Whether the next try must not be on these connections alone.
    pub fn needs_connection(&self, connections: u64) -> bool {
        let is_stuck =
            |p: &Proof| p.refusals >= REFUSALS_ON_A_CONNECTION && p.first_connections == connections;
        self.proof.as_ref().is_some_and(is_stuck)
    }

    /// The place of the event that is to be tried as a witness now: the proof lacks nothing but another accepted event.
    pub fn witness(&self, now: Mono) -> Option<usize> {
        self.proof.as_ref().filter(|proof| now < proof.witness_until).map(|proof| proof.witness)
    }

    /// Whether the refusals are complete, and the receiver has yet to show itself well after the last.
    pub fn awaits_well(&self) -> bool {
        self.proof.as_ref().is_some_and(Proof::is_complete)
    }

    /// What is proven of which event.
    pub fn conclusion(&self, evidence: Evidence) -> Option<(i64, Settled)> {
        let proof = self.proof.as_ref().filter(|proof| proof.is_complete())?;
        match proof.last.is_conflict {
            true => Some((proof.last.seq, Settled::Delivered)),
            false if evidence.well == proof.last_evidence.well => None,
            false => Some((proof.last.seq, Settled::Failed(proof.last.reason.clone()))),
        }
    }
}

impl Proof {
    /// Whether no more refusals are needed.
    fn has_enough(&self) -> bool {
        let is_long = self.last_at.saturating_sub(self.first_at) >= PROOF_TIME;
        let is_elsewhere = self.last.connections != self.first_connections;
        self.last.is_conflict || (self.refusals >= REFUSALS && is_long && is_elsewhere)
    }

    fn is_complete(&self) -> bool {
        self.has_enough() && self.last_evidence.accepted > self.first_evidence.accepted
    }

    /// The wait after a refusal: short while the refusals come nearer to a proof.
    fn wait(&mut self, rng: &mut fastrand::Rng) -> Duration {
        self.fruitless += 1;
        match self.fruitless {
            1 if self.last.is_conflict || self.is_complete() => SHORT_WAIT,
            1 => REFUSAL_WAIT.mul_f64(1.0 + 0.2 * rng.f64()),
            more => fruitless_wait(more - 2, rng),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Code;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_the_longest_and_are_drawn_from_nothing_to_that() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (failures, most) in [(0, 1.0), (1, 2.0), (5, 32.0), (6, 60.0), (4_000_000, 60.0)] {
            let waits: Vec<f64> =
                (0..1000).map(|_| backoff(TROUBLE_WAIT, failures, &mut rng).as_secs_f64()).collect();
            let longest = waits.iter().copied().fold(0.0, f64::max);
            let mean = waits.iter().sum::<f64>() / 1000.0;
            assert!(longest <= most && longest > 0.95 * most, "{failures}: {longest}");
            assert!((0.45..0.55).contains(&(mean / most)), "{failures}: {mean}");
        }
    }

    /// One refusal alone: the evidence by then, the connections, and seconds since the last one.
    type Refused = (Evidence, u64, u64);

    fn refused(refusals: &[Refused], is_conflict: bool) -> Suspicion {
        let (mut suspicion, mut rng) = (Suspicion::default(), fastrand::Rng::with_seed(1));
        let mut now = Duration::ZERO;
        for (evidence, connections, seconds) in refusals {
            now += SECOND * u32::try_from(*seconds).unwrap();
            let reason = Reason::new(Code::Refused, "no");
            let refusal = Refusal { seq: 1, reason, is_conflict, sent: *evidence, connections: *connections };
            suspicion.refused_alone(refusal, 1, *evidence, now, &mut rng);
        }
        suspicion
    }

    fn evidence(accepted: u64, well: u64) -> Evidence {
        Evidence { accepted, well }
    }

    #[test]
    fn an_event_fails_by_seven_refusals_of_a_receiver_that_is_well_and_by_nothing_less() {
        // Well between any two, another event accepted after the first, two connections, ten seconds apart.
        let proof: Vec<Refused> =
            (0..7).map(|n| (evidence(u64::from(n > 0), n), u64::from(n > 3), 10)).collect();
        let failed = |refusals: &[Refused], now| refused(refusals, false).conclusion(now).is_some();
        let well_after = evidence(1, 7);
        assert!(failed(&proof, well_after));
        assert!(!failed(&proof, evidence(1, 6)), "not well after the last");
        assert!(!failed(&proof[..6], well_after), "six refusals");
        let changed = |change: fn(&mut Refused)| {
            let mut refusals = proof.clone();
            refusals.iter_mut().for_each(change);
            refusals
        };
        assert!(!failed(&changed(|refusal| refusal.1 = 4), well_after), "one connection");
        assert!(!failed(&changed(|refusal| refusal.2 = 9), well_after), "54 seconds");
        assert!(
            !failed(&changed(|refusal| refusal.0.well = refusal.0.well.min(5)), well_after),
            "once not well"
        );
        let none_accepted = changed(|refusal| refusal.0.accepted = 0);
        assert!(!failed(&none_accepted, evidence(0, 7)), "nothing accepted since the first");
        assert!(!failed(&none_accepted, evidence(1, 8)), "nothing accepted before the last");
    }

    #[test]
    fn a_conflict_is_acceptance_beside_an_acceptance() {
        let refused = |refusals: &[Refused]| refused(refusals, true).conclusion(evidence(9, 9));
        assert_eq!(refused(&[(evidence(3, 3), 0, 0)]), None);
        assert_eq!(refused(&[(evidence(3, 3), 0, 0), (evidence(3, 4), 0, 1)]), None);
        assert_eq!(refused(&[(evidence(3, 3), 0, 0), (evidence(4, 4), 0, 1)]), Some((1, Settled::Delivered)));
    }

    #[test]
    fn tries_that_bring_no_proof_nearer_grow_rare() {
        let wait = |well: &[u64]| {
            let refusals: Vec<Refused> = well.iter().map(|well| (evidence(0, *well), 0, 100)).collect();
            (refused(&refusals, false).until - SECOND * 100 * u32::try_from(well.len()).unwrap()).as_secs()
        };
        for (well, seconds) in [
            (vec![0], 10..=12),
            (vec![0, 1], 10..=12),
            (vec![0, 0], 60..=66),
            (vec![0, 0, 0], 120..=132),
            (vec![0, 0, 1], 10..=12),
            (vec![0; 9], 900..=990),
            ((0..7).collect(), 10..=12),
            ((0..8).collect(), 60..=66),
            ((0..20).collect(), 900..=990),
        ] {
            assert!(seconds.contains(&wait(&well)), "{well:?}: {}", wait(&well));
        }
    }
}
