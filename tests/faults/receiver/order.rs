//! Connections that break at the worst moment, and what becomes of the order.

use crate::common::agent::TestAgent;
use crate::common::proxy::{Exchange, Proxy, Treatment, pass_on, treat};
use crate::runner::{Outcome, Scale};
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
    /// Half of the request was read.
    Request,
    /// All of the request was read, and the receiver has not seen it.
    Forward,
    /// The receiver has taken it, and nothing was answered.
    Answer,
    /// Half of the answer was sent.
    HalfAnswer,
    /// The whole answer was sent.
    End,
}

use At::{Answer, End, Forward, HalfAnswer, Request, Start};

/// The answer to a request that the receiver has accepted: with a body, so that half of it can be sent.
const TAKEN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"ok\": true}";

fn reset(exchange: &mut Exchange, at: At, taken: &AtomicU64) -> io::Result<()> {
    if let Start = at {
        return exchange.reset();
    }
    if let Request = at {
        io::Read::read(&mut exchange.stream, &mut [0; 100])?;
        return exchange.reset();
    }
    let request = exchange.request()?;
    if let Forward = at {
        return exchange.reset();
    }
    let mut answer = exchange.forward(&request)?;
    if answer.starts_with(b"HTTP/1.1 204 ") {
        taken.fetch_add(1, Relaxed);
        answer = TAKEN.to_vec();
    }
    match at {
        HalfAnswer => exchange.stream.write_all(&answer[..answer.len() - 6])?,
        End => exchange.stream.write_all(&answer)?,
        _ => {}
    }
    exchange.reset()
}

pub fn resets(scale: &Scale) -> Outcome {
    let mut agent = TestAgent::program(Faults::default());
    let unanswered = Arc::new(AtomicU64::new(0));
    let proxy = Proxy::before(agent.receiver.addr(), pass_on());
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    agent.start();
    let mut met = 0;
    for _ in 0..scale.of(2, 50) {
        for at in [Start, Request, Forward, Answer, HalfAnswer, End] {
            let taken = unanswered.clone();
            proxy.next(2, &treat(move |exchange| reset(exchange, at, &taken)));
            met += 2;
            agent.drop_events(20, 5);
            agent.until_delivered();
            agent.until("each treatment was met", |_| proxy.left() == 0);
        }
    }
    let figures = agent.end();
    let unanswered = unanswered.load(Relaxed);
    assert!(
        figures.repeated > 0,
        "{unanswered} requests were taken without a whole answer, and none was repeated"
    );
    figures
        .note(format!("{met} resets, {unanswered} of them after the receiver had taken the request"))
        .into()
}

pub fn through_all(scale: &Scale) -> Outcome {
    let mut rng = scale.rng();
    let mut agent =
        TestAgent::program(Faults { rate_limited: 0.02, retry_after: Some("1".into()), ..Faults::default() });
    let proxy = Proxy::before(agent.receiver.addr(), at_random(rng.fork()));
    agent.set(&format!("koala.endpoint = \"{}\"", proxy.endpoint()));
    let kills = scale.of(5, 50);
    let each = 100 * scale.of(50, 200) / kills;
    for _ in 0..kills {
        agent.drop_lines(each / 2, 100);
        agent.drop_events(each - each / 2, 100);
        agent.start();
        std::thread::sleep(Duration::from_millis(rng.u64(100..900)));
        agent.kill();
    }
    agent.start();
    agent.until("half is delivered", |agent| agent.receiver.stats().held * 2 >= agent.ledger.dropped.len());
    agent.receiver.set_faults(Faults::default());
    let figures = agent.end();
    assert!(figures.repeated > 0, "nothing was sent again");
    figures.note(format!("{kills} kills; a fifth of the requests reset, a fiftieth asked for a pause")).into()
}

/// One request in five is reset at a random point.
fn at_random(rng: fastrand::Rng) -> Treatment {
    let rng = Mutex::new(rng);
    let taken = AtomicU64::new(0);
    treat(move |exchange| {
        let drawn = rng.lock().unwrap().usize(..30);
        match [Start, Request, Forward, Answer, HalfAnswer, End].get(drawn) {
            Some(at) => reset(exchange, *at, &taken),
            None => exchange.pass(),
        }
    })
}
