//! The pages in the write-ahead log of a database that may be damaged: where the newest committed state of each lies.
//! The log is read as SQLite does in its own recovery, until the first frame whose checksum is wrong
//! (<https://sqlite.org/fileformat2.html#walformat>).

use super::local_rows;
use super::record::{PAGE_SIZE, u32_at};
use rusqlite::types::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

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
        let Some(mut frames) = Frames::of(file)? else { return Ok(None) };
        let mut pages = WalPages { count: 0, offsets: HashMap::new() };
        let mut uncommitted = HashMap::new();
        while let Some(frame) = frames.next()? {
            uncommitted.insert(frame.page, frame.at);
            if frame.count > 0 {
                pages.count = frame.count;
                pages.offsets.extend(uncommitted.drain());
            }
        }
        Ok((pages.count > 0).then_some(pages))
    }

    /// The offset of that page in the log.
    pub fn offset(&self, page: u32) -> Option<u64> {
        self.offsets.get(&page).copied()
    }
}

/// The committed texts of one name in the tables of names and values, in their order.
pub enum StoredTexts {
    /// The file is missing, empty, or no log.
    NoLog,
    /// Those in the log.
    Log(Vec<String>),
}

/// Reads the texts of that name in a log.
///
/// # Errors
/// The system's.
pub fn stored_texts(wal: &Path, name: &str) -> io::Result<StoredTexts> {
    let file = match File::open(wal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(StoredTexts::NoLog),
        opened => opened?,
    };
    let Some(mut frames) = Frames::of(&file)? else { return Ok(StoredTexts::NoLog) };
    let (mut texts, mut uncommitted) = (Vec::new(), Vec::new());
    while let Some(frame) = frames.next()? {
        let page = &frames.frame[FRAME_HEADER..];
        // Few pages have the name, and fewer still as a row: it may also stand in a part that is not used any more.
        if memchr::memmem::find(page, name.as_bytes()).is_some() {
            uncommitted.extend(local_rows(page).into_iter().find_map(|row| match row.columns.as_slice() {
                [Value::Text(found), Value::Text(text)] if found == name => Some(text.clone()),
                _ => None,
            }));
        }
        if frame.count > 0 {
            texts.append(&mut uncommitted);
        }
    }
    texts.dedup();
    Ok(StoredTexts::Log(texts))
}

/// A page in the log.
struct Frame {
    /// The page's number.
    page: u32,
    /// The number of pages of the database, if the frame ends a commit; else 0.
    count: u32,
    /// The offset of the page in the log.
    at: u64,
}

/// The frames of a log, up to the first that is not intact.
struct Frames<'a> {
    log: BufReader<&'a File>,
    reads_word: fn([u8; 4]) -> u32,
    sum: (u32, u32),
    salts: [u8; 8],
    at: u64,
    /// The last frame that was read, with its header.
    frame: Vec<u8>,
}

impl Frames<'_> {
    /// `None`: the file has no intact header.
    fn of(file: &File) -> io::Result<Option<Frames<'_>>> {
        let mut log = BufReader::with_capacity(1 << 20, file);
        let mut header = [0; HEADER];
        if !fill(&mut log, &mut header)? {
            return Ok(None);
        }
        let word = |at| u32_at(&header, at).unwrap_or(0);
        let reads_word = match word(0) {
            LITTLE_ENDIAN => u32::from_le_bytes,
            BIG_ENDIAN => u32::from_be_bytes,
            _ => return Ok(None),
        };
        let sum = checksum((0, 0), &header[..24], reads_word);
        if word(8) as usize != PAGE_SIZE || sum != (word(24), word(28)) {
            return Ok(None);
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        let frame = vec![0; FRAME_HEADER + PAGE_SIZE];
        Ok(Some(Frames { log, reads_word, sum, salts, at: HEADER as u64, frame }))
    }

    fn next(&mut self) -> io::Result<Option<Frame>> {
        if !fill(&mut self.log, &mut self.frame)? {
            return Ok(None);
        }
        let word = |at| u32_at(&self.frame, at).unwrap_or(0);
        let head = checksum(self.sum, &self.frame[..8], self.reads_word);
        self.sum = checksum(head, &self.frame[FRAME_HEADER..], self.reads_word);
        if self.frame[8..16] != self.salts || self.sum != (word(16), word(20)) {
            return Ok(None);
        }
        let frame = Frame { page: word(0), count: word(4), at: self.at + FRAME_HEADER as u64 };
        self.at += (FRAME_HEADER + PAGE_SIZE) as u64;
        Ok(Some(frame))
    }
}

/// Fills the buffer with the next bytes; `false`: the log ends before.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
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
