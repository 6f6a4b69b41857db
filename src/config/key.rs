//! The public key: a secret here, though its name says otherwise, since who has it can write to the workspace.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Koala's keys have about 40 characters; five times that leaves room, and no room for a file named by mistake.
const MAX_KEY_BYTES: usize = 200;

/// More of a key file is never read: a longest key with room for white space around it.
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// The permission bit by which everybody can read a file.
pub(super) const READABLE_BY_OTHERS: u32 = 0o004;

/// What stands for the key wherever a person or a log could see it.
const PLACEHOLDER: &str = "<public_key>";

/// The key of a Koala workspace: one URL path segment, never shown, never serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(String);

impl PublicKey {
    /// The key that `text` holds once white space around it is gone; `None` if nothing is left.
    ///
    /// # Errors
    /// [`InvalidKey`] where it could not stand in a URL's path as it is; the error does not quote it.
    pub fn new(text: &str) -> Result<Option<PublicKey>, InvalidKey> {
        let text = text.trim();
        let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        match text {
            "" => Ok(None),
            // As path segments these two name another folder.
            "." | ".." => Err(InvalidKey::Character),
            _ if text.len() > MAX_KEY_BYTES => Err(InvalidKey::TooLong),
            _ if !text.bytes().all(unreserved) => Err(InvalidKey::Character),
            _ => Ok(Some(PublicKey(text.to_owned()))),
        }
    }

    /// The key itself. This is the only door out, for the client alone, which needs it in the URL.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` with `<public_key>` in every place where the key stood.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.0, PLACEHOLDER)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey(…)")
    }
}

/// Why a text is no public key; whoever read it says where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// A character that would need escaping in a URL (RFC 3986, section 2.3).
    #[error("not a public key: only letters, digits and - . _ ~ can stand in one")]
    Character,
    /// Longer than any key.
    #[error("not a public key: it is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
}

/// What a key file gave: the key if there is one, and what is odd about the file.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub key: Option<PublicKey>,
    pub warnings: Vec<String>,
}

/// Reads a key file. A missing or an empty one means "no key yet"; one that may not be read does too, with a
/// warning, so that the events are stored meanwhile.
///
/// # Errors
/// A sentence that names the file, if what it holds is no key.
pub(super) fn read_file(path: &Path) -> Result<Found, String> {
    let shown = path.display();
    let (bytes, mode) = match read(path) {
        Ok(read) => read,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::default()),
        Err(e) => return Ok(Found { key: None, warnings: vec![unreadable(path, e.kind(), &user())] }),
    };
    // What is not UTF-8 becomes a character that no key has.
    let key = PublicKey::new(&String::from_utf8_lossy(&bytes))
        .map_err(|e| format!("{shown}: what it holds is {e}"))?;
    let mut warnings = Vec::new();
    if key.is_some() && mode & READABLE_BY_OTHERS != 0 {
        warnings.push(format!("everybody can read the public key in {shown}; run: chmod o-r {shown}"));
    }
    Ok(Found { key, warnings })
}

/// Its content, no more than a key has, and its mode.
pub(super) fn read(path: &Path) -> std::io::Result<(Vec<u8>, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, mode))
}

fn unreadable(path: &Path, kind: ErrorKind, user: &str) -> String {
    let shown = path.display();
    let mend = match kind {
        ErrorKind::PermissionDenied => {
            format!(
                "run: chown {user} {shown} && chmod 600 {shown}, or restart the service if it is given the key"
            )
        }
        _ => "events are stored until it can be".to_owned(),
    };
    format!("{user} cannot read the public key file {shown}: {kind}; {mend}")
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
    fn what_is_no_single_path_segment_is_no_key() {
        for text in ["a/b", "a b", "a?b", "a#b", "a%2fb", "a\nb", "a\0", "é", ".", "..", "<public_key>"] {
            assert_eq!(PublicKey::new(text), Err(InvalidKey::Character), "{text:?}");
        }
        assert_eq!(PublicKey::new(&"k".repeat(201)), Err(InvalidKey::TooLong));
    }

    #[test]
    fn a_key_is_shown_nowhere() {
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
            let found = read_file(&path).unwrap();
            assert_eq!((found.key, found.warnings), (None, vec![]));
        }
    }

    #[test]
    fn a_key_file_is_read_and_blamed_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public-key");
        let shown = path.display();
        fs::write(&path, "pk_1\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let found = read_file(&path).unwrap();
        assert_eq!((found.key, found.warnings), (Some(key("pk_1")), vec![]));

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
                    "{shown}: what it holds is not a public key: only letters, digits and - . _ ~ can stand in one"
                )
            );
        }
    }

    #[test]
    fn a_key_file_that_may_not_be_read_is_a_warning_with_the_mend() {
        assert_eq!(
            unreadable(Path::new("/etc/key"), ErrorKind::PermissionDenied, "koala-agent"),
            "koala-agent cannot read the public key file /etc/key: permission denied; \
             run: chown koala-agent /etc/key && chmod 600 /etc/key, or restart the service if it is given the key"
        );
        let dir = tempfile::tempdir().unwrap();
        let found = read_file(dir.path()).unwrap();
        assert!(found.key.is_none());
        assert!(found.warnings[0].contains("is a directory; events are stored until it can be"));
    }
}
