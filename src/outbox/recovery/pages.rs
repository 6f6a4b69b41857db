//! The rows of a database that SQLite itself may refuse to open, read from its pages: the file format is fixed
//! (<https://sqlite.org/fileformat2.html>), and a page that is intact says by itself which rows are on it. Nothing here
//! trusts a byte: whatever does not add up is no row.

use super::log::Overlay;
use rusqlite::types::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// SQLite's own default, which this outbox never changes.
pub const PAGE_SIZE: usize = 4_096;
/// Where the header of the file ends on its first page.
const FILE_HEADER: usize = 100;
/// Longer than any row can be: a document of the spool and what stands beside it.
const MAX_ROW: usize = 256 << 20;

/// A database file and its write-ahead log, as they lie on the disk.
pub struct Pages {
    main: Option<File>,
    log: Option<(File, Overlay)>,
    /// How many pages there are.
    pub count: u32,
}

/// A row as it is stored: the rowid where its table has one, and its columns.
#[derive(Debug)]
pub struct StoredRow {
    pub rowid: Option<i64>,
    pub columns: Vec<Value>,
}

impl Pages {
    /// Opens the files as far as they are there.
    ///
    /// # Errors
    /// The system's.
    pub fn open(main: &Path, log: &Path) -> io::Result<Pages> {
        let main = there(File::open(main))?;
        let length = main.as_ref().map_or(Ok(0), |file| file.metadata().map(|meta| meta.len()))?;
        let mut count = u32::try_from(length / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        let log = match there(File::open(log))? {
            Some(file) => Overlay::read(&file)?.map(|overlay| (file, overlay)),
            None => None,
        };
        if let Some((_, overlay)) = &log {
            count = overlay.pages;
        }
        Ok(Pages { main, log, count })
    }

    /// Every row that is on an intact page in use, whatever its table.
    ///
    /// # Errors
    /// The first of `each`. A page that cannot be read is passed over.
    pub fn rows<E>(&self, mut each: impl FnMut(StoredRow) -> Result<(), E>) -> Result<(), E> {
        let free = self.free_pages();
        for number in (1..=self.count).filter(|number| !free.contains(number)) {
            let Some(page) = self.page(number) else { continue };
            for row in self.rows_of(&page, if number == 1 { FILE_HEADER } else { 0 }) {
                each(row)?;
            }
        }
        Ok(())
    }

    fn page(&self, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE_SIZE];
        if let Some((file, overlay)) = &self.log
            && let Some(at) = overlay.at(number)
        {
            file.read_exact_at(&mut page, at).ok()?;
        } else {
            let at = u64::from(number.checked_sub(1)?) * PAGE_SIZE as u64;
            self.main.as_ref()?.read_exact_at(&mut page, at).ok()?;
        }
        Some(page)
    }

    /// The pages on the free list: what they hold was deleted.
    fn free_pages(&self) -> HashSet<u32> {
        let mut free = HashSet::new();
        let mut trunk = self.page(1).and_then(|first| u32_at(&first, 32)).unwrap_or(0);
        while trunk != 0 && trunk <= self.count && free.insert(trunk) {
            let Some(page) = self.page(trunk) else { break };
            let leaves = u32_at(&page, 4).unwrap_or(0) as usize;
            free.extend((0..leaves.min(PAGE_SIZE / 4)).filter_map(|n| u32_at(&page, 8 + 4 * n)));
            trunk = u32_at(&page, 0).unwrap_or(0);
        }
        free
    }

    fn rows_of(&self, page: &[u8], header: usize) -> Vec<StoredRow> {
        // The leaf of a table; the leaf and the inner page of a table without rowid, or of an index.
        let (first_cell, child, has_rowid) = match page.get(header) {
            Some(0x0d) => (8, 0, true),
            Some(0x0a) => (8, 0, false),
            Some(0x02) => (12, 4, false),
            _ => return Vec::new(),
        };
        let cells = u16_at(page, header + 3).unwrap_or(0);
        let places = (0..cells).filter_map(|n| u16_at(page, header + first_cell + 2 * n));
        places.filter_map(|at| self.row(page, at + child, has_rowid)).collect()
    }

