//! The lines of an NDJSON file, streamed: memory holds one line, whatever the file's size.

use flate2::CrcWriter;
use std::io::{self, Read, Write};

/// What the next line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line of text, its end and surrounding white space removed.
    Text(Vec<u8>),
    /// The last line, without an end: finished, or still being written.
    Unterminated(Vec<u8>),
    /// More bytes without the end of a line than any line should have.
    TooLong,
    /// Nothing is left.
    End,
}

/// Bytes skipped in one step: a fraction of a second, packed or not, so that whoever reads a long file can be told
/// to stop.
const MAX_SKIP: u64 = 64 << 20;

/// Reads lines, and counts and sums up what it has passed as it goes.
pub struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    start: usize,
    max_line: u64,
    /// Bytes of the text before the next line.
    pub position: u64,
    /// Lines before the next one.
    pub place: u64,
    passed: CrcWriter<io::Sink>,
}

impl<R: Read> Lines<R> {
    /// Lines of `source`; `max_line` bytes without the end of a line end it.
    pub fn new(source: R, max_line: u64) -> Lines<R> {
        let passed = CrcWriter::new(io::sink());
        Lines { source, buffer: Vec::new(), start: 0, max_line, position: 0, place: 0, passed }
    }

    /// The CRC-32 of the text before the next line.
    pub fn sum(&self) -> u32 {
        self.passed.crc().sum()
    }

    /// Goes on towards where an earlier reading ended, by at most `MAX_SKIP` bytes. Returns whether it is there.
    ///
    /// # Errors
    /// The source's; [`io::ErrorKind::UnexpectedEof`] when it is shorter than it was.
    pub fn skip_towards(&mut self, position: u64, place: u64) -> io::Result<bool> {
        let step = (position - self.position).min(MAX_SKIP);
        if io::copy(&mut (&mut self.source).take(step), &mut self.passed)? < step {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += step;
        self.place = place;
        Ok(self.position == position)
    }

    /// The next line.
    ///
    /// # Errors
    /// The source's: for a packed one, also that it is damaged or cut.
    pub fn next_line(&mut self) -> io::Result<Line> {
        let mut searched = self.start;
        loop {
            if let Some(i) = memchr::memchr(b'\n', &self.buffer[searched..]) {
                let end = searched + i;
                if (end - self.start) as u64 > self.max_line {
                    // Told by its length, not by how much of it a read happened to bring.
                    return Ok(Line::TooLong);
                }
                let line = Line::Text(trimmed(&self.buffer[self.start..end], self.place));
                self.passed.write_all(&self.buffer[self.start..=end])?;
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
                self.passed.write_all(&self.buffer)?;
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
    fn lines_come_trimmed_and_the_last_may_lack_its_end() {
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
    fn a_line_without_end_ends_the_reading() {
        assert_eq!(Lines::new(io::repeat(b'x'), 1 << 20).next_line().unwrap(), Line::TooLong);
        assert_eq!(Lines::new(&b"four\n"[..], 4).next_line().unwrap(), Line::Text(b"four".into()));
        for long in ["fives\n", "fives"] {
            assert_eq!(Lines::new(long.as_bytes(), 4).next_line().unwrap(), Line::TooLong);
        }
    }

    #[test]
    fn reading_goes_on_where_it_ended() {
        let text = b"one\ntwo\nthree\n";
        let mut lines = Lines::new(&text[..], 99);
        lines.next_line().unwrap();
        let mut again = Lines::new(&text[..], 99);
        assert!(again.skip_towards(lines.position, lines.place).unwrap());
        assert_eq!(again.sum(), lines.sum());
        assert_eq!(again.next_line().unwrap(), Line::Text(b"two".into()));
        assert!(Lines::new(&text[..], 99).skip_towards(99, 9).is_err());
    }
}
