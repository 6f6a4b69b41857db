//! A script of everything that happens to an agent, drawn at random: a list of steps, so that one that fails can be made
//! shorter and be run again.

use koala_agent::reason::SUSPENDED;
use koala_agent::receiver::Faults;
use proptest::collection::vec;
use proptest::prelude::*;

/// Steps in a script: enough for a few crashes with work between them, few enough to be read.
const MOST_STEPS: usize = 30;
const MOST_PIECES: usize = 6;
/// The persons whose events may be erased.
const PERSONS: u8 = 4;
/// Microseconds that `erase` takes on a busy machine, from the start of its process.
const AMID_ERASURE: u32 = 150_000;
const DAY: i64 = 86_400;

#[derive(Debug, Clone)]
pub enum Step {
    Drop(File),
    /// The file that was only begun grows whole.
    Finish,
    /// The producer of the last file touches it once more, if it is still there.
    Touch {
        after_us: u32,
    },
    Weather(Weather),
    /// Time passes.
    Pass {
        seconds: u32,
    },
    /// The wall clock alone is set.
    SetClock {
        by_seconds: i64,
    },
    /// Real time, for the agent to work in.
    Work {
        ms: u8,
    },
    Stop,
    /// SIGKILL.
    Crash {
        after_us: u32,
    },
    Start,
    /// Retries by hand the event so many back among those whose ids are known.
    Retry(u8),
    Discard(u8),
    /// The same, and the agent is killed so soon after it was asked: nobody waits for what comes of it.
    RetryAndCrash(u8, u32),
    DiscardAndCrash(u8, u32),
    /// Erases a person, whose later events are skipped or come back.
    Erase {
        person: u8,
        may_return: bool,
    },
    /// The same, and the agent is killed amid it and started again: the command goes on.
    EraseAmidCrash {
        person: u8,
        may_return: bool,
        after_us: u32,
    },
}

#[derive(Debug, Clone)]
pub struct File {
    pub form: Form,
    pub packed: bool,
    pub way: Way,
    pub pieces: Vec<Piece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Single,
    Array,
    Envelope,
    Lines,
}

/// How a file comes into the spool. A share is so many 256ths of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Written aside, then renamed.
    Renamed,
    /// Renamed over the last file of that name, which is one of two.
    Over(bool),
    /// Written where it stands, the rest a moment later.
    InPlace { share: u8 },
    /// Written where it stands, the rest at the next [`Step::Finish`].
    Begun { share: u8 },
    /// The rest never comes.
    Cut { share: u8 },
}

#[derive(Debug, Clone, Copy)]
pub enum Piece {
    New {
        kind: Kind,
        person: u8,
        named: bool,
    },
    /// An event that came before, so many back: the same once more.
    Again(u8),
    /// Another event under its id.
    Reused(u8),
    Bad(Flaw),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Track,
    Identify,
    /// The receiver refuses it in whatever company.
    Poison,
    /// An event that does not say whose it is.
    Nobody,
    /// No mapping wants it.
    Page,
    /// An event whose integrations turn Koala off.
    Off,
    /// A track that does not say what happened.
    Nameless,
}

#[derive(Debug, Clone, Copy)]
pub enum Flaw {
    NotJson,
    NotAnEvent,
    TooDeep,
    TooLarge,
}

