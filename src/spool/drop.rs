//! How a producer puts a file into the spool: written aside, flushed, renamed.

use super::SpoolError;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Drops a file of that name into the spool. When this returns `Ok`, it is on the disk, whole, under its name;
/// when it returns an error, nothing of it is in the spool.
///
/// # Errors
/// No such folder, no permission, no room; a file of that name is there already.
pub fn drop_file(dir: &Path, name: &OsStr, content: &[u8]) -> Result<(), SpoolError> {
    let path = dir.join(name);
    let mut aside = std::ffi::OsString::from(".");
    aside.push(name);
    let aside = dir.join(aside);
    let error = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => SpoolError::Missing { path: dir.to_owned() },
        _ => SpoolError::new(&path, "store events", e),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&aside).map_err(error)?;
    let written = (|| {
        file.write_all(content)?;
        // Whatever the umask: the agent reads the file as a member of its group, or by the folder's ACL.
        file.set_permissions(fs::Permissions::from_mode(0o640))?;
        file.sync_all()?;
        super::names::rename_to_free_name(&aside, &path)
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&aside);
        return Err(error(e));
    }
    // A producer in `koala-drop` may write into the folder but not open it: then the whole file system is
    // flushed through the file.
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
