//! The public key. In spite of its name it is a secret here: anybody who has it can write to the workspace.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The longest key. Koala's keys have about 40 characters; a text of more than five times that was named by mistake.
const MAX_KEY_BYTES: usize = 200;

/// The most bytes read of a key file: the longest key with room for white space around it.
pub const MAX_KEY_FILE_BYTES: u64 = 4096;

/// The permission bit by which everybody can read a file.
pub(super) const READABLE_BY_OTHERS: u32 = 0o004;

/// The text in place of the key in everything that a person or a log could see.
const PLACEHOLDER: &str = "<public_key>";

/// The key of a Koala workspace: one segment of a URL path. It is never shown and never serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(String);

impl PublicKey {
    /// The key in `text`, without surrounding white space; `None` if the text is empty.
    ///
    /// # Errors
    /// [`InvalidKey`] if the text would need escapes in the path of a URL. The error quotes none of the characters that a
    /// key can have.
    pub fn new(text: &str) -> Result<Option<PublicKey>, InvalidKey> {
        let text = text.trim();
        let is_unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
        match text {
            "" => Ok(None),
            "." | ".." => Err(InvalidKey::Dots),
            _ if text.len() > MAX_KEY_BYTES => Err(InvalidKey::TooLong),
            _ => match text.chars().zip(1..).find(|(c, _)| !is_unreserved(*c)) {
                Some((found, place)) => Err(InvalidKey::Character { found, place }),
                None => Ok(Some(PublicKey(text.to_owned()))),
            },
        }
    }

    /// The key in the content of a file; `None` if the file is empty.
    ///
    /// # Errors
    /// See [`PublicKey::new`].
    pub fn from_file_content(content: &[u8]) -> Result<Option<PublicKey>, InvalidKey> {
        // Bytes that are not UTF-8 become a character that no key has. Some editors put a mark at the beginning.
        let text = String::from_utf8_lossy(content);
        PublicKey::new(text.strip_prefix('\u{feff}').unwrap_or(&text))
    }

    /// The key itself, for the client, which needs it in the URL. There is no other way to read it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Replaces the key in `text` by `<public_key>`.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, PLACEHOLDER)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(…)")
    }
}

/// The reason that a text is not a public key. The caller adds where the text was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// A character would need an escape in a URL (RFC 3986, section 2.3).
    #[error("not a public key: its character {place} is {}; only letters, digits and - . _ ~ are allowed", named(*found))]
    Character {
        /// The first such character.
        found: char,
        /// Its number, from 1, white space around the text not counted.
        place: usize,
    },
    /// In the path of a URL, one dot or two name another folder.
    #[error("not a public key: it consists of dots")]
    Dots,
    /// The text is longer than any key.
    #[error("not a public key: it is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
}

/// A character by its code point, as many cannot be seen; with itself where it can.
fn named(c: char) -> String {
    let code = format!("U+{:04X}", u32::from(c));
    match c {
        char::REPLACEMENT_CHARACTER => "not UTF-8".to_owned(),
        c if c.is_ascii_graphic() => format!("{code} ({c})"),
        _ => code,
    }
}

/// The key of a key file, if there is one, and warnings about the file.
#[derive(Debug, Default)]
pub(super) struct KeyFile {
    pub key: Option<PublicKey>,
    pub warnings: Vec<String>,
}

/// Reads a key file. A missing or an empty file means "no key yet". A file that may not be read, or whose content is not a
/// key, means the same, with a warning, so that events are stored meanwhile. `unit`: that of an agent as the package
/// installs it, to which systemd hands the key.
pub(super) fn read_file(path: &Path, unit: Option<&str>) -> KeyFile {
    let shown = path.display();
    let without_key = |warning| KeyFile { key: None, warnings: vec![warning] };
    let (bytes, mode) = match read(path) {
        Ok(content_and_mode) => content_and_mode,
        Err(e) if e.kind() == ErrorKind::NotFound => return KeyFile::default(),
        Err(e) => return without_key(warning_for_unreadable(path, e.kind(), &user(), unit)),
    };
    match PublicKey::from_file_content(&bytes) {
        Ok(key) => {
            let warning = key.is_some().then(|| exposed(path, mode, "the public key")).flatten();
            KeyFile { key, warnings: warning.into_iter().collect() }
        }
        Err(e) => without_key(format!(
            "{shown}: the content is {e}. Until it is a key, events are stored but not sent"
        )),
    }
}

/// A warning about a file that everybody can read, though it holds the key of that name.
pub(super) fn exposed(path: &Path, mode: u32, key: &str) -> Option<String> {
    let shown = path.display();
    let is_exposed = mode & READABLE_BY_OTHERS != 0;
    is_exposed.then(|| format!("everybody can read {key} in {shown}; run: chmod o-r {shown}"))
}

/// Reads the content of a key file, up to a limit, and its mode.
pub(super) fn read(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}

fn warning_for_unreadable(path: &Path, kind: ErrorKind, user: &str, unit: Option<&str>) -> String {
    let shown = path.display();
    // Whoever runs the agent may be anybody: no line gives the key to them.
    let fix = match (kind, unit) {
        (ErrorKind::PermissionDenied, Some(unit)) => &format!(
            "systemd hands it to the service when that starts: systemctl restart {unit} (before its version 247 it cannot: \
             run koala-agent init, which gives the file to the service); for an agent of your own: koala-agent --user run"
        ),
        (ErrorKind::PermissionDenied, None) => {
            "let the agent run as the file's owner, or name another file with koala.public_key_file; until it can, events \
             are stored but not sent"
        }
        _ => "until it can, events are stored but not sent",
    };
    format!("{user} cannot read the public key file {shown}: {kind}; {fix}")
}