/// The behaviour of the receiver from now on.
#[derive(Debug, Clone, PartialEq)]
pub enum Weather {
    Well,
    Late(u8),
    Offline,
    Answers(u16, Option<&'static str>),
    /// A share of 503 and of 429.
    Uneven,
    RefusesAll,
    Small(usize),
    Portal,
    LosesAnswers,
}

impl Weather {
    /// A poisoned event is refused in any weather.
    pub fn faults(&self) -> Faults {
        let well = Faults { poison: Some("poison".into()), ..Faults::default() };
        match self {
            Weather::Well => well,
            Weather::Late(ms) => Faults { latency_ms: (*ms).into(), ..well },
            Weather::Offline => Faults { offline: true, ..well },
            Weather::Answers(status, retry_after) => {
                Faults { status: Some(*status), retry_after: retry_after.map(str::to_owned), ..well }
            }
            Weather::Uneven => Faults { fail_share: 0.3, rate_limited: 0.2, ..well },
            Weather::RefusesAll => Faults { refuse_all: Some(SUSPENDED.into()), ..well },
            Weather::Small(bytes) => Faults { too_large: Some(*bytes), ..well },
            Weather::Portal => Faults { html: true, ..well },
            Weather::LosesAnswers => Faults { drop_after_accept: 0.5, ..well },
        }
    }
}

fn piece() -> impl Strategy<Value = Piece> {
    let kind = prop_oneof![
        8 => Just(Kind::Track),
        2 => Just(Kind::Identify),
        1 => Just(Kind::Poison),
        1 => prop_oneof![Just(Kind::Nobody), Just(Kind::Page), Just(Kind::Off), Just(Kind::Nameless)],
    ];
    let flaw =
        prop_oneof![Just(Flaw::NotJson), Just(Flaw::NotAnEvent), Just(Flaw::TooDeep), Just(Flaw::TooLarge)];
    prop_oneof![
        10 => (kind, 0..PERSONS, any::<bool>())
            .prop_map(|(kind, person, named)| Piece::New { kind, person, named }),
        1 => (0..8u8).prop_map(Piece::Again),
        1 => (0..8u8).prop_map(Piece::Reused),
        1 => flaw.prop_map(Piece::Bad),
    ]
}

fn file() -> impl Strategy<Value = File> {
    let form = prop_oneof![
        3 => Just(Form::Single),
        2 => Just(Form::Lines),
        1 => Just(Form::Array),
        1 => Just(Form::Envelope)
    ];
    let way = prop_oneof![
        8 => Just(Way::Renamed),
        2 => any::<bool>().prop_map(Way::Over),
        1 => any::<u8>().prop_map(|share| Way::InPlace { share }),
        1 => any::<u8>().prop_map(|share| Way::Begun { share }),
        1 => any::<u8>().prop_map(|share| Way::Cut { share }),
    ];
    (form, prop::bool::weighted(0.2), way, vec(piece(), 1..MOST_PIECES))
        .prop_map(|(form, packed, way, pieces)| File { form, packed, way, pieces })
}

fn weather() -> impl Strategy<Value = Weather> {
    let retry_after = prop_oneof![
        3 => Just(None),
        1 => prop_oneof![Just("7"), Just("600"), Just("0"), Just("-1"), Just("soon"), Just("1000000000")]
            .prop_map(Some),
    ];
    prop_oneof![
        3 => Just(Weather::Well),
        1 => (1..20u8).prop_map(Weather::Late),
        1 => Just(Weather::Offline),
        2 => (prop_oneof![Just(503u16), Just(429), Just(500), Just(408)], retry_after)
            .prop_map(|(status, wish)| Weather::Answers(status, wish)),
        1 => prop_oneof![Just(401u16), Just(404), Just(302)]
            .prop_map(|status| Weather::Answers(status, None)),
        1 => Just(Weather::Uneven),
        1 => Just(Weather::RefusesAll),
        1 => (100..1500usize).prop_map(Weather::Small),
        1 => Just(Weather::Portal),
        2 => Just(Weather::LosesAnswers),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let moment = || prop_oneof![Just(0), 0..3_000u32, 0..25_000u32];
    prop_oneof![
        12 => file().prop_map(Step::Drop),
        1 => Just(Step::Finish),
        1 => moment().prop_map(|after_us| Step::Touch { after_us }),
        3 => weather().prop_map(Step::Weather),
        2 => prop_oneof![1..120u32, 60..4_000u32].prop_map(|seconds| Step::Pass { seconds }),
        1 => prop_oneof![Just(DAY), Just(-DAY), Just(-3_650 * DAY)]
            .prop_map(|by_seconds| Step::SetClock { by_seconds }),
        2 => (0..60u8).prop_map(|ms| Step::Work { ms }),
        1 => Just(Step::Stop),
        3 => moment().prop_map(|after_us| Step::Crash { after_us }),
        4 => Just(Step::Start),
        1 => (0..8u8).prop_map(Step::Retry),
        1 => (0..8u8).prop_map(Step::Discard),
        1 => (0..8u8, moment()).prop_map(|(back, after_us)| Step::RetryAndCrash(back, after_us)),
        1 => (0..8u8, moment()).prop_map(|(back, after_us)| Step::DiscardAndCrash(back, after_us)),
        2 => (0..PERSONS, any::<bool>())
            .prop_map(|(person, may_return)| Step::Erase { person, may_return }),
        2 => (0..PERSONS, any::<bool>(), 0..AMID_ERASURE).prop_map(|(person, may_return, after_us)| {
            Step::EraseAmidCrash { person, may_return, after_us }
        }),
    ]
}

pub fn script() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..MOST_STEPS)
}
