//! The side of a producer: puts a file into the spool by writing it under a temporary name, flushing and renaming it.

use super::SpoolError;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Drops a file of that name into the spool. When this returns `Ok`, the whole file is on the disk under its name; when
/// it returns an error, nothing of it is in the spool.
///
/// # Errors
/// The folder does not exist, the permission or the room is missing, or there is a file of that name already.
pub fn drop_file(dir: &Path, name: &OsStr, content: &[u8]) -> Result<(), SpoolError> {
    let path = dir.join(name);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    let temporary = dir.join(temporary);
    let error = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => SpoolError::Missing { path: dir.to_owned() },
        _ => SpoolError::new(&path, "store events", e),
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o640).open(&temporary).map_err(error)?;
    let written = (|| {
        file.write_all(content)?;
        // Independent of the umask: the agent reads the file as a member of its group, or by the folder's ACL.
        file.set_permissions(fs::Permissions::from_mode(0o640))?;
        file.sync_all()?;
        super::names::rename_to_free_name(&temporary, &path)
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error(e));
    }
    // A producer in `koala-drop` may write into the folder but not open it. Then the whole file system is flushed,
    // through the file.
    let flushed = match File::open(dir) {
        Ok(folder) => folder.sync_all(),
        #[cfg(target_os = "linux")]
        Err(_) => nix::unistd::syncfs(&file).map_err(io::Error::from),
        #[cfg(not(target_os = "linux"))]
        Err(_) => file.sync_all(),
    };
    flushed.map_err(error)?;
    Ok(())
}