fn user() -> String {
    let uid = nix::unistd::Uid::effective();
    match nix::unistd::User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn key(text: &str) -> PublicKey {
        PublicKey::new(text).unwrap().unwrap()
    }

    #[test]
    fn a_key_is_trimmed_and_an_empty_text_is_no_key() {
        assert_eq!(key(" pk_live-1.~A\n").expose(), "pk_live-1.~A");
        assert_eq!(key(&"k".repeat(200)).expose().len(), 200);
        for text in ["", " \r\n\t"] {
            assert_eq!(PublicKey::new(text), Ok(None));
        }
    }

    #[test]
    fn a_text_that_is_not_one_path_segment_is_no_key() {
        for (text, place, named) in [
            ("a/b", 2, "U+002F (/)"),
            ("a b", 2, "U+0020"),
            (" a?b", 2, "U+003F (?)"),
            ("a#b", 2, "U+0023 (#)"),
            ("a%2fb", 2, "U+0025 (%)"),
            ("pk\npk", 3, "U+000A"),
            ("a\0", 2, "U+0000"),
            ("é", 1, "U+00E9"),
            ("\"pk_1\"", 1, "U+0022 (\")"),
            ("“pk_1”", 1, "U+201C"),
            ("pk_1\u{200b}", 5, "U+200B"),
            ("<public_key>", 1, "U+003C (<)"),
            ("pk_\u{fffd}", 4, "not UTF-8"),
        ] {
            let want = format!(
                "not a public key: its character {place} is {named}; only letters, digits and - . _ ~ are allowed"
            );
            assert_eq!(PublicKey::new(text).unwrap_err().to_string(), want, "{text:?}");
        }
        for text in [".", ".."] {
            assert_eq!(PublicKey::new(text), Err(InvalidKey::Dots));
        }
        assert_eq!(PublicKey::new(&"k".repeat(201)), Err(InvalidKey::TooLong));
    }

    #[test]
    fn a_key_is_never_shown() {
        let key = key("pk_secret");
        assert_eq!(format!("{key:?}"), "PublicKey(…)");
        assert_eq!(
            key.redact("https://k.test/pk_secret/batch pk_secret"),
            "https://k.test/<public_key>/batch <public_key>"
        );
    }

    #[test]
    fn a_key_file_that_is_missing_or_empty_means_no_key_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public-key");
        for content in [None, Some(""), Some("\n")] {
            if let Some(text) = content {
                fs::write(&path, text).unwrap();
            }
            let file = read_file(&path, None);
            assert_eq!((file.key, file.warnings), (None, vec![]));
        }
    }

    #[test]
    fn a_key_file_is_read_and_no_error_quotes_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public-key");
        let shown = path.display();
        fs::write(&path, "pk_1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        for content in ["pk_1\n", "\u{feff}pk_1\r\n", "\u{feff} pk_1"] {
            fs::write(&path, content).unwrap();
            let file = read_file(&path, None);
            assert_eq!((file.key, file.warnings), (Some(key("pk_1")), vec![]), "{content:?}");
        }

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            read_file(&path, None).warnings,
            [format!("everybody can read the public key in {shown}; run: chmod o-r {shown}")]
        );

        for (bytes, named) in [
            (&b"pk_1\npk_2"[..], "its character 5 is U+000A"),
            (b"pk_\xff", "its character 4 is not UTF-8"),
            (b"\xff\xfep\0k\0", "its character 1 is not UTF-8"),
            (b"\xef\xbb\xbf\xef\xbb\xbfpk", "its character 1 is U+FEFF"),
        ] {
            fs::write(&path, bytes).unwrap();
            let file = read_file(&path, None);
            assert_eq!(file.key, None);
            assert_eq!(
                file.warnings,
                [format!(
                    "{shown}: the content is not a public key: {named}; only letters, digits and - . _ ~ are allowed. \
                     Until it is a key, events are stored but not sent"
                )]
            );
        }
    }

    #[test]
    fn a_key_file_that_may_not_be_read_is_given_to_nobody() {
        let warning =
            |unit| warning_for_unreadable(Path::new("/etc/key"), ErrorKind::PermissionDenied, "ana", unit);
        assert_eq!(
            warning(Some("koala-agent@shop")),
            "ana cannot read the public key file /etc/key: permission denied; systemd hands it to the service when that \
             starts: systemctl restart koala-agent@shop (before its version 247 it cannot: run koala-agent init, which gives \
             the file to the service); for an agent of your own: koala-agent --user run"
        );
        assert_eq!(
            warning(None),
            "ana cannot read the public key file /etc/key: permission denied; let the agent run as the file's owner, or \
             name another file with koala.public_key_file; until it can, events are stored but not sent"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = read_file(dir.path(), Some("koala-agent"));
        assert!(file.key.is_none());
        assert!(file.warnings[0].contains("is a directory; until it can, events are stored but not sent"));
    }
}
