//! SQLite's record format: how the columns of a row are stored (<https://sqlite.org/fileformat2.html#record_format>).

use rusqlite::types::Value;

/// The size of a page. It is SQLite's default, which this outbox never changes.
pub const PAGE_SIZE: usize = 4_096;
/// What an overflow page holds of a row; its first four bytes are the number of the next one.
pub const OVERFLOW_ROOM: usize = PAGE_SIZE - 4;

/// How many bytes of a row of that length stand on its own page; the rest is on overflow pages
/// (<https://sqlite.org/fileformat2.html#b_tree_pages>). `has_rowid`: the row is of a table with row numbers.
pub const fn local_length(length: usize, has_rowid: bool) -> usize {
    let max = if has_rowid { PAGE_SIZE - 35 } else { (PAGE_SIZE - 12) * 64 / 255 - 23 };
    if length <= max {
        return length;
    }
    let min = (PAGE_SIZE - 12) * 32 / 255 - 23;
    let fitting = min + (length - min) % OVERFLOW_ROOM;
    if fitting <= max { fitting } else { min }
}

/// The columns of a record; `None`: it is damaged.
pub fn columns(record: &[u8]) -> Option<Vec<Value>> {
    let mut types = ByteReader { bytes: record };
    let header = usize::try_from(types.varint()?).ok()?;
    let mut values = ByteReader { bytes: record.get(header..)? };
    types.bytes = record.get(record.len() - types.bytes.len()..header)?;
    let mut columns = Vec::new();
    while !types.bytes.is_empty() {
        columns.push(value(types.varint()?, &mut values)?);
    }
    Some(columns)
}

fn value(kind: i64, values: &mut ByteReader<'_>) -> Option<Value> {
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

/// Reads bytes from the front.
pub struct ByteReader<'a> {
    pub bytes: &'a [u8],
}

impl<'a> ByteReader<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(first)
    }

    /// A variable-length integer: seven bits a byte, the most significant first; a ninth byte gives all of its eight.
    pub fn varint(&mut self) -> Option<i64> {
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

    /// A signed integer of that many bytes, the most significant first.
    fn integer(&mut self, length: usize) -> Option<i64> {
        let bytes = self.take(length)?;
        let sign = if bytes[0] & 0x80 == 0 { 0 } else { -1 };
        Some(bytes.iter().fold(sign, |n, byte| n << 8 | i64::from(*byte)))
    }
}

/// Two bytes as a number, the most significant first.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?)))
}

/// Four bytes as a number, the most significant first.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..)?.first_chunk().copied()?))
}
