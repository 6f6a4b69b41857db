//! What the names of files say, and which others a file may have where its own is taken.

use nix::fcntl::AT_FDCWD;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The ending of the reason's file.
pub(super) const WHY: &str = ".why";
/// What a name in `rejected/` may have beside its stem: place, time, number, ending, `.why`; the file system allows
/// 255 bytes in all.
const MAX_STEM: usize = 255 - 80;

/// How the events stand in a file, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `*.json`: one event, an array, or Segment's batch envelope.
    Document,
    /// `*.jsonl`, `*.ndjson`: an event a line.
    Lines,
}

/// Producers write under a name that starts with a dot or ends in `.tmp`, then rename.
pub(crate) fn is_finished_name(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && !name.ends_with(b".tmp")
}

/// The form that a file's name promises, and whether it is packed; `None`: the name says neither.
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

/// Whether it is the name of a reason, in `rejected/`.
pub(crate) fn is_reason(name: &OsStr) -> bool {
    name.as_bytes().ends_with(WHY.as_bytes())
}

/// `a.b.jsonl.gz` is `a.b` and `.jsonl.gz`: a part keeps the ending, so that it can be put back as it is.
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

/// `stem.place.ending`, then `stem.place~2.ending`, and so on without end.
pub(super) fn names(stem: &[u8], place: String, ending: &str) -> impl Iterator<Item = OsString> {
    (1u64..).map(move |n| {
        let mut name = stem[..stem.len().min(MAX_STEM)].to_vec();
        name.extend(place.as_bytes());
        if n > 1 {
            name.extend(format!("~{n}").as_bytes());
        }
        name.extend(ending.as_bytes());
        if name.ends_with(WHY.as_bytes()) {
            // Not to be taken for a reason.
            name.push(b'_');
        }
        OsString::from_vec(name)
    })
}

/// Renames, and overwrites nothing.
pub(super) fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{RenameFlags, renameat2};
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // A file system that does not know the flag.
            Err(nix::errno::Errno::EINVAL) => {}
            other => return other.map_err(io::Error::from),
        }
    }
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Renames to the first of these names in the folder that is free. Returns it.
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
