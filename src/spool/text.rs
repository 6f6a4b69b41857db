//! The text of a file: as it is, or unpacked.
//!
//! A read does a bounded amount of work, whatever is in the file, and is `Interrupted` if that amount brought no text: a
//! packed file may have any number of bytes that unpack to nothing. `flate2`'s own reader of several members is not used,
//! because it fails at what follows the last one: `gunzip` passes over zeros there, and so do blocks of a tape or a disk.

use flate2::bufread::GzDecoder;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};

/// The size of a read: an ordinary line comes in one.
pub const READ_BUFFER: usize = 64 << 10;
/// The most packed bytes that one read looks at: some milliseconds, however little they unpack to.
const MAX_PACKED: usize = 1 << 20;
/// The first bytes of a packed member (RFC 1952, section 2.3.1).
pub const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The number of zeros with which the bytes begin. Whole blocks are compared at once: a file may have gigabytes of them.
pub(super) fn leading_zeros(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let blocks = bytes.chunks_exact(ZEROS.len()).take_while(|block| *block == ZEROS).count() * ZEROS.len();
    blocks + bytes[blocks..].iter().take_while(|byte| **byte == 0).count()
}

/// A file as it is, but for zeros at its end that are not on the disk: whoever allocates room for a file and then writes
/// less leaves as many of them as it likes.
pub struct PlainFile {
    file: File,
    has_text: bool,
}

impl PlainFile {
    /// Reads the file from where it is.
    pub fn new(file: File) -> PlainFile {
        PlainFile { file, has_text: false }
    }

    /// Whether the file has no data from here on. Where the file system cannot tell, it has.
    fn is_empty_from_here(&mut self) -> io::Result<bool> {
        let here = self.file.stream_position()?;
        let offset = i64::try_from(here).unwrap_or(i64::MAX);
        if lseek(&self.file, offset, Whence::SeekData) == Err(Errno::ENXIO) {
            return Ok(true);
        }
        self.file.seek(SeekFrom::Start(here)).map(|_| false)
    }
}

impl Read for PlainFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(into)?;
        let is_zero = n > 0 && leading_zeros(&into[..n]) == n;
        // A file without any text is not padding behind text.
        if is_zero && self.has_text && self.is_empty_from_here()? {
            return Ok(0);
        }
        self.has_text |= n > 0 && !is_zero;
        Ok(n)
    }
}

/// A reader that says `WouldBlock` after [`MAX_PACKED`] bytes: then a decoder can go on later where it is.
struct Metered<R> {
    packed: BufReader<R>,
    left: usize,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(into)?;
        self.consume(n);
        Ok(n)
    }
}

impl<R: Read> BufRead for Metered<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.packed.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.packed.consume(bytes);
    }
}

/// The text of all gzip members of a file, one after another.
pub struct Unpacked<R> {
    state: Member<R>,
    /// Whether a member has ended.
    has_member: bool,
    has_trailing_bytes: bool,
}

enum Member<R> {
    Inside(Box<GzDecoder<Metered<R>>>),
    Outside(Metered<R>),
    /// Only within a read.
    Moving,
}

impl<R: Read> Unpacked<R> {
    /// Unpacks what `packed` has.
    pub fn new(packed: R) -> Unpacked<R> {
        let packed = Metered { packed: BufReader::with_capacity(READ_BUFFER, packed), left: 0 };
        Unpacked { state: Member::Outside(packed), has_member: false, has_trailing_bytes: false }
    }

    /// Whether bytes that are neither packed text nor padding follow the last member. Known at the end.
    pub fn has_trailing_bytes(&self) -> bool {
        self.has_trailing_bytes
    }

    /// Begins the next member. Returns whether there is one.
    fn next_member(&mut self) -> io::Result<bool> {
        let Member::Outside(packed) = &mut self.state else { return Ok(true) };
        let head = loop {
            let bytes = packed.fill_buf()?;
            // The first member has to stand at the beginning.
            let zeros = if self.has_member { leading_zeros(bytes) } else { 0 };
            match bytes.get(zeros) {
                Some(_) => {
                    packed.consume(zeros);
                    break packed.fill_buf()?;
                }
                None if bytes.is_empty() && self.has_member => return Ok(false),
                None if bytes.is_empty() => break bytes,
                None => packed.consume(zeros),
            }
        };
        // A file may be cut after the first byte.
        let is_member = head.iter().zip(GZIP_MAGIC).all(|(byte, magic)| *byte == magic);
        if self.has_member && !is_member {
            self.has_trailing_bytes = true;
            return Ok(false);
        }
        if let Member::Outside(packed) = std::mem::replace(&mut self.state, Member::Moving) {
            self.state = Member::Inside(Box::new(GzDecoder::new(packed)));
        }
        Ok(true)
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.state {
            Member::Inside(member) => member.get_mut().left = MAX_PACKED,
            Member::Outside(packed) => packed.left = MAX_PACKED,
            Member::Moving => return Ok(0),
        }
        let read_on = |e: io::Error| match e.kind() {
            ErrorKind::WouldBlock => ErrorKind::Interrupted.into(),
            _ => e,
        };
        loop {
            if !self.next_member().map_err(read_on)? {
                return Ok(0);
            }
            let Member::Inside(member) = &mut self.state else { return Ok(0) };
            let n = member.read(into).map_err(read_on)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            self.has_member = true;
            if let Member::Inside(member) = std::mem::replace(&mut self.state, Member::Moving) {
                self.state = Member::Outside(member.into_inner());
            }
        }
    }
}

