//! The rows of a database that SQLite itself may refuse to open, read from its pages. The file format is fixed
//! (<https://sqlite.org/fileformat2.html>), and an intact page says by itself which rows are on it. No byte is trusted:
//! a row that does not add up is left out.

pub(super) mod record;
mod wal_pages;

use record::{ByteReader, OVERFLOW_ROOM, PAGE_SIZE, columns, local_length, u16_at};
use rusqlite::types::Value;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use wal_pages::WalPages;

pub use record::u32_at;
pub use wal_pages::{StoredTexts, stored_texts};

/// The length of the file's header, which stands on the first page.
const FILE_HEADER: usize = 100;
/// A length that no row exceeds: that of a document of the spool and its other columns.
const MAX_ROW: usize = 256 << 20;

/// A database file and its write-ahead log, as they lie on the disk.
pub struct Pages {
    main: Option<File>,
    wal: Option<(File, WalPages)>,
    log: Log,
}

/// What the log is to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// The database's own: its pages take the place of the database's.
    Own,
    /// That of another state of the database: its pages are read beside the database's, and none of one leads to the other.
    Other,
    /// There is none, or it is not to be read.
    None,
}

/// A row as it is stored.
#[derive(Debug)]
pub struct StoredRow {
    /// `None`: the table has no rowids.
    pub rowid: Option<i64>,
    pub columns: Vec<Value>,
}

impl Pages {
    /// Opens the files that exist.
    ///
    /// # Errors
    /// The system's.
    pub fn open(main: &Path, wal: &Path, log: Log) -> io::Result<Pages> {
        let wal = match open_if_exists(wal)? {
            Some(file) if log != Log::None => WalPages::read(&file)?.map(|pages| (file, pages)),
            _ => None,
        };
        Ok(Pages { main: open_if_exists(main)?, wal, log })
    }

    /// Whether the rows are those of one state of the database, so that its counters say how many there should be.
    pub fn are_of_one_state(&self) -> bool {
        self.log != Log::Other
    }

    /// Calls `each` with every row on an intact page in use, whatever its table. Skips pages that cannot be read. The rows
    /// in another log come first: mostly that is the newer one.
    ///
    /// # Errors
    /// The first of `each`.
    pub fn each_row<E>(&self, mut each: impl FnMut(StoredRow) -> Result<(), E>) -> Result<(), E> {
        let main = View { main: self.main.as_ref(), wal: None };
        let wal = View { main: None, wal: self.wal.as_ref() };
        if self.log == Log::Other {
            wal.each_row(&mut each)?;
            return main.each_row(&mut each);
        }
        View { main: main.main, wal: wal.wal }.each_row(&mut each)
    }
}

/// The pages that are one state of a database.
struct View<'a> {
    main: Option<&'a File>,
    wal: Option<&'a (File, WalPages)>,
}

impl View<'_> {
    /// The number of pages.
    fn count(&self) -> u32 {
        let bytes = || self.main.and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        self.wal.map_or_else(
            || u32::try_from(bytes() / PAGE_SIZE as u64).unwrap_or(u32::MAX),
            |(_, wal)| wal.count,
        )
    }

    fn each_row<E>(&self, each: &mut impl FnMut(StoredRow) -> Result<(), E>) -> Result<(), E> {
        let (free, count) = (self.free_pages(), self.count());
        for number in (1..=count).filter(|number| !free.contains(number)) {
            let Some(page) = self.page(number) else { continue };
            for row in self.rows_of(&page, if number == 1 { FILE_HEADER } else { 0 }) {
                each(row)?;
            }
        }
        Ok(())
    }

    fn page(&self, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE_SIZE];
        if let Some((file, pages)) = self.wal
            && let Some(at) = pages.offset(number)
        {
            file.read_exact_at(&mut page, at).ok()?;
        } else {
            let at = u64::from(number.checked_sub(1)?) * PAGE_SIZE as u64;
            self.main?.read_exact_at(&mut page, at).ok()?;
        }
        Some(page)
    }

    /// The pages on the free list, whose rows were deleted.
    fn free_pages(&self) -> HashSet<u32> {
        let mut free = HashSet::new();
        let mut trunk = self.page(1).and_then(|first| u32_at(&first, 32)).unwrap_or(0);
        let count = self.count();
        while trunk != 0 && trunk <= count && free.insert(trunk) {
            let Some(page) = self.page(trunk) else { break };
            let leaves = u32_at(&page, 4).unwrap_or(0) as usize;
            free.extend((0..leaves.min(PAGE_SIZE / 4)).filter_map(|n| u32_at(&page, 8 + 4 * n)));
            trunk = u32_at(&page, 0).unwrap_or(0);
        }
        free
    }

    fn rows_of(&self, page: &[u8], header: usize) -> Vec<StoredRow> {
        // A leaf of a table with rowids; a leaf and an inner page of a table without, or of an index.
        let (first_cell, child, has_rowid) = match page.get(header) {
            Some(0x0d) => (8, 0, true),
            Some(0x0a) => (8, 0, false),
            Some(0x02) => (12, 4, false),
            _ => return Vec::new(),
        };
        let cells = u16_at(page, header + 3).unwrap_or(0);
        let offsets = (0..cells).filter_map(|n| u16_at(page, header + first_cell + 2 * n));
        offsets.filter_map(|at| self.row(page, at + child, has_rowid)).collect()
    }

    fn row(&self, page: &[u8], at: usize, has_rowid: bool) -> Option<StoredRow> {
        let mut cell = ByteReader { bytes: page.get(at..)? };
        let length = usize::try_from(cell.varint()?).ok().filter(|length| *length <= MAX_ROW)?;
        let rowid = if has_rowid { Some(cell.varint()?) } else { None };
        let local = cell.take(local_length(length, has_rowid))?;
        if local.len() == length {
            return Some(StoredRow { rowid, columns: columns(local)? });
        }
        let mut row = local.to_vec();
        let mut next = u32_at(cell.bytes, 0)?;
        while row.len() < length {
            let page = self.page(next)?;
            let rest = (length - row.len()).min(OVERFLOW_ROOM);
            row.extend_from_slice(&page[4..4 + rest]);
            next = u32_at(&page, 0)?;
        }
        Some(StoredRow { rowid, columns: columns(&row)? })
    }
}

/// The rows that stand wholly on a page other than the first.
pub fn local_rows(page: &[u8]) -> Vec<StoredRow> {
    View { main: None, wal: None }.rows_of(page, 0)
}

fn open_if_exists(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
