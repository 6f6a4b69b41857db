//! More files than anybody expects.

use super::{lines_with, rejected};
use crate::place::Place;
use crate::stage::{Figures, Played, Scale};
use koala_agent::receiver::Faults;
use std::time::{Duration, Instant};

/// What a folder of a million may take of memory.
const MEMORY: u64 = 150 << 20;
/// A receiver has the first event this soon, however many wait.
const FIRST: Duration = Duration::from_secs(30);

pub fn at_start(scale: &Scale) -> Played {
    let (few, many) = scale.of((3_000, 15_000), (100_000, 1_000_000));
    let (mut figures, cpu_of_few) = flood(few);
    let (more, cpu_of_many) = flood(many);
    figures.add(more);
    // Processor time: the disk's pauses and other load are no part of it. What grows by the square would take 25 times as
    // much for five times the files.
    let (times, most) = (cpu_of_many / cpu_of_few, 1.2 * many as f64 / few as f64);
    assert!(times <= most, "{times:.1} times as much, more than {most}: {}", figures.notes.join("; "));
    figures.note(format!("{times:.1} times the processor time for {} times the files", many / few)).into()
}

/// Delivers so many files that are there at start. Returns the seconds of processor time that it took.
fn flood(files: u64) -> (Figures, f64) {
    let mut place = Place::new(Faults::default());
    place.drop_events(files, 100);
    let began = Instant::now();
    place.daemon.start();
    place.until_within(FIRST, "the first delivery", |place| place.receiver.stats().held > 0);
    let first = began.elapsed();
    place.until_within(Duration::from_secs(3_600), "all delivered", |place| {
        place.receiver.stats().held as u64 >= files
    });
    place.until_status("all is marked and gone", |status| {
        status.outbox.pending == 0 && status.spool.waiting_files == 0
    });
    let (took, cpu, memory) = (began.elapsed(), place.daemon.cpu(), place.daemon.peak_memory());
    let cpu = cpu.expect("the system tells processor times").as_secs_f64();
    let note = format!(
        "{files} files: first delivery after {:.1} s, all after {:.1} s; {cpu:.1} s of processor time, {} MiB",
        first.as_secs_f64(),
        took.as_secs_f64(),
        memory >> 20
    );
    assert!(memory < MEMORY, "{note}");
    (place.end().note(note), cpu)
}

/// Bad files of one name and of many: each is set aside under a name of its own, and to keep them costs little.
pub fn bad_ones(scale: &Scale) -> Played {
    let files = scale.of(500, 10_000);
    let mut place = super::brisk();
    place.daemon.start();
    for n in 0..files {
        let event = place.books.event(0).replace("\"type\"", "type");
        place.drop_as(format!("bad-{n}.json"), event.as_bytes());
    }
    place.until_status("they are set aside", |status| status.spool.rejected_files == files);
    let (before, began) = (place.daemon.cpu().unwrap(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let share = (place.daemon.cpu().unwrap() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    for n in 1..=3 {
        let event = place.books.event(0).replace("\"type\"", "type");
        place.drop_as("day.json", event.as_bytes());
        place.until_status("it is set aside", |status| status.spool.rejected_files == files + n);
    }
    place.daemon.stop();
    let of_one_name =
        rejected(&place).iter().filter(|name| name.to_string_lossy().starts_with("day")).count();
    assert_eq!((of_one_name, rejected(&place).len() as u64), (3, files + 3));
    assert_eq!(lines_with(&place, " rejected ("), files as usize + 3);
    place.balance().note(format!("{:.1} % of a processor to keep them", share * 100.0)).into()
}
