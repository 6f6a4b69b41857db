//! A filter that tells of most ids that they are not in a segment, without a read of the disk.
//!
//! It is a Bloom filter in blocks: all bits of a key stand in one cache line, so that a lookup costs one access to memory
//! for each segment; spread over the whole filter, the same bits would cost up to seven. Ids are uniform hashes and need no
//! further hashing.

/// Bits of the filter for each key; with seven of them set, about one foreign key in a thousand passes.
const BITS_PER_KEY: usize = 16;
/// Bits that a key sets: as many numbers of nine bits as 64 bits hold.
const BITS_SET: u32 = 7;

const LINE_BYTES: usize = 64;
const LINE_BITS: usize = LINE_BYTES * 8;

/// A cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(align(64))]
struct Line([u64; 8]);

/// The filter of a set of ids. It never denies an id that was added.
#[derive(Debug)]
pub(super) struct IdFilter {
    lines: Vec<Line>,
}

impl IdFilter {
    /// An empty filter of the size for that many ids.
    pub(super) fn for_ids(ids: usize) -> IdFilter {
        let lines = (ids * BITS_PER_KEY).div_ceil(LINE_BITS).max(1);
        IdFilter { lines: vec![Line::default(); lines] }
    }

    /// A filter that was stored by [`IdFilter::to_bytes`]; `None`: it was not.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<IdFilter> {
        let (lines, []) = bytes.as_chunks::<LINE_BYTES>() else { return None };
        let line = |bytes: &[u8; LINE_BYTES]| {
            let (words, _) = bytes.as_chunks();
            let mut line = Line::default();
            line.0.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
            line
        };
        (!lines.is_empty()).then(|| IdFilter { lines: lines.iter().map(line).collect() })
    }

    /// The filter as bytes to be stored.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line.0).flat_map(u64::to_le_bytes).collect()
    }

    pub(super) fn size(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }

    pub(super) fn add(&mut self, id: &[u8; 16]) {
        let (line, bits) = self.place(id);
        for bit in bits {
            self.lines[line].0[bit / 64] |= 1 << (bit % 64);
        }
    }

    pub(super) fn may_contain(&self, id: &[u8; 16]) -> bool {
        let (line, mut bits) = self.place(id);
        let line = &self.lines[line].0;
        bits.all(|bit| line[bit / 64] >> (bit % 64) & 1 == 1)
    }

    /// The line of an id and its bits there. Lines are in the order of the ids: searching for sorted ids walks through
    /// them.
    fn place(&self, id: &[u8; 16]) -> (usize, impl Iterator<Item = usize> + use<>) {
        let id = u128::from_be_bytes(*id);
        let line = ((id >> 64) * self.lines.len() as u128) >> 64;
        let bits = (0..BITS_SET).map(move |n| (id >> (9 * n)) as usize % LINE_BITS);
        (line as usize, bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(rng: &mut fastrand::Rng, count: usize) -> Vec<[u8; 16]> {
        (0..count).map(|_| rng.u128(..).to_be_bytes()).collect()
    }

    #[test]
    fn a_filter_denies_no_id_of_its_own_and_most_others() {
        let mut rng = fastrand::Rng::with_seed(7);
        // Other ids that pass, of 100,000. A small set may lie in its lines unevenly.
        for (count, most) in [(0, 0), (1, 10), (31, 500), (1_000, 500), (20_000, 300), (200_000, 300)] {
            let own = ids(&mut rng, count);
            let mut filter = IdFilter::for_ids(count);
            own.iter().for_each(|id| filter.add(id));
            assert!(own.iter().all(|id| filter.may_contain(id)), "{count}");
            let passing = ids(&mut rng, 100_000).iter().filter(|id| filter.may_contain(id)).count();
            assert!(passing <= most, "{count}: {passing} of 100,000 pass");
            let stored = IdFilter::from_bytes(&filter.to_bytes()).unwrap();
            assert!(own.iter().all(|id| stored.may_contain(id)), "{count}, stored");
            assert_eq!(stored.to_bytes(), filter.to_bytes());
            assert_eq!(stored.size(), filter.to_bytes().len());
        }
    }

    #[test]
    fn ids_at_both_ends_have_a_line() {
        let mut filter = IdFilter::for_ids(1_000);
        for id in [[0; 16], [0xFF; 16]] {
            filter.add(&id);
            assert!(filter.may_contain(&id));
        }
    }

    #[test]
    fn bytes_that_are_no_whole_lines_are_no_filter() {
        for length in [0, 1, 63, 65] {
            assert!(IdFilter::from_bytes(&vec![0xFF; length]).is_none(), "{length}");
        }
    }
}
