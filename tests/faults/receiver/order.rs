//! Connections that break at the worst moment, and what becomes of the order.

use super::front::{Fate, Front, Passage, fate, unspoilt};
use crate::place::Place;
use crate::stage::{Played, Scale};
use koala_agent::receiver::Faults;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Where a connection is reset.
#[derive(Clone, Copy)]
enum At {
    /// Nothing of the request was read.
    Start,
    /// Half of it was.
    Request,
    /// All of it, and the receiver has not seen it.
    Forward,
    /// The receiver has taken it, and nothing was answered.
    Answer,
    /// Half of the answer was sent.
    HalfAnswer,
    /// All of the answer was sent.
    End,
}

use At::{Answer, End, Forward, HalfAnswer, Request, Start};

/// What is answered where the receiver has taken the request: with a body, so that half of it can be sent.
const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"ok\": true}";

fn reset(passage: &mut Passage, at: At, taken: &AtomicU64) -> io::Result<()> {
    if let Start = at {
        return passage.reset();
    }
    if let Request = at {
        io::Read::read(&mut passage.stream, &mut [0; 100])?;
        return passage.reset();
    }
    let request = passage.request()?;
    if let Forward = at {
        return passage.reset();
    }
    let mut answer = passage.forward(&request)?;
    if answer.starts_with(b"HTTP/1.1 204 ") {
        taken.fetch_add(1, Relaxed);
        answer = TAKEN.to_vec();
    }
    match at {
        HalfAnswer => passage.stream.write_all(&answer[..answer.len() - 6])?,
        End => passage.stream.write_all(&answer)?,
        _ => {}
    }
    passage.reset()
}

pub fn resets(scale: &Scale) -> Played {
    let mut place = Place::new(Faults::default());
    let unanswered = Arc::new(AtomicU64::new(0));
    let front = Front::before(place.receiver.addr(), unspoilt());
    place.daemon.set(&format!("koala.endpoint = \"{}\"", front.endpoint()));
    place.daemon.start();
    let mut met = 0;
    for _ in 0..scale.of(2, 50) {
        for at in [Start, Request, Forward, Answer, HalfAnswer, End] {
            let taken = unanswered.clone();
            front.next(2, &fate(move |passage| reset(passage, at, &taken)));
            met += 2;
            place.drop_events(20, 5);
            place.until_delivered();
            place.until("each fate was met", |_| front.left() == 0);
        }
    }
    let figures = place.end();
    let unanswered = unanswered.load(Relaxed);
    assert!(
        figures.repeated > 0,
        "{unanswered} requests were taken without a whole answer, and none was repeated"
    );
    figures
        .note(format!("{met} resets, {unanswered} of them after the receiver had taken the request"))
        .into()
}

pub fn through_all(scale: &Scale) -> Played {
    let mut rng = scale.rng();
    let mut place =
        Place::new(Faults { rate_limited: 0.02, retry_after: Some("1".into()), ..Faults::default() });
    let front = Front::before(place.receiver.addr(), at_random(rng.fork()));
    place.daemon.set(&format!("koala.endpoint = \"{}\"", front.endpoint()));
    let kills = scale.of(5, 50);
    let each = 100 * scale.of(50, 200) / kills;
    for _ in 0..kills {
        place.drop_lines(each / 2, 100);
        place.drop_events(each - each / 2, 100);
        place.daemon.start();
        std::thread::sleep(Duration::from_millis(rng.u64(100..900)));
        place.daemon.kill();
    }
    place.daemon.start();
    place.until("half is delivered", |place| place.receiver.stats().held * 2 >= place.books.dropped.len());
    place.receiver.set_faults(Faults::default());
    let figures = place.end();
    assert!(figures.repeated > 0, "nothing was sent again");
    figures.note(format!("{kills} kills; a fifth of the requests reset, a fiftieth asked for a pause")).into()
}

/// One request in five is reset at a random point.
fn at_random(rng: fastrand::Rng) -> Fate {
    let rng = Mutex::new(rng);
    let taken = AtomicU64::new(0);
    fate(move |passage| {
        let drawn = rng.lock().unwrap().usize(..30);
        match [Start, Request, Forward, Answer, HalfAnswer, End].get(drawn) {
            Some(at) => reset(passage, *at, &taken),
            None => passage.pass(),
        }
    })
}
