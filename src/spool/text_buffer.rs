//! The part of a file's text that is in memory, and what is known of the text before it.

use super::text::{READ_BUFFER, Text};
use crate::event::Flaw;
use flate2::Crc;
use std::io::{self, ErrorKind, Read};

/// A buffer that grows beyond this grows to the largest value at once: a buffer that is doubled again and again is in
/// memory twice. Pages that are not written to take no memory.
const LARGE: usize = 1 << 20;

/// The text from the first byte that is not consumed to the last that is read.
pub struct TextBuffer {
    text: Text,
    /// The size of the file, packed or not, where it is known.
    size: Option<u64>,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that are consumed.
    start: usize,
    bytes_read: u64,
    is_at_end: bool,
    /// The largest buffer that is needed.
    largest: usize,
    /// The bytes consumed.
    position: u64,
    /// The current line, from 1.
    line: u64,
    /// The number of bytes before it.
    line_start: u64,
    /// Of the text before `position`, where it is wanted.
    checksum: Option<Crc>,
}

impl TextBuffer {
    /// Nothing is read yet. `has_checksum`: the text is summed as it is consumed. `largest` bytes may be needed at once.
    pub fn new(text: Text, size: Option<u64>, has_checksum: bool, largest: u64) -> TextBuffer {
        TextBuffer {
            text,
            size,
            buffer: Vec::new(),
            start: 0,
            bytes_read: 0,
            is_at_end: false,
            largest: usize::try_from(largest).unwrap_or(usize::MAX).saturating_add(2 * READ_BUFFER),
            position: 0,
            line: 1,
            line_start: 0,
            checksum: has_checksum.then(Crc::new),
        }
    }

    /// The text that is read and not consumed.
    pub fn rest(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Whether nothing follows the rest.
    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// Whether as much was read as the file has bytes: then the end is near.
    pub fn is_all_read(&self) -> bool {
        self.is_at_end || !self.is_packed() && self.size == Some(self.bytes_read)
    }

    pub fn is_packed(&self) -> bool {
        self.text.is_packed()
    }

    /// Whether the file is known to be empty.
    pub fn is_empty_file(&self) -> bool {
        self.size == Some(0)
    }

    /// Whether bytes follow the packed text that are neither packed text nor padding. Known at the end.
    pub fn has_trailing_bytes(&self) -> bool {
        self.text.has_trailing_bytes()
    }

    /// The bytes of text in memory.
    pub fn memory(&self) -> usize {
        self.buffer.len()
    }

    #[cfg(test)]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The number of bytes consumed.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The CRC-32 of the text that is consumed.
    pub fn sum(&self) -> Option<u32> {
        self.checksum.as_ref().map(Crc::sum)
    }

    /// The line of the rest, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Whether the rest begins a line.
    pub fn is_line_start(&self) -> bool {
        self.position == self.line_start
    }

    /// Reads once. Returns the number of bytes, which may be 0 before the end as well.
    ///
    /// # Errors
    /// The source fails; a packed one also if it is damaged or cut.
    pub fn read_more(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let length = self.buffer.len();
        if self.buffer.capacity() > LARGE && length < LARGE / 2 {
            self.buffer.shrink_to(LARGE / 2);
        }
        // With room for one byte more, a file of ordinary size takes one read, and another to find its end.
        let size = self.size.filter(|_| self.bytes_read == 0 && !self.is_packed());
        let room = size.map_or(READ_BUFFER, |size| size.saturating_add(1).min(READ_BUFFER as u64) as usize);
        if length + room > LARGE.max(self.buffer.capacity()) {
            // Where so much cannot be reserved, the buffer grows as buffers do.
            let _ = self.buffer.try_reserve_exact(self.largest.saturating_sub(length));
        }
        self.buffer.resize(length + room, 0);
        let read = self.text.read(&mut self.buffer[length..]);
        self.buffer.truncate(length + read.as_ref().map_or(0, |bytes| *bytes));
        match read {
            Ok(bytes) => {
                self.is_at_end = bytes == 0;
                self.bytes_read += bytes as u64;
                Ok(bytes)
            }
            // Nothing yet.
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Passes over the next bytes.
    pub fn consume(&mut self, bytes: usize) {
        let text = &self.buffer[self.start..self.start + bytes];
        if let Some(checksum) = &mut self.checksum {
            checksum.update(text);
        }
        if let Some(last) = memchr::memrchr(b'\n', text) {
            self.line += memchr::memchr_iter(b'\n', text).count() as u64;
            self.line_start = self.position + last as u64 + 1;
        }
        self.position += bytes as u64;
        self.start += bytes;
    }

    /// Passes over bytes that count in no line.
    pub fn consume_mark(&mut self, bytes: usize) {
        self.consume(bytes);
        self.line_start += bytes as u64;
    }

    /// Passes over the next bytes and returns them; many of them without a copy.
    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let from = self.start;
        self.consume(bytes);
        if bytes < LARGE {
            return self.buffer[from..self.start].to_vec();
        }
        let rest = self.buffer.split_off(self.start);
        let mut taken = std::mem::replace(&mut self.buffer, rest);
        self.start = 0;
        taken.drain(..from);
        taken
    }

    /// Places a flaw of the rest in the file.
    pub fn located(&self, flaw: Flaw) -> Flaw {
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let column = number(self.position - self.line_start);
        Flaw {
            line: number(self.line) + flaw.line - 1,
            column: if flaw.line == 1 { column + flaw.column } else { flaw.column },
            ..flaw
        }
    }
}
