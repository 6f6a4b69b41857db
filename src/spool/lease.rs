//! Whether anybody has a file open for writing, as the kernel knows it.
//!
//! Linux grants a read lease on a file (`F_SETLEASE`, fcntl(2)) only while nobody has it open for writing, or mapped to
//! memory writably. So a lease that is granted says that the writer has closed the file, however long it paused before,
//! which no time stamp can say. It is given back at once: a producer that opens the file meanwhile waits for the holder.
//!
//! A lease on another user's file needs `CAP_LEASE`. Network file systems and FUSE have no leases.

use std::fs::File;

/// The answer of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Nobody had the file open for writing.
    Free,
    /// Somebody has the file open for writing.
    OpenForWriting,
    /// The file system knows no leases, or the agent may not take one on this file.
    Unavailable,
}

impl Lease {
    /// Asks for a file that is open for reading only, and holds nothing afterwards.
    pub fn probe(file: &File) -> Lease {
        let lease = Lease::take(file);
        if lease == Lease::Free {
            Lease::set(file, Lease::UNLOCK);
        }
        lease
    }

    /// Asks for a file that is open for reading only; closing it gives the lease back.
    pub fn take(file: &File) -> Lease {
        Lease::set(file, Lease::READ)
    }
}

#[cfg(target_os = "linux")]
impl Lease {
    /// Whether nobody waits to open for writing a file on which a lease was taken.
    #[allow(unsafe_code, reason = "neither std nor nix wraps F_GETLEASE")]
    pub fn is_held(file: &File) -> bool {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open for as long as `file` is borrowed, and the call touches no memory of this process.
        unsafe { nix::libc::fcntl(file.as_raw_fd(), nix::libc::F_GETLEASE) == Lease::READ }
    }

    const READ: i32 = nix::libc::F_RDLCK;
    const UNLOCK: i32 = nix::libc::F_UNLCK;

    #[allow(unsafe_code, reason = "neither std nor nix wraps F_SETLEASE")]
    fn set(file: &File, to: i32) -> Lease {
        use nix::errno::Errno;
        use nix::libc::{F_SETLEASE, SIG_IGN, SIGIO, fcntl, signal};
        use std::os::fd::AsRawFd;
        use std::sync::Once;

        static IGNORE_SIGIO: Once = Once::new();
        let fd = file.as_raw_fd();
        // A writer that comes while the lease is held makes the kernel send SIGIO, which would end the process.
        // SAFETY: `fd` is open for as long as `file` is borrowed, these calls take integers and touch no memory of this
        // process, and no handler is installed.
        let granted = unsafe {
            IGNORE_SIGIO.call_once(|| {
                signal(SIGIO, SIG_IGN);
            });
            fcntl(fd, F_SETLEASE, to)
        };
        match granted {
            0 => Lease::Free,
            _ if Errno::last() == Errno::EAGAIN => Lease::OpenForWriting,
            _ => Lease::Unavailable,
        }
    }
}

/// Other systems have no leases.
#[cfg(not(target_os = "linux"))]
impl Lease {
    const READ: i32 = 0;
    const UNLOCK: i32 = 0;

    pub fn is_held(_: &File) -> bool {
        false
    }

    fn set(_: &File, _: i32) -> Lease {
        Lease::Unavailable
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn a_file_is_free_when_its_last_writer_has_closed_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let writer = File::create(&path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(Lease::probe(&file), Lease::OpenForWriting);
        let second = OpenOptions::new().append(true).open(&path).unwrap();
        drop(writer);
        assert_eq!(Lease::probe(&file), Lease::OpenForWriting);
        drop(second);
        assert_eq!(Lease::probe(&file), Lease::Free);
        // The lease was given back: this would wait otherwise.
        drop(OpenOptions::new().append(true).open(&path).unwrap());
        assert_eq!(Lease::take(&file), Lease::Free);
        assert!(Lease::is_held(&file));
        let opening = std::thread::spawn(move || drop(OpenOptions::new().append(true).open(path).unwrap()));
        while Lease::is_held(&file) {
            std::thread::yield_now();
        }
        assert!(!opening.is_finished());
        drop(file);
        opening.join().unwrap();
    }
}
