//! The write-ahead log of a database that may be damaged: where the newest committed state of each page lies in it.
//! As SQLite does when it recovers one, it is read until the first frame whose checksum is wrong
//! (<https://sqlite.org/fileformat2.html#walformat>).

use super::pages::{PAGE_SIZE, u32_at};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
/// The two forms of the first four bytes: how the checksums read the words.
const LITTLE_ENDIAN: u32 = 0x377f_0682;
const BIG_ENDIAN: u32 = 0x377f_0683;

/// What the log lays over the database.
pub struct Overlay {
    /// Pages of the database after its last commit.
    pub pages: u32,
    places: HashMap<u32, u64>,
}

impl Overlay {
    /// Reads the log; `None`: there is no commit in it.
    ///
    /// # Errors
    /// The system's.
    pub fn read(file: &File) -> io::Result<Option<Overlay>> {
        let mut log = BufReader::with_capacity(1 << 20, file);
        let Some(header) = chunk(&mut log, HEADER)? else { return Ok(None) };
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
        let mut overlay = Overlay { pages: 0, places: HashMap::new() };
        let mut uncommitted = HashMap::new();
        let mut at = HEADER as u64;
        while let Some(frame) = chunk(&mut log, FRAME_HEADER + PAGE_SIZE)? {
            let word = |at| u32_at(&frame, at).unwrap_or(0);
            sum = checksum(checksum(sum, &frame[..8], reads_word), &frame[FRAME_HEADER..], reads_word);
            if &frame[8..16] != salts || sum != (word(16), word(20)) {
                break;
            }
            uncommitted.insert(word(0), at + FRAME_HEADER as u64);
            if word(4) > 0 {
                overlay.pages = word(4);
                overlay.places.extend(uncommitted.drain());
            }
            at += (FRAME_HEADER + PAGE_SIZE) as u64;
        }
        Ok((overlay.pages > 0).then_some(overlay))
    }

    /// Where in the log that page begins.
    pub fn at(&self, page: u32) -> Option<u64> {
        self.places.get(&page).copied()
    }
}

/// The next bytes of that length; `None`: there are not so many.
fn chunk(log: &mut impl Read, length: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; length];
    match log.read_exact(&mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// The checksum over what came before, and over these bytes: pairs of words.
fn checksum(before: (u32, u32), bytes: &[u8], word: fn([u8; 4]) -> u32) -> (u32, u32) {
    let (words, _) = bytes.as_chunks::<4>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs.iter().fold(before, |(one, two), [a, b]| {
        let one = one.wrapping_add(word(*a)).wrapping_add(two);
        (one, two.wrapping_add(word(*b)).wrapping_add(one))
    })
}
