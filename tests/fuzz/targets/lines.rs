//! The lines of a file, packed or not: however the bytes come, the same lines, and reading goes on at any of them.

#![no_main]

use flate2::Compression;
use flate2::read::GzEncoder;
use koala_agent::spool::{Line, Lines, unpacked};
use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::io::{self, Read, Seek, Write};

/// The longest line here.
const MAX_LINE: u64 = 4096;
/// A packed file of these is a bomb, and the rest of it is not unpacked.
const MAX_LINES: usize = 100_000;

fuzz_target!(|bytes: &[u8]| {
    let [mode, step, rest @ ..] = bytes else { return };
    match mode % 3 {
        0 => whole(rest, usize::from(*step)),
        // Any bytes as a packed file.
        1 => drop(read(Lines::new(unpacked(file(rest), true), MAX_LINE))),
        // A packed file that was cut.
        _ => {
            let mut packed = Vec::new();
            GzEncoder::new(rest, Compression::fast()).read_to_end(&mut packed).unwrap();
            packed.truncate(packed.len() * (1 + usize::from(*step)) / 256);
            let (lines, error) = read(Lines::new(unpacked(file(&packed), true), MAX_LINE));
            let endless = lines.last() == Some(&Line::TooLong);
            assert!(*step == 255 || endless || error.is_some(), "a cut file is read as whole");
        }
    }
});

fn whole(bytes: &[u8], step: usize) {
    let (lines, error) = read(Lines::new(bytes, MAX_LINE));
    assert!(error.is_none());
    assert_eq!(read(Lines::new(Slow { bytes, step: step.max(1) }, MAX_LINE)).0, lines);
    if lines.last() == Some(&Line::TooLong) {
        return;
    }
    // Goes on after line number `step`, as after a crash.
    let mut first = Lines::new(bytes, MAX_LINE);
    for _ in 0..step.min(lines.len()) {
        first.next_line().unwrap();
    }
    let mut second = Lines::new(bytes, MAX_LINE);
    assert!(second.skip_towards(first.position, first.place).unwrap());
    assert_eq!(read(second).0, lines[step.min(lines.len())..]);
}

/// The lines up to the end or to an error.
fn read(mut source: Lines<impl Read>) -> (Vec<Line>, Option<io::Error>) {
    let mut lines = Vec::new();
    while lines.len() < MAX_LINES {
        match source.next_line() {
            Ok(Line::End) => break,
            Ok(Line::TooLong) => {
                lines.push(Line::TooLong);
                break;
            }
            Ok(line) => lines.push(line),
            Err(error) => return (lines, Some(error)),
        }
    }
    (lines, None)
}

/// A source that gives little at once.
struct Slow<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = self.step.min(buffer.len());
        self.bytes.read(&mut buffer[..some])
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}
