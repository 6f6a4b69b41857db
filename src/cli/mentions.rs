//! Whether a file names a person, in bounded memory, whatever stands in the file.

use super::input::EventInput;
use crate::clock::Clock;
use crate::config::SpoolConfig;
use crate::spool::{format_of, open_regular, unpacked};
use crate::subject::{Subject, may_stand_in_address};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

/// Bytes of text that are searched at once.
const PIECE: usize = 64 << 10;
/// A longer run of characters that may stand in an address contains none: the longest has 320 (RFC 5321, 4.5.3.1).
const MAX_WORD: usize = 1 << 10;

/// The number of events of a file that name the person. A file that contains no events counts as one if it names the
/// person; a file that is gone, and what is no regular file, as none.
///
/// # Errors
/// Not all of the file could be looked at.
pub fn count_mentions(path: &Path, spool: &SpoolConfig, subject: &Subject) -> io::Result<u64> {
    let open = || match open_regular(path) {
        Ok(file) => Ok(Some(file)),
        // A symbolic link, which the agent never follows, is ELOOP.
        Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(nix::libc::ELOOP) => Ok(None),
        Err(e) if e.kind() == ErrorKind::InvalidData => Ok(None),
        Err(e) => Err(e),
    };
    let Some(file) = open()? else { return Ok(0) };
    let mut mentions = 0;
    let input = EventInput::of_file(file, path, &Clock::system())?;
    if let Ok(mut events) = input.events(spool) {
        while let Ok(Some(event)) = events.next() {
            mentions += u64::from(event.event.is_ok_and(|text| subject.is_named_in(&text)));
        }
    }
    let name = path.file_name().unwrap_or_default();
    if mentions > 0 || subject.is_in_file_name(&name.to_string_lossy()) {
        return Ok(mentions.max(1));
    }
    let Some(file) = open()? else { return Ok(0) };
    let is_packed = format_of(name).is_some_and(|(_, is_packed)| is_packed);
    is_named_in_text(unpacked(file, is_packed), subject).map(u64::from)
}

/// Whether any text has the person's address as a word of its own. Words are not cut: a part of another person's address
/// may be this one's.
fn is_named_in_text(mut content: impl Read, subject: &Subject) -> io::Result<bool> {
    let mut text = Vec::with_capacity(PIECE + MAX_WORD);
    let mut is_in_long_word = false;
    loop {
        let is_last = content.by_ref().take(PIECE as u64).read_to_end(&mut text)? < PIECE;
        if is_in_long_word {
            let end = ends_of_words(&text).next().unwrap_or(text.len());
            is_in_long_word = end == text.len();
            text.drain(..end);
        }
        // A word that has no end here is not longer than this, or no address.
        let tail = text.len().saturating_sub(MAX_WORD);
        let last_word = ends_of_words(&text[tail..]).last().map(|end| tail + end);
        let searched = if is_last { text.len() } else { last_word.unwrap_or(text.len()) };
        if subject.has_address_in(&String::from_utf8_lossy(&text[..searched])) {
            return Ok(true);
        }
        if is_last {
            return Ok(false);
        }
        is_in_long_word |= last_word.is_none() && text.len() > MAX_WORD;
        text.drain(..searched);
    }
}

/// The places of characters that are of no address. A character that is cut at either end of the bytes is none.
fn ends_of_words(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let begin = bytes.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count();
    let chunks = bytes[begin..].utf8_chunks().scan(begin, |at, chunk| {
        let from = *at;
        *at += chunk.valid().len() + chunk.invalid().len();
        Some((from, chunk, *at))
    });
    chunks.flat_map(|(from, chunk, to)| {
        let valid = chunk.valid().char_indices().filter(|(_, c)| !may_stand_in_address(*c));
        let is_cut = to == bytes.len() && chunk.invalid().len() < 4;
        let invalid = (!chunk.invalid().is_empty() && !is_cut).then_some(from + chunk.valid().len());
        valid.map(move |(at, _)| from + at).chain(invalid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_wherever_it_stands_and_no_part_of_another_is() {
        let ana = Subject::Email("ana@acme.dev".to_owned());
        for at in [0, 1, PIECE - 13, PIECE - 12, PIECE - 6, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE - 5] {
            for (word, is_named) in
                [("ana@acme.dev", true), ("joana@acme.dev", false), ("ana@acme.dev.test", false)]
            {
                // Each row: what fills the text around it.
                for filler in [b' ', 0, b'"'] {
                    let mut text = vec![filler; at];
                    text.extend(word.bytes());
                    text.extend(vec![filler; PIECE]);
                    let found = is_named_in_text(text.as_slice(), &ana).unwrap();
                    assert_eq!(found, is_named, "{word} at {at}, filled with {filler}");
                }
            }
        }
        for at in 0..9 {
            // A long run of another script, without a blank before the comma of that script.
            let text = format!("{}{}，ana@acme.dev，", "a".repeat(at), "字".repeat(PIECE / 2));
            assert!(is_named_in_text(text.as_bytes(), &ana).unwrap(), "{at}");
            let text = format!("{}{}ana@acme.dev，", "a".repeat(at), "字".repeat(PIECE / 2));
            assert!(!is_named_in_text(text.as_bytes(), &ana).unwrap(), "{at}");
        }
        let long = format!("{}ana@acme.dev {} ", "x".repeat(2 * PIECE), "y".repeat(PIECE));
        assert!(!is_named_in_text(long.as_bytes(), &ana).unwrap());
        assert!(is_named_in_text(format!("{long}ana@acme.dev").as_bytes(), &ana).unwrap());
    }

    #[test]
    fn a_file_that_cannot_be_read_whole_is_an_error_and_what_is_no_file_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let ana = Subject::Email("ana@acme.dev".to_owned());
        let count = |name: &str| count_mentions(&dir.path().join(name), &SpoolConfig::default(), &ana);
        std::fs::write(dir.path().join("elsewhere"), "ana@acme.dev").unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("link.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::fs::create_dir(dir.path().join("folder.json")).unwrap();
        for name in ["gone.json", "link.json", "pipe.json", "folder.json"] {
            assert_eq!(count(name).unwrap(), 0, "{name}");
        }
        assert_eq!(count("elsewhere").unwrap(), 1);
        std::fs::write(dir.path().join("broken.json.gz"), b"\x1f\x8b\x08\0broken").unwrap();
        assert!(count("broken.json.gz").is_err());
    }
}
