//! The scheduler against a model: a simulated outbox, receiver and clock.

mod properties;
mod receivers;
mod simulation;

use super::*;
use crate::config::Concurrency;
use simulation::moment;

#[test]
fn nothing_is_sent_while_too_many_accepted_events_are_not_committed() {
    for of_a_person in [1, 30] {
        let rng = fastrand::Rng::with_seed(1);
        let mut scheduler = Scheduler::new(Destination::new(Concurrency::Fixed(4), None, moment(0), rng));
        let all = 3 * MAX_UNSETTLED as i64;
        (0..all).for_each(|seq| {
            scheduler.discovered(QueuedItem { seq, key: OrderingKey(seq / of_a_person), owner: None })
        });
        scheduler.set_exhausted(true);
        let mut uncommitted = Vec::new();
        while let NextAction::Start(plan) = scheduler.next(moment(0)) {
            let seqs = scheduler.events(plan);
            assert!(scheduler.may_send(plan, Endpoint::People, moment(0).mono));
            let in_flight = scheduler.sent(plan, Endpoint::People, seqs, 100, 0, moment(0).mono);
            uncommitted.push(scheduler.answered(in_flight, Verdict::Accepted, moment(0)));
        }
        assert_eq!(uncommitted.len(), MAX_UNSETTLED.div_ceil(of_a_person as usize));
        // This commit lets one more request be sent.
        let AnswerEffects { keys, rows, .. } = uncommitted.pop().unwrap();
        scheduler.settled(&keys, &rows.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
        assert!(matches!(scheduler.next(moment(0)), NextAction::Start(_)));
    }
}
