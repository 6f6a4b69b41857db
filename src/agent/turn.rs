//! The turn of an owner: how long it lasts, and what it leaves for the next one.

use super::append_batch::SourceFile;
use super::file_reader::FileReader;
use std::time::{Duration, Instant};

/// The longest turn of one owner while others wait for theirs, unless its batch is full earlier.
pub const TURN: Duration = Duration::from_millis(100);
/// Steps of a reader between two looks at the clock: each is some 10 to 100 microseconds of work.
const STEPS_PER_CLOCK: u32 = 16;

/// A file that is being read.
pub struct Reading {
    /// The file, read as far as its progress says.
    pub source: SourceFile,
    /// `None`: the file is opened again in its owner's next turn.
    pub reader: Option<FileReader>,
    /// Turns in which this reader went beyond what was read before it was opened.
    pub turns: u32,
}

/// How far a turn has come.
#[derive(PartialEq, Eq)]
pub enum TurnState {
    /// The owner may go on.
    GoOn,
    /// It is the next owner's turn.
    Over,
}

/// The clock of a turn.
pub struct TurnClock {
    began: Instant,
    steps: u32,
}

impl TurnClock {
    pub fn start() -> TurnClock {
        TurnClock { began: Instant::now(), steps: 0 }
    }

    pub fn is_over(&mut self) -> bool {
        self.steps += 1;
        self.steps.is_multiple_of(STEPS_PER_CLOCK) && self.began.elapsed() >= TURN
    }
}
