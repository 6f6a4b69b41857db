//! The pages in the write-ahead log of a database that may be damaged: where the newest committed state of each lies.
//! The log is read as SQLite does in its own recovery, until the first frame whose checksum is wrong
//! (<https://sqlite.org/fileformat2.html#walformat>).

use super::record::{PAGE_SIZE, u32_at};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The two forms of the first four bytes, which say in which order of bytes the checksums read the words.
const LITTLE_ENDIAN: u32 = 0x377f_0682;
const BIG_ENDIAN: u32 = 0x377f_0683;

/// The committed pages of a log.
pub struct WalPages {
    /// The number of pages of the database after the last commit.
    pub count: u32,
    /// The offset in the log of each page.
    offsets: HashMap<u32, u64>,
}

impl WalPages {
    /// Reads the log; `None`: there is no commit in it.
    ///
    /// # Errors
    /// The system's.
    pub fn read(file: &File) -> io::Result<Option<WalPages>> {
        let mut log = BufReader::with_capacity(1 << 20, file);
        let Some(header) = read_bytes(&mut log, HEADER)? else { return Ok(None) };
        let word = |at| u32_at(&header, at).unwrap_or(0);
        let reads_word = match word(0) {
            LITTLE_ENDIAN => u32::from_le_bytes,
            BIG_ENDIAN => u32::from_be_bytes,
            _ => return Ok(None),
        };
        let mut sum = checksum((0, 0), &header[..24], reads_word);
        if word(8) as usize != PAGE_SIZE || sum != (word(24), word(28)) {
            return Ok(None);
        }
        let salts = &header[16..24];
        let mut pages = WalPages { count: 0, offsets: HashMap::new() };
        let mut uncommitted = HashMap::new();
        let mut at = HEADER as u64;
        while let Some(frame) = read_bytes(&mut log, FRAME_HEADER + PAGE_SIZE)? {
            let word = |at| u32_at(&frame, at).unwrap_or(0);
            sum = checksum(checksum(sum, &frame[..8], reads_word), &frame[FRAME_HEADER..], reads_word);
            if &frame[8..16] != salts || sum != (word(16), word(20)) {
                break;
            }
            uncommitted.insert(word(0), at + FRAME_HEADER as u64);
            if word(4) > 0 {
                pages.count = word(4);
                pages.offsets.extend(uncommitted.drain());
            }
            at += (FRAME_HEADER + PAGE_SIZE) as u64;
        }
        Ok((pages.count > 0).then_some(pages))
    }

    /// The offset of that page in the log.
    pub fn offset(&self, page: u32) -> Option<u64> {
        self.offsets.get(&page).copied()
    }
}

/// The next `length` bytes; `None`: the log ends before.
fn read_bytes(log: &mut impl Read, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    match log.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Continues a checksum over these bytes, which are pairs of words.
fn checksum(before: (u32, u32), bytes: &[u8], word: fn([u8; 4]) -> u32) -> (u32, u32) {
    let (words, _) = bytes.as_chunks::<4>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().fold(before, |(one, two), [a, b]| {
        let one = one.wrapping_add(word(*a)).wrapping_add(two);
        (one, two.wrapping_add(word(*b)).wrapping_add(one))
    })
}
