//! The names of files: what they say of the content, and alternatives where a name is taken.

use nix::fcntl::AT_FDCWD;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The ending of the file that holds the reason of a rejection.
pub(super) const WHY: &str = ".why";
/// The longest stem of a name in `rejected/`. The file system allows 255 bytes; place, time, number, ending and `.why`
/// need up to 80 of them.
pub(super) const MAX_STEM: usize = 255 - 80;

/// The layout of the events in a file, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `*.json`: one event, an array, or Segment's batch envelope.
    Document,
    /// `*.jsonl`, `*.ndjson`: one event on each line.
    Lines,
}

/// Whether a producer has finished the file: it writes under a name that starts with a dot or ends in `.tmp` in
/// any case, then renames.
pub(crate) fn is_finished_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let is_temporary = name.last_chunk::<4>().is_some_and(|ending| ending.eq_ignore_ascii_case(b".tmp"));
    !name.starts_with(b".") && !is_temporary
}

/// The format that a file's name promises, and whether the file is packed (gzip); `None` for any other name.
pub fn format_of(name: &OsStr) -> Option<(Format, bool)> {
    let name = name.as_bytes().to_ascii_lowercase();
    let (name, gz) = match name.strip_suffix(b".gz") {
        Some(rest) => (rest, true),
        None => (name.as_slice(), false),
    };
    let format = if name.ends_with(b".json") {
        Format::Document
    } else if name.ends_with(b".jsonl") || name.ends_with(b".ndjson") {
        Format::Lines
    } else {
        return None;
    };
    Some((format, gz))
}

/// Whether a file of that name in `rejected/` holds a reason.
pub(crate) fn is_reason_name(name: &OsStr) -> bool {
    name.as_bytes().ends_with(WHY.as_bytes())
}

/// Splits `a.b.jsonl.gz` into `a.b` and `.jsonl.gz`. A rejected part keeps the ending, so that it can be put back as it
/// is.
pub(super) fn stem_and_ending(name: &OsStr) -> (&[u8], &str) {
    let bytes = name.as_bytes();
    let packed = if bytes.to_ascii_lowercase().ends_with(b".gz") { 3 } else { 0 };
    let cut = memchr::memrchr(b'.', &bytes[..bytes.len() - packed]).filter(|&i| i > 0);
    let (stem, ending) = bytes.split_at(cut.unwrap_or(bytes.len()));
    match std::str::from_utf8(ending) {
        Ok(ending) if ending.len() <= 16 => (stem, ending),
        _ => (bytes, ""),
    }
}

/// An endless list of names: `stem.place.ending`, then `stem.place~2.ending`, and so on.
pub(super) fn candidate_names(stem: &[u8], place: String, ending: &str) -> impl Iterator<Item = OsString> {
    (1u64..).map(move |n| {
        let mut name = stem[..stem.len().min(MAX_STEM)].to_vec();
        name.extend(place.as_bytes());
        if n > 1 {
            name.extend(format!("~{n}").as_bytes());
        }
        name.extend(ending.as_bytes());
        if name.ends_with(WHY.as_bytes()) {
            // The name must not look like that of a reason.
            name.push(b'_');
        }
        OsString::from_vec(name)
    })
}

/// Renames a file without overwriting another.
pub(super) fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // The file system does not know the flag.
            Err(nix::errno::Errno::EINVAL) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Renames a file to the first of these names that is free in the folder. Returns that name.
pub(super) fn rename_to_first_free(
    from: &Path,
    folder: &Path,
    names: impl Iterator<Item = OsString>,
) -> io::Result<OsString> {
    for name in names {
        match rename_to_free_name(from, &folder.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| name),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A word as a POSIX shell reads it back: unchanged where that is safe, else in single quotes.
pub fn shell_quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_safe = |c: char| c.is_alphanumeric() || "-_./=:,@+%".contains(c);
    if !word.is_empty() && word.chars().all(is_safe) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The stem and ending for a part of a file of that name: its text is not packed.
pub(super) fn part_stem_and_ending(name: &OsStr) -> (&[u8], &str) {
    let (stem, ending) = stem_and_ending(name);
    (stem, ending.strip_suffix(".gz").unwrap_or(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_leading_dot_or_a_temporary_ending_is_not_finished() {
        for (name, is_finished) in [
            ("a.json", true),
            ("tmp", true),
            ("a.tmp.json", true),
            ("a.xtmp", true),
            (".a.json", false),
            ("a.json.tmp", false),
            ("A.JSON.TMP", false),
            ("a.Tmp", false),
            (".tmp", false),
        ] {
            assert_eq!(is_finished_name(OsStr::new(name)), is_finished, "{name}");
        }
    }
}
