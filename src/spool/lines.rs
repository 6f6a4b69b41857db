//! The lines of an NDJSON file as a stream: memory holds one line, however large the file is.

use flate2::CrcWriter;
use std::io::{self, Read, Write};

/// One step of reading: the next line, or the end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line without its end and without surrounding white space.
    Text(Vec<u8>),
    /// The last line, which has no end: it is complete, or still being written.
    Unterminated(Vec<u8>),
    /// A line that is longer than the limit.
    TooLong,
    /// The end of the file.
    End,
}

/// The most bytes skipped in one step: a step takes a fraction of a second, packed or not, so that the reader of a long
/// file can be stopped.
const MAX_SKIP: u64 = 64 << 20;

/// Reads lines, and keeps the position and the checksum of the text before the next one.
pub struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    max_line: u64,
    /// The number of bytes before the next line.
    pub position: u64,
    /// The number of lines before the next one.
    pub place: u64,
    checksum: CrcWriter<io::Sink>,
}

impl<R: Read> Lines<R> {
    /// Reads the lines of `source`. A line of more than `max_line` bytes is [`Line::TooLong`].
    pub fn new(source: R, max_line: u64) -> Lines<R> {
        let checksum = CrcWriter::new(io::sink());
        Lines { source, buffer: Vec::new(), start: 0, max_line, position: 0, place: 0, checksum }
    }

    /// The CRC-32 of the text before the next line.
    pub fn crc(&self) -> u32 {
        self.checksum.crc().sum()
    }

    /// Skips to the position where an earlier reading ended, at most `MAX_SKIP` bytes at a time. Returns whether that
    /// position is reached.
    ///
    /// # Errors
    /// The source fails, with [`io::ErrorKind::UnexpectedEof`] if it is shorter than it was.
    pub fn skip_towards(&mut self, position: u64, place: u64) -> io::Result<bool> {
        let step = (position - self.position).min(MAX_SKIP);
        if io::copy(&mut (&mut self.source).take(step), &mut self.checksum)? < step {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += step;
        self.place = place;
        Ok(self.position == position)
    }

    /// Reads the next line.
    ///
    /// # Errors
    /// The source fails; a packed one also if it is damaged or cut.
    pub fn next_line(&mut self) -> io::Result<Line> {
        let mut searched = self.start;
        loop {
            if let Some(i) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let end = searched + i;
                if (end - self.start) as u64 > self.max_line {
                    // The length decides, not the amount that a single read happened to return.
                    return Ok(Line::TooLong);
                }
                let line = Line::Text(trimmed(&self.buffer[self.start..end], self.place));
                self.checksum.write_all(&self.buffer[self.start..=end])?;
                self.position += (end + 1 - self.start) as u64;
                self.place += 1;
                self.start = end + 1;
                return Ok(line);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            searched = self.buffer.len();
            if searched as u64 > self.max_line {
                return Ok(Line::TooLong);
            }
            self.buffer.resize(searched + super::READ_BUFFER, 0);
            let n = self.source.read(&mut self.buffer[searched..])?;
            self.buffer.truncate(searched + n);
            if n == 0 {
                if self.buffer.is_empty() {
                    return Ok(Line::End);
                }
                let line = Line::Unterminated(trimmed(&self.buffer, self.place));
                self.checksum.write_all(&self.buffer)?;
                self.position += self.buffer.len() as u64;
                self.place += 1;
                self.buffer.clear();
                return Ok(line);
            }
        }
    }
}

fn trimmed(line: &[u8], place: u64) -> Vec<u8> {
    let line = if place == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
    line.trim_ascii().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<Line> {
        let mut lines = Lines::new(text, 1 << 20);
        let mut out = Vec::new();
        loop {
            match lines.next_line().unwrap() {
                Line::End => break,
                line => out.push(line),
            }
        }
        assert_eq!(lines.position, text.len() as u64);
        assert_eq!(lines.place, out.len() as u64);
        out
    }

    #[test]
    fn lines_are_trimmed_and_the_last_may_be_unterminated() {
        let text = |s: &str| Line::Text(s.into());
        assert_eq!(
            all(b"\xef\xbb\xbfa\r\n b \n\nc"),
            [text("a"), text("b"), text(""), Line::Unterminated("c".into())]
        );
        assert_eq!(all(b""), []);
        let long = [vec![b'x'; 300_000], b"\nok\n".to_vec()].concat();
        assert_eq!(all(&long), [Line::Text(long[..300_000].to_vec()), text("ok")]);
    }

    #[test]
    fn a_line_above_the_limit_is_too_long() {
        assert_eq!(Lines::new(io::repeat(b'x'), 1 << 20).next_line().unwrap(), Line::TooLong);
        assert_eq!(Lines::new(&b"four\n"[..], 4).next_line().unwrap(), Line::Text(b"four".into()));
        for long in ["fives\n", "fives"] {
            assert_eq!(Lines::new(long.as_bytes(), 4).next_line().unwrap(), Line::TooLong);
        }
    }

    #[test]
    fn a_second_reading_continues_where_the_first_ended() {
        let text = b"one\ntwo\nthree\n";
        let mut lines = Lines::new(&text[..], 99);
        lines.next_line().unwrap();
        let mut again = Lines::new(&text[..], 99);
        assert!(again.skip_towards(lines.position, lines.place).unwrap());
        assert_eq!(again.crc(), lines.crc());
        assert_eq!(again.next_line().unwrap(), Line::Text(b"two".into()));
        assert!(Lines::new(&text[..], 99).skip_towards(99, 9).is_err());
    }
}
