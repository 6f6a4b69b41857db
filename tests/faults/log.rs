//! What the agents in this process say.

use std::io::Write;
use std::sync::{Mutex, Once};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Keeps it from now on.
pub fn keep() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false);
        tracing::subscriber::set_global_default(log.with_writer(|| Lines).finish()).unwrap();
    });
}

/// How many lines have all of that in them; a path tells one agent's from another's.
pub fn lines_with(parts: &[&str]) -> usize {
    let text = String::from_utf8_lossy(&LINES.lock().unwrap()).into_owned();
    text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}
