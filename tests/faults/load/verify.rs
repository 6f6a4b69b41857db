//! Whether everything has become what it must.

use super::corpus::{Corpus, Good, Reject};
use koala_agent::receiver::{Held, Receiver};
use koala_agent::spool::rejected_beside;
use koala_agent::status::Status;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every count is what was dropped, and nothing waits.
pub fn adds_up(status: &Status, corpus: &Corpus) -> bool {
    let (outbox, spool) = (&status.outbox, &status.spool);
    let good = corpus.good.values().map(Vec::len).sum::<usize>() as u64;
    let settled = outbox.delivered + outbox.skipped + outbox.failed;
    (outbox.pending, spool.waiting_files, spool.waiting_bytes, outbox.discarded) == (0, 0, 0, 0)
        && (outbox.delivered, outbox.skipped, outbox.failed) == (good, corpus.skipped, corpus.failed)
        && (spool.duplicates, spool.rejected_files) == (corpus.duplicates, corpus.rejects.len() as u64)
        && settled + spool.duplicates + spool.rejected_files == corpus.dropped
}

/// Each good event has arrived, once, each person's in the order of the spool, under the id that it was given.
pub fn arrived(receiver: &Receiver, corpus: &Corpus) {
    let mut got: BTreeMap<String, Vec<Good>> = BTreeMap::new();
    for held in receiver.events() {
        let person =
            held.top("profile_id").or_else(|| held.top("email")).unwrap().trim_matches('"').to_owned();
        got.entry(person).or_default().push(Good { n: number(&held), id: Some(held.message_id.to_string()) });
    }
    assert!(got.keys().eq(corpus.good.keys()), "the people are not the same");
    for (person, want) in &corpus.good {
        let got = &got[person];
        let pairs = || want.iter().zip(got);
        let wrong = pairs().position(|(want, got)| {
            got.n != want.n || want.id.as_ref().map_or(!is_derived(got), |_| got.id != want.id)
        });
        if let Some(at) = wrong.or((want.len() != got.len()).then(|| pairs().len())) {
            let around = at.saturating_sub(2)..at + 4;
            let (want, got) = (around.clone().map(|i| want.get(i)), around.map(|i| got.get(i)));
            panic!(
                "{person}, from event {at} on: {:?} but {:?}",
                want.collect::<Vec<_>>(),
                got.collect::<Vec<_>>()
            );
        }
    }
}

fn number(held: &Held) -> u64 {
    let item: Value = serde_json::from_str(held.item.get()).unwrap();
    let about = if item["type"] == "track" { &item["properties"] } else { &item["traits"] };
    about["n"].as_u64().unwrap()
}

fn is_derived(good: &Good) -> bool {
    let uuid = good.id.as_ref().and_then(|id| uuid::Uuid::parse_str(id).ok());
    uuid.is_some_and(|uuid| uuid.get_version_num() == 8)
}

/// Each bad piece is set aside once, in its own bytes, beside its reason and its place, and nothing else is left.
pub fn set_aside(spool: &Path, corpus: &Corpus) {
    let mut left: Vec<_> = fs::read_dir(spool).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".removing", "rejected"]);
    let got = rejected_beside(spool).list().unwrap().into_iter().map(|rejected| {
        let why = rejected.why.unwrap_or_else(|| panic!("no reason for {:?}", rejected.name));
        let bytes = fs::read(spool.join("rejected").join(&rejected.name)).unwrap();
        (why.file, why.place, why.code, why.line, why.column, bytes)
    });
    let mut got: Vec<Reject> = got.collect();
    let mut want: Vec<&Reject> = corpus.rejects.iter().collect();
    got.sort();
    want.sort();
    for (got, want) in got.iter().zip(&want) {
        let shown =
            |r: &Reject| format!("{:?} {:.60}", (&r.0, r.1, r.2, r.3, r.4), String::from_utf8_lossy(&r.5));
        assert!(got == *want, "set aside: {}\n  expected: {}", shown(got), shown(want));
    }
    assert_eq!(got.len(), want.len());
    let reasons = fs::read_dir(spool.join("rejected")).unwrap();
    let reasons = reasons.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "why"));
    assert_eq!(reasons.count(), got.len(), "a reason without its file");
}
