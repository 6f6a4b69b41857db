//! The events that a SIGKILL interrupted, and whether exactly those were sent again.

use super::agent::TestAgent;
use koala_agent::config::Concurrency;
use koala_agent::receiver::{HeldItem, Receiver};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// The most that a kill may interrupt.
#[derive(Clone, Copy)]
pub struct UnderWay {
    /// Requests.
    pub in_flight: usize,
    /// Events beside them that are accepted and not yet acknowledged.
    pub unmarked: usize,
}

/// The sender's own limits.
pub const UNDER_WAY: UnderWay = UnderWay { in_flight: Concurrency::MOST, unmarked: 400 };

/// A receiver that takes longer than this to see that its sender is gone does not see it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The state at a kill: the ids that the outbox held as pending, and the number of the last request before it.
pub struct Kill {
    pending: HashSet<String>,
    last_request: u64,
}

impl Kill {
    /// Records the state after this agent has ended. When this returns, the receiver has decided on all that the agent sent.
    pub fn of(agent: &TestAgent) -> Kill {
        until_alone(&agent.receiver);
        Kill { pending: agent.pending_ids(), last_request: agent.receiver.stats().requests }
    }
}

/// Waits until nobody is connected to the receiver: what lay in a socket has been read.
fn until_alone(receiver: &Receiver) {
    let port = format!(":{:04X}", receiver.addr().port());
    // As proc_net(5) writes them: established, and closed by the sender.
    let is_open = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let here = fields.next().is_some_and(|address| address.ends_with(&port));
        here && fields.nth(1).is_some_and(|state| state == "01" || state == "08")
    };
    let began = Instant::now();
    while fs::read_to_string("/proc/net/tcp").unwrap_or_default().lines().any(is_open) {
        assert!(began.elapsed() < PATIENCE, "somebody is still connected to the receiver");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Checks that exactly those events came again that were under way at a kill: accepted and not yet acknowledged, at most `most` at a time.
/// A kill cuts a request whole; what it was then sent again with, the next kill cuts. Returns how many events came again.
pub fn repeats(receiver: &Receiver, kills: &[Kill], most: UnderWay) -> u64 {
    let mut requests: HashMap<u64, Vec<HeldItem>> = HashMap::new();
    for held in receiver.events() {
        requests.entry(held.request).or_default().push(held);
    }
    let mut under_way = vec![Vec::new(); kills.len()];
    for (number, items) in &requests {
        let mut cuts = vec![0; items.len()];
        for (kill, under_way) in
            kills.iter().zip(&mut under_way).filter(|(kill, _)| *number <= kill.last_request)
        {
            let is_pending = |n: &usize| kill.pending.contains(&*items[*n].message_id);
            let cut: Vec<usize> = (0..items.len()).filter(is_pending).collect();
            if !cut.is_empty() {
                let was_cut = cuts.iter().any(|n| *n > 0);
                assert!(was_cut || cut.len() == items.len(), "half of request {number} is acknowledged");
                if !was_cut {
                    under_way.push(cut.len());
                }
            }
            cut.into_iter().for_each(|n| cuts[n] += 1);
        }
        for (HeldItem { message_id, repeats, .. }, cuts) in items.iter().zip(cuts) {
            // Two kills in a row can come before it is sent again.
            let told = (cuts > 0) == (*repeats > 0) && *repeats <= cuts;
            assert!(
                told,
                "{message_id} of request {number} came again {repeats} times, and was cut {cuts} times"
            );
        }
    }
    for mut under_way in under_way {
        under_way.sort_unstable_by(|a, b| b.cmp(a));
        let beside: usize = under_way.iter().skip(most.in_flight).sum();
        assert!(beside <= most.unmarked, "a kill has cut requests of {under_way:?} events");
    }
    receiver.stats().repeats
}
