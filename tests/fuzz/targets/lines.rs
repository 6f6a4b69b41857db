//! Any bytes as a file of lines or as a document, packed or not: however they come, the same steps, in bounded work, and
//! reading goes on behind any of them.

#![no_main]

use flate2::Compression;
use flate2::read::GzEncoder;
use koala_agent::spool::{Format, ReadEnd, ReadLimits, ReadPosition, ReadStep, RejectedPart, Text, Values};
use libfuzzer_sys::fuzz_target;
use std::io::{self, Read};

const LIMITS: ReadLimits = ReadLimits { max_value: 4096, max_event: 200, max_over_lines: 300 };
/// A packed file of these is a bomb, and the rest of it is not unpacked.
const MAX_STEPS: usize = 100_000;

fuzz_target!(|bytes: &[u8]| {
    let [mode, size, rest @ ..] = bytes else { return };
    let format = if mode & 1 == 0 { Format::Lines } else { Format::Document };
    match mode >> 1 & 3 {
        0 | 1 => whole(rest, usize::from(*size), format),
        // Any bytes as a packed file.
        2 => drop(read(values(rest.to_vec(), true, usize::MAX, format, ReadPosition::default()))),
        // A packed file that was cut.
        _ => {
            let mut packed = Vec::new();
            GzEncoder::new(rest, Compression::fast()).read_to_end(&mut packed).unwrap();
            packed.truncate(packed.len() * usize::from(*size) / 256);
            let steps = read(values(packed, true, usize::MAX, format, ReadPosition::default()));
            let last = steps.last().map(|(step, _)| step.as_str());
            assert!(last != Some("complete"), "a cut file is read as whole");
        }
    }
});

fn whole(bytes: &[u8], size: usize, format: Format) {
    let none = ReadPosition::default();
    let steps = read(values(bytes.to_vec(), false, usize::MAX, format, none));
    let slowly = read(values(bytes.to_vec(), false, size.max(1), format, none));
    assert!(steps.iter().map(|(step, _)| step).eq(slowly.iter().map(|(step, _)| step)));
    // Goes on after step number `size`, as after a crash: with what follows, or once more with the array it was in.
    let Some((_, from)) = steps.get(size).filter(|_| size + 1 < steps.len()) else { return };
    let again = read(values(bytes.to_vec(), false, usize::MAX, format, *from));
    assert!(again.len() >= steps.len() - size - 1);
    let tail = &steps[steps.len() - again.len()..];
    assert!(again.iter().map(|(step, _)| step).eq(tail.iter().map(|(step, _)| step)));
}

/// The steps in short, each with the position after it, up to the end.
fn read(mut values: Values) -> Vec<(String, ReadPosition)> {
    let mut steps = Vec::new();
    for _ in 0..MAX_STEPS {
        let step = match values.next_step(|event, place| Ok(format!("{place:?} {}", event.raw()))) {
            ReadStep::NoEvent(_) => continue,
            ReadStep::Event(event) => event,
            ReadStep::Reject(part) => format!("reject {}", shown(&part)),
            ReadStep::RejectUnlessGrowing(part) => format!("cut {}", shown(&part)),
            ReadStep::End(end) => {
                let end = match end {
                    ReadEnd::Complete => "complete".to_owned(),
                    ReadEnd::Unusable(flaw) | ReadEnd::UnusableRest(flaw) => {
                        format!("unusable {}", flaw.code)
                    }
                    other => format!("{other:?}"),
                };
                steps.push((end, values.position()));
                break;
            }
        };
        assert!(values.memory() <= 3 * 65_536 + LIMITS.max_value as usize);
        steps.push((step, values.position()));
    }
    steps
}

/// Without the flaw's place and words: of text that is neither UTF-8 nor JSON, what is found first depends on how much has
/// been read.
fn shown(part: &RejectedPart) -> String {
    format!("{} {:?} {}", part.place, part.content, part.flaw.code)
}

fn values(bytes: Vec<u8>, is_packed: bool, step: usize, format: Format, from: ReadPosition) -> Values {
    let size = bytes.len() as u64;
    let text = Text::new(Box::new(Slow { bytes: io::Cursor::new(bytes), step }), is_packed);
    Values::new(text, Some(size), format, LIMITS, from)
}

/// A source that gives little at once.
struct Slow {
    bytes: io::Cursor<Vec<u8>>,
    step: usize,
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let some = self.step.min(buffer.len());
        self.bytes.read(&mut buffer[..some])
    }
}
