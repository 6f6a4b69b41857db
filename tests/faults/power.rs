//! The power goes: a file system on a loop device is shut down without a flush of its journal, and mounted again.

use super::crash::SETTLE;
use crate::common::agent::TestAgent;
use crate::control::CARELESS_COMMIT;
use crate::machine::{needs_root, run};
use crate::runner::{Figures, Outcome, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// An agent that meets the dead disk ends within this; one that has nothing to commit need not meet it.
const MEETS_IT_WITHIN: Duration = Duration::from_secs(2);
/// How long a process that has been killed may hold on to its files.
const LETS_GO_WITHIN: Duration = Duration::from_secs(10);
const PEOPLE: u64 = 50;
/// The size of the disk; only what is written takes room on the real one.
const BYTES: u64 = 256 << 20;

pub fn cuts(scale: &Scale) -> Outcome {
    match Disk::new() {
        Err(why) => Outcome::Skipped(why),
        Ok(disk) => {
            let (mut figures, ended) = cut(scale, &disk, None);
            figures = figures.note(format!("{ended} times it met the dead disk, and ended with 74"));
            figures.into()
        }
    }
}

pub fn cuts_of_a_careless_one(scale: &Scale) -> Outcome {
    // Nothing is mounted while it is built.
    match needs_root().and_then(|()| CARELESS_COMMIT.build()).and_then(|program| Ok((program, Disk::new()?)))
    {
        Err(why) => Outcome::Skipped(why),
        Ok((program, disk)) => Figures { control: true, ..cut(scale, &disk, Some(&program)).0 }.into(),
    }
}

/// Cuts the power while files are dropped, taken and delivered; what is dropped is on the disk by then. Returns as
/// well how often the agent ended by itself.
fn cut(scale: &Scale, disk: &Disk, program: Option<&Path>) -> (Figures, u64) {
    let mut rng = scale.rng();
    let mut agent = TestAgent::program_within(&disk.mount, Faults::default());
    if let Some(program) = program {
        agent.use_program(program);
    }
    agent.set(SETTLE);
    disk.flush();
    agent.drop_durably();
    let (cuts, mut met) = (scale.of(8, 50), 0);
    for cut in 0..cuts {
        // Events that are not delivered are in the outbox alone.
        let offline = cut % 2 == 0;
        agent.receiver.set_faults(Faults { offline, latency_ms: 5, ..Faults::default() });
        agent.start_and_wait();
        for _ in 0..rng.u64(2..8) {
            // A rejected file is flushed together with all else on the disk, so most rounds have none.
            match rng.u8(..4) {
                0 => agent.drop_mixed(rng.u64(5..40), PEOPLE),
                _ => agent.drop_events(rng.u64(5..40), PEOPLE),
            }
            thread::sleep(Duration::from_millis(rng.u64(..80)));
        }
        if cut % 4 == 0 || rng.bool() {
            // The worst moment: with another file the removal of all before it has come to the disk.
            agent.until("all is taken", |agent| agent.files_in_spool() == 0);
            agent.drop_events(1, PEOPLE);
        }
        disk.cut();
        let patience = if rng.bool() { MEETS_IT_WITHIN } else { Duration::ZERO };
        met += u64::from(ends_by_itself(&mut agent, patience));
        disk.restore();
    }
    agent.receiver.set_faults(Faults::default());
    agent.start_and_wait();
    agent.until_empty();
    agent.stop();
    (Figures { rounds: cuts, ..agent.balance() }, met)
}

/// Whether the agent ends by itself, with the exit code of a broken disk; if not in time, it is killed.
fn ends_by_itself(agent: &mut TestAgent, patience: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(ended) = agent.exit_status() {
            assert_eq!(ended.code(), Some(74), "{}", agent.log());
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    agent.signal(Signal::SIGKILL);
    let ended = agent.wait_for_exit();
    assert!(ended.signal() == Some(Signal::SIGKILL as i32) || ended.code() == Some(74), "{ended}");
    ended.code().is_some()
}

/// A disk whose power can be cut: an ext4 in a file, mounted for as long as this lives.
struct Disk {
    folder: tempfile::TempDir,
    mount: PathBuf,
}

impl Disk {
    /// # Errors
    /// Why there can be none here.
    fn new() -> Result<Disk, String> {
        needs_root()?;
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk { mount: folder.path().join("disk"), folder };
        fs::create_dir(&disk.mount).unwrap();
        File::create(disk.image()).unwrap().set_len(BYTES).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()))?;
        disk.plug_in()?;
        File::create(disk.switch()).unwrap();
        disk.flush();
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// A file on it.
    fn switch(&self) -> PathBuf {
        self.mount.join("switch")
    }

    fn plug_in(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(&self.mount))
    }

    fn unplug(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            match run(Command::new("umount").arg(&self.mount)) {
                // A process that was killed may still release its files.
                Err(_) if began.elapsed() < LETS_GO_WITHIN => thread::sleep(Duration::from_millis(20)),
                unplugged => return unplugged,
            }
        }
    }

    /// Cuts the power: nothing reaches the disk any more, and what is not on it is gone: FS_IOC_SHUTDOWN without a flush of the
    /// journal. Perl is there wherever Debian is.
    fn cut(&self) {
        const PROGRAM: &str = r#"
            open(my $file, "<", $ARGV[0]) or die "$!";
            my $without_a_flush = pack("L", 2);
            ioctl($file, 0x8004587d, $without_a_flush) or die "$!""#;
        run(Command::new("perl").args(["-e", PROGRAM]).arg(self.switch())).unwrap();
    }

    /// The power is back: what is on the disk is there again.
    fn restore(&self) {
        self.unplug().unwrap();
        self.plug_in().unwrap();
    }

    /// All that was written so far is on the disk.
    fn flush(&self) {
        nix::unistd::syncfs(File::open(&self.mount).unwrap()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        if device(&self.mount) != device(self.folder.path()) {
            let _ = self.unplug();
        }
    }
}
