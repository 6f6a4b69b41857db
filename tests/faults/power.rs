//! The power goes: a file system on a loop device is shut down without a flush of its journal, and mounted again.

use super::control::CARELESS_COMMIT;
use super::crash::SETTLE;
use super::place::Place;
use super::stage::{Figures, Played, Scale};
use koala_agent::receiver::Faults;
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// What an agent that meets the dead disk has to end within; one that has nothing to commit need not meet it.
const MEETS_IT_WITHIN: Duration = Duration::from_secs(2);
/// How long a process that has been killed may hold on to its files.
const LETS_GO_WITHIN: Duration = Duration::from_secs(10);
const PEOPLE: u64 = 50;
/// Of the disk; on the real one only what is written takes room.
const BYTES: u64 = 256 << 20;

pub fn cuts(scale: &Scale) -> Played {
    match Disk::new() {
        Err(why) => Played::Skipped(why),
        Ok(disk) => {
            let (mut figures, ended) = cut(scale, &disk, None);
            figures = figures.note(format!("{ended} times it met the dead disk, and ended with 74"));
            figures.into()
        }
    }
}

pub fn cuts_of_a_careless_one(scale: &Scale) -> Played {
    // Nothing is mounted while it is built.
    match may_mount().and_then(|()| CARELESS_COMMIT.build()).and_then(|program| Ok((program, Disk::new()?))) {
        Err(why) => Played::Skipped(why),
        Ok((program, disk)) => Figures { control: true, ..cut(scale, &disk, Some(&program)).0 }.into(),
    }
}

fn may_mount() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("only root may mount".into()) }
}

/// Cuts the power while files are dropped, taken and delivered; what is dropped is on the disk by then. Returns as
/// well how often the agent ended by itself.
fn cut(scale: &Scale, disk: &Disk, program: Option<&Path>) -> (Figures, u64) {
    let mut rng = scale.rng();
    let mut place = Place::within(&disk.mount, Faults::default());
    if let Some(program) = program {
        place.daemon.program(program);
    }
    place.daemon.set(SETTLE);
    disk.flush();
    place.drop_durably();
    let (cuts, mut met) = (scale.of(8, 50), 0);
    for cut in 0..cuts {
        // What is not delivered stands in the outbox alone.
        let offline = cut % 2 == 0;
        place.receiver.set_faults(Faults { offline, latency_ms: 5, ..Faults::default() });
        place.start();
        for _ in 0..rng.u64(2..8) {
            // What is set aside is flushed with all else on the disk: most files are not.
            match rng.u8(..4) {
                0 => place.drop_mixed(rng.u64(5..40), PEOPLE),
                _ => place.drop_events(rng.u64(5..40), PEOPLE),
            }
            thread::sleep(Duration::from_millis(rng.u64(..80)));
        }
        if cut % 4 == 0 || rng.bool() {
            // The worst moment: with another file the removal of all before it has come to the disk.
            place.until("all is taken", |place| place.waiting_files() == 0);
            place.drop_events(1, PEOPLE);
        }
        disk.cut();
        let patience = if rng.bool() { MEETS_IT_WITHIN } else { Duration::ZERO };
        met += u64::from(ends_by_itself(&mut place, patience));
        disk.restore();
    }
    place.receiver.set_faults(Faults::default());
    place.start();
    place.until_at_rest();
    place.daemon.stop();
    (Figures { rounds: cuts, ..place.balance() }, met)
}

/// Whether the agent ends by itself, with the exit code of a broken disk; if not in time, it is killed.
fn ends_by_itself(place: &mut Place, patience: Duration) -> bool {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(ended) = place.daemon.ended() {
            assert_eq!(ended.code(), Some(74), "{}", place.daemon.log());
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    place.daemon.signal(Signal::SIGKILL);
    let ended = place.daemon.wait();
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
        may_mount()?;
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
                // A process that was killed may still let go of its files.
                Err(_) if began.elapsed() < LETS_GO_WITHIN => thread::sleep(Duration::from_millis(20)),
                unplugged => return unplugged,
            }
        }
    }

    /// From now on nothing reaches the disk, and what is not on it is gone: FS_IOC_SHUTDOWN without a flush of the
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

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}
