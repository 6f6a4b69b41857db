//! The public key. In spite of its name it is a secret here: anybody who has it can write to the workspace.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The longest key. Koala's keys have about 40 characters; a text of more than five times that was named by mistake.
const MAX_KEY_BYTES: usize = 200;

/// The most bytes read of a key file: the longest key with room for white space around it.
const MAX_KEY_FILE_BYTES: u64 = 4096;

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
    /// [`InvalidKey`] if the text would need escapes in the path of a URL. The error does not quote it.
    pub fn new(text: &str) -> Result<Option<PublicKey>, InvalidKey> {
        let text = text.trim();
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        match text {
            "" => Ok(None),
            // In a path, these two segments name another folder.
            "." | ".." => Err(InvalidKey::Character),
            _ if text.len() > MAX_KEY_BYTES => Err(InvalidKey::TooLong),
            _ if !text.bytes().all(unreserved) => Err(InvalidKey::Character),
            _ => Ok(Some(PublicKey(text.to_owned()))),
        }
    }

    /// The key itself, for the client alone, which needs it in the URL. There is no other way to read it.
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
    #[error("not a public key: only letters, digits and - . _ ~ are allowed")]
    Character,
    /// The text is longer than any key.
    #[error("not a public key: it is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
}

/// The key of a key file, if there is one, and warnings about the file.
#[derive(Debug, Default)]
pub(super) struct KeyFile {
    pub key: Option<PublicKey>,
    pub warnings: Vec<String>,
}

/// Reads a key file. A missing or an empty file means "no key yet". A file that may not be read means the same, with a
/// warning, so that events are stored meanwhile.
///
/// # Errors
/// A sentence that names the file, if its content is not a key.
pub(super) fn read_file(path: &Path) -> Result<KeyFile, String> {
    let shown = path.display();
    let (bytes, mode) = match read(path) {
        Ok(content_and_mode) => content_and_mode,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(KeyFile::default()),
        Err(e) => {
            return Ok(KeyFile {
                key: None,
                warnings: vec![warning_for_unreadable(path, e.kind(), &user())],
            });
        }
    };
    // Bytes that are not UTF-8 become a character that no key has.
    let key = PublicKey::new(&String::from_utf8_lossy(&bytes))
        .map_err(|e| format!("{shown}: the content is {e}"))?;
    let mut warnings = Vec::new();
    if key.is_some() && mode & READABLE_BY_OTHERS != 0 {
        warnings.push(format!("everybody can read the public key in {shown}; run: chmod o-r {shown}"));
    }
    Ok(KeyFile { key, warnings })
}

/// Reads the content of a key file, up to a limit, and its mode.
pub(super) fn read(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}

fn warning_for_unreadable(path: &Path, kind: ErrorKind, user: &str) -> String {
    let shown = path.display();
    let fix = match kind {
        ErrorKind::PermissionDenied => {
            format!(
                "run: chown {user} {shown} && chmod 600 {shown}, or restart the service if systemd passes the key to it"
            )
        }
        _ => "until it can, events are stored but not sent".to_owned(),
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
        for text in ["a/b", "a b", "a?b", "a#b", "a%2fb", "a\nb", "a\0", "é", ".", "..", "<public_key>"] {
            assert_eq!(PublicKey::new(text), Err(InvalidKey::Character), "{text:?}");
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
            let file = read_file(&path).unwrap();
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
        let file = read_file(&path).unwrap();
        assert_eq!((file.key, file.warnings), (Some(key("pk_1")), vec![]));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            read_file(&path).unwrap().warnings,
            [format!("everybody can read the public key in {shown}; run: chmod o-r {shown}")]
        );

        for bytes in [&b"pk_1\npk_2"[..], b"pk_\xff"] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(
                read_file(&path).unwrap_err(),
                format!(
                    "{shown}: the content is not a public key: only letters, digits and - . _ ~ are allowed"
                )
            );
        }
    }

    #[test]
    fn a_key_file_that_may_not_be_read_gives_a_warning_with_the_fix() {
        assert_eq!(
            warning_for_unreadable(Path::new("/etc/key"), ErrorKind::PermissionDenied, "koala-agent"),
            "koala-agent cannot read the public key file /etc/key: permission denied; \
             run: chown koala-agent /etc/key && chmod 600 /etc/key, or restart the service if systemd passes the key to it"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = read_file(dir.path()).unwrap();
        assert!(file.key.is_none());
        assert!(file.warnings[0].contains("is a directory; until it can, events are stored but not sent"));
    }
}
