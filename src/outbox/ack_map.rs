//! A map from numbers that lie close together to acks: some seven bytes an entry, where a tree map takes twenty and more.

use crate::clock::Timestamp;
use std::collections::BTreeMap;

/// The numbers of one block, which are the bits of a word.
const BLOCK: i64 = 64;

/// The acceptance of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) at: Timestamp,
    /// The status of the answer, if it is known.
    pub(super) status: Option<u16>,
}

/// A map from the numbers of delivered events to their acks.
#[derive(Debug, Default)]
pub(super) struct AckMap {
    blocks: BTreeMap<i64, Box<Block>>,
    len: usize,
}

#[derive(Debug)]
struct Block {
    /// A bit for each number that has a time.
    present: u64,
    /// Seconds since 1970, as precise as a time of delivery needs to be.
    at: [u32; BLOCK as usize],
    /// 0: not known.
    status: [u16; BLOCK as usize],
}

impl AckMap {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, n: i64) -> Option<Ack> {
        let (block, index) = (self.blocks.get(&n.div_euclid(BLOCK))?, index_in_block(n));
        (block.present & bit(n) != 0).then(|| Ack {
            at: Timestamp(i64::from(block.at[index]) * 1_000),
            status: Some(block.status[index]).filter(|status| *status != 0),
        })
    }

    /// Returns `false` if the number has an ack, which it then keeps.
    pub(super) fn insert(&mut self, n: i64, ack: Ack) -> bool {
        let empty = || Box::new(Block { present: 0, at: [0; BLOCK as usize], status: [0; BLOCK as usize] });
        let block = self.blocks.entry(n.div_euclid(BLOCK)).or_insert_with(empty);
        let is_new = block.present & bit(n) == 0;
        if is_new {
            block.present |= bit(n);
            block.at[index_in_block(n)] = (ack.at.0 / 1_000).clamp(0, u32::MAX.into()) as u32;
            block.status[index_in_block(n)] = ack.status.unwrap_or(0);
            self.len += 1;
        }
        is_new
    }

    /// The first number from `n` on that has an ack.
    pub(super) fn first_from(&self, n: i64) -> Option<i64> {
        let own = n.div_euclid(BLOCK);
        self.blocks.range(own..).find_map(|(block, times)| {
            let from = if *block == own { !0 << index_in_block(n) } else { !0 };
            let present = times.present & from;
            (present != 0).then(|| block * BLOCK + i64::from(present.trailing_zeros()))
        })
    }

    /// The last number that has an ack.
    pub(super) fn last(&self) -> Option<i64> {
        let (block, times) = self.blocks.last_key_value()?;
        Some(block * BLOCK + i64::from(times.present.ilog2()))
    }

    /// Removes the numbers from `from` to before `to`.
    pub(super) fn remove(&mut self, from: i64, to: i64) {
        let mut next = from;
        while let Some(n) = self.first_from(next).filter(|n| *n < to) {
            let block = n.div_euclid(BLOCK);
            let end = (block + 1) * BLOCK;
            let Some(times) = self.blocks.get_mut(&block) else { return };
            let up_to = if to < end { bit(to) - 1 } else { !0 };
            let removed = times.present & up_to & (!0 << index_in_block(n));
            times.present &= !removed;
            self.len -= removed.count_ones() as usize;
            if times.present == 0 {
                self.blocks.remove(&block);
            }
            next = end;
        }
    }
}

fn index_in_block(n: i64) -> usize {
    n.rem_euclid(BLOCK) as usize
}

fn bit(n: i64) -> u64 {
    1 << index_in_block(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(ms: i64, status: Option<u16>) -> Ack {
        Ack { at: Timestamp(ms), status }
    }

    #[test]
    fn it_behaves_like_a_tree_map() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut times, mut map) = (AckMap::default(), BTreeMap::new());
        for round in 0..20_000 {
            let n = rng.i64(-300..300);
            match rng.u8(0..5) {
                0 => {
                    let to = n + rng.i64(0..200);
                    times.remove(n, to);
                    map.retain(|k, _| !(n..to).contains(k));
                }
                _ => assert_eq!(times.insert(n, ack(round * 1_000, None)), map.insert(n, 0).is_none()),
            }
            let m = rng.i64(-310..310);
            assert_eq!(times.get(m).is_some(), map.contains_key(&m));
            assert_eq!(times.first_from(m), map.range(m..).next().map(|(k, _)| *k));
            assert_eq!(times.last(), map.last_key_value().map(|(k, _)| *k));
            assert_eq!((times.len(), times.is_empty()), (map.len(), map.is_empty()));
        }
    }

    #[test]
    fn a_number_keeps_its_first_ack() {
        let mut acks = AckMap::default();
        assert!(acks.insert(7, ack(1_000, Some(204))) && !acks.insert(7, ack(2_000, None)));
        assert!(acks.insert(8, ack(3_000, None)));
        assert_eq!(acks.get(7), Some(ack(1_000, Some(204))));
        assert_eq!(acks.get(8), Some(ack(3_000, None)));
    }
}
