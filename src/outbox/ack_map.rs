//! A time for each of many numbers that lie close together: some five bytes each, as a tree of blocks.

use crate::clock::Timestamp;
use std::collections::BTreeMap;

/// Numbers of a block: the bits of a word.
const BLOCK: i64 = 64;

/// The time of each of some numbers.
#[derive(Debug, Default)]
pub(super) struct AckMap {
    blocks: BTreeMap<i64, Box<Block>>,
    len: usize,
}

#[derive(Debug)]
struct Block {
    /// Which of its numbers have a time.
    known: u64,
    /// Seconds since 1970: nobody asks for more of a delivery.
    at: [u32; BLOCK as usize],
}

impl AckMap {
    /// How many numbers have one.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn get(&self, n: i64) -> Option<Timestamp> {
        let block = self.blocks.get(&n.div_euclid(BLOCK))?;
        (block.known & bit(n) != 0).then(|| Timestamp(i64::from(block.at[place(n)]) * 1_000))
    }

    /// Gives the number that time. `false`: it had one, and keeps it.
    pub(super) fn insert(&mut self, n: i64, at: Timestamp) -> bool {
        let empty = || Box::new(Block { known: 0, at: [0; BLOCK as usize] });
        let block = self.blocks.entry(n.div_euclid(BLOCK)).or_insert_with(empty);
        let is_new = block.known & bit(n) == 0;
        if is_new {
            block.known |= bit(n);
            block.at[place(n)] = (at.0 / 1_000).clamp(0, u32::MAX.into()) as u32;
            self.len += 1;
        }
        is_new
    }

    /// The first number that has one, from `n` on.
    pub(super) fn first_from(&self, n: i64) -> Option<i64> {
        let own = n.div_euclid(BLOCK);
        self.blocks.range(own..).find_map(|(block, times)| {
            let from = if *block == own { !0 << place(n) } else { !0 };
            let known = times.known & from;
            (known != 0).then(|| block * BLOCK + i64::from(known.trailing_zeros()))
        })
    }

    /// The last number that has one.
    pub(super) fn last(&self) -> Option<i64> {
        let (block, times) = self.blocks.last_key_value()?;
        Some(block * BLOCK + i64::from(times.known.ilog2()))
    }

    /// Takes their times from all numbers from `from` to before `to`.
    pub(super) fn remove(&mut self, from: i64, to: i64) {
        let mut next = from;
        while let Some(n) = self.first_from(next).filter(|n| *n < to) {
            let block = n.div_euclid(BLOCK);
            let end = (block + 1) * BLOCK;
            let Some(times) = self.blocks.get_mut(&block) else { return };
            let up_to = if to < end { bit(to) - 1 } else { !0 };
            let gone = times.known & up_to & (!0 << place(n));
            times.known &= !gone;
            self.len -= gone.count_ones() as usize;
            if times.known == 0 {
                self.blocks.remove(&block);
            }
            next = end;
        }
    }
}

fn place(n: i64) -> usize {
    n.rem_euclid(BLOCK) as usize
}

fn bit(n: i64) -> u64 {
    1 << place(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_a_map_is() {
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
                _ => assert_eq!(times.insert(n, Timestamp(round * 1_000)), map.insert(n, 0).is_none()),
            }
            let m = rng.i64(-310..310);
            assert_eq!(times.get(m).is_some(), map.contains_key(&m));
            assert_eq!(times.first_from(m), map.range(m..).next().map(|(k, _)| *k));
            assert_eq!(times.last(), map.last_key_value().map(|(k, _)| *k));
            assert_eq!((times.len(), times.is_empty()), (map.len(), map.is_empty()));
        }
    }

    #[test]
    fn a_number_keeps_its_first_time() {
        let mut times = AckMap::default();
        assert!(times.insert(7, Timestamp(1_000)) && !times.insert(7, Timestamp(2_000)));
        assert_eq!(times.get(7), Some(Timestamp(1_000)));
    }
}