/// The text of a file or of standard input.
pub enum Text {
    /// As it is.
    Plain(Box<dyn Read + Send>),
    /// Packed.
    Packed(Box<Unpacked<Box<dyn Read + Send>>>),
}

impl Text {
    /// The text of `source`, which is packed or not.
    pub fn new(source: Box<dyn Read + Send>, is_packed: bool) -> Text {
        if is_packed { Text::Packed(Box::new(Unpacked::new(source))) } else { Text::Plain(source) }
    }

    /// Whether bytes that are neither packed text nor padding follow the packed text. Known at the end.
    pub fn has_trailing_bytes(&self) -> bool {
        matches!(self, Text::Packed(unpacked) if unpacked.has_trailing_bytes())
    }

    /// Whether the text is unpacked as it is read.
    pub fn is_packed(&self) -> bool {
        matches!(self, Text::Packed(_))
    }
}

impl Read for Text {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Text::Plain(source) => source.read(into),
            Text::Packed(source) => source.read(into),
        }
    }
}

/// A reader of a file's text, unpacked where it is packed.
pub fn unpacked(file: File, is_packed: bool) -> Text {
    Text::new(Box::new(PlainFile::new(file)), is_packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// The text, whether bytes follow it, and the number of reads; the error as its kind.
    fn unpacked(bytes: &[u8]) -> Result<(String, bool, usize), ErrorKind> {
        let mut source = Unpacked::new(bytes);
        let (mut text, mut reads) = (Vec::new(), 0);
        let mut buffer = [0; 4096];
        loop {
            reads += 1;
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => text.extend(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.kind()),
            }
        }
        Ok((String::from_utf8(text).unwrap(), source.has_trailing_bytes(), reads))
    }

    #[test]
    fn members_make_one_text_and_what_follows_them_costs_nothing() {
        let (a, b) = (packed(b"a"), packed(b"b"));
        let zeros = [0; 100];
        for (bytes, want) in [
            (a.clone(), Ok(("a", false))),
            ([&a[..], &b].concat(), Ok(("ab", false))),
            ([&a[..], &zeros].concat(), Ok(("a", false))),
            ([&a[..], &zeros, &b].concat(), Ok(("ab", false))),
            ([&a[..], b"trailing"].concat(), Ok(("a", true))),
            ([&a[..], &zeros, b"trailing"].concat(), Ok(("a", true))),
            ([&a[..], &b[..1]].concat(), Err(ErrorKind::UnexpectedEof)),
            ([&a[..], &b[..9]].concat(), Err(ErrorKind::UnexpectedEof)),
            ([&a[..], &GZIP_MAGIC, b"no header"].concat(), Err(ErrorKind::InvalidInput)),
            (a[..a.len() - 1].to_vec(), Err(ErrorKind::UnexpectedEof)),
            (b"no packed text".to_vec(), Err(ErrorKind::InvalidInput)),
            ([&zeros, &a[..]].concat(), Err(ErrorKind::InvalidInput)),
            (Vec::new(), Err(ErrorKind::UnexpectedEof)),
        ] {
            let got = unpacked(&bytes).map(|(text, trails, _)| (text, trails));
            assert_eq!(got, want.map(|(text, trails)| (text.to_owned(), trails)), "{bytes:?}");
        }
    }

    #[test]
    fn what_unpacks_to_nothing_takes_several_reads() {
        let empty = packed(b"").repeat(200_000);
        let zeros = [packed(b"a"), vec![0; 4 << 20]].concat();
        // Deflate blocks that are stored, empty and not the last, in one member.
        let blocks =
            [&packed(b"")[..10], &[0, 0, 0, 0xff, 0xff].repeat(1 << 20), &packed(b"")[10..]].concat();
        for bytes in [empty, zeros, blocks] {
            let (_, _, reads) = unpacked(&bytes).unwrap();
            assert!(reads > bytes.len() / MAX_PACKED, "{reads} reads");
        }
    }

    #[test]
    fn a_hole_behind_the_text_is_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"text").unwrap();
        file.set_len(1 << 40).unwrap();
        file.rewind().unwrap();
        let mut text = Vec::new();
        PlainFile::new(file).read_to_end(&mut text).unwrap();
        assert!(text.starts_with(b"text") && text.len() < 1 << 20);
    }
}