    fn row(&self, page: &[u8], at: usize, has_rowid: bool) -> Option<StoredRow> {
        let mut cell = Cursor { bytes: page.get(at..)? };
        let length = usize::try_from(cell.varint()?).ok().filter(|length| *length <= MAX_ROW)?;
        let rowid = if has_rowid { Some(cell.varint()?) } else { None };
        // From the file format: how much of a row stands on its own page.
        let most = if has_rowid { PAGE_SIZE - 35 } else { (PAGE_SIZE - 12) * 64 / 255 - 23 };
        if length <= most {
            return Some(StoredRow { rowid, columns: columns(cell.take(length)?)? });
        }
        let least = (PAGE_SIZE - 12) * 32 / 255 - 23;
        let fitting = least + (length - least) % (PAGE_SIZE - 4);
        let mut row = cell.take(if fitting <= most { fitting } else { least })?.to_vec();
        let mut next = u32_at(cell.bytes, 0)?;
        while row.len() < length {
            let page = self.page(next)?;
            let rest = (length - row.len()).min(PAGE_SIZE - 4);
            row.extend_from_slice(&page[4..4 + rest]);
            next = u32_at(&page, 0)?;
        }
        Some(StoredRow { rowid, columns: columns(&row)? })
    }
}

fn there(opened: io::Result<File>) -> io::Result<Option<File>> {
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The columns of a row in SQLite's record format.
fn columns(record: &[u8]) -> Option<Vec<Value>> {
    let mut types = Cursor { bytes: record };
    let header = usize::try_from(types.varint()?).ok()?;
    let mut values = Cursor { bytes: record.get(header..)? };
    types.bytes = record.get(record.len() - types.bytes.len()..header)?;
    let mut columns = Vec::new();
    while !types.bytes.is_empty() {
        columns.push(value(types.varint()?, &mut values)?);
    }
    Some(columns)
}

fn value(kind: i64, values: &mut Cursor<'_>) -> Option<Value> {
    Some(match kind {
        0 => Value::Null,
        1 => Value::Integer(values.integer(1)?),
        2 => Value::Integer(values.integer(2)?),
        3 => Value::Integer(values.integer(3)?),
        4 => Value::Integer(values.integer(4)?),
        5 => Value::Integer(values.integer(6)?),
        6 => Value::Integer(values.integer(8)?),
        7 => Value::Real(f64::from_bits(values.integer(8)? as u64)),
        8 => Value::Integer(0),
        9 => Value::Integer(1),
        12.. => {
            let bytes = values.take(usize::try_from((kind - 12) / 2).ok()?)?.to_vec();
            if kind % 2 == 0 { Value::Blob(bytes) } else { Value::Text(String::from_utf8(bytes).ok()?) }
        }
        _ => return None,
    })
}

/// Bytes that are read from the front.
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(taken)
    }

    /// Seven bits a byte, the first ones first; a ninth byte gives all of its eight.
    fn varint(&mut self) -> Option<i64> {
        let mut n: u64 = 0;
        for _ in 0..8 {
            let byte = self.take(1)?[0];
            n = n << 7 | u64::from(byte & 0x7f);
            if byte < 0x80 {
                return Some(n as i64);
            }
        }
        Some((n << 8 | u64::from(self.take(1)?[0])) as i64)
    }

    /// A signed number of so many bytes, the most significant first.
    fn integer(&mut self, bytes: usize) -> Option<i64> {
        let taken = self.take(bytes)?;
        let sign = if taken[0] & 0x80 == 0 { 0 } else { -1 };
        Some(taken.iter().fold(sign, |n, byte| n << 8 | i64::from(*byte)))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?)))
}

/// Four bytes as a number, the most significant first.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
