//! Other readers as oracles: hyper for HTTP, serde_json and readers of other languages for JSON. `TOOLGATE_CASES=1000000 cargo test --release -p
//! toolgate-core --test differential -- --nocapture` runs so many of each kind, and prints how many fell into which class.

mod http;
mod hyper_reads;
mod json;
mod json_text;
mod piped;
mod random;
mod readers;

use random::{Classes, Random};
use readers::{Reading, Tree};
use std::path::Path;

/// Inputs of each kind where nothing else is said: a few seconds of them.
const CASES: usize = 20_000;

fn cases() -> usize {
    std::env::var("TOOLGATE_CASES").map_or(CASES, |cases| cases.parse().expect("TOOLGATE_CASES is a number"))
}

/// The inputs that the fuzzers begin with, each the content of a file.
fn seeds(kind: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds").join(kind);
    let files = std::fs::read_dir(&folder).expect("a folder of seeds");
    let seeds: Vec<_> =
        files.map(|file| std::fs::read(file.expect("a file").path()).expect("a seed")).collect();
    assert!(!seeds.is_empty(), "{}", folder.display());
    seeds
}

#[test]
fn requests_are_to_hyper_what_they_are_to_us() {
    let seeds = seeds("request");
    for seed in &seeds {
        for step in [1, 7, usize::MAX] {
            http::request(seed, step);
        }
    }
    let (mut random, mut classes) = (Random::new(1), Classes::default());
    for _ in 0..cases() {
        let bytes = random::or_seed(&mut random, &seeds, random::request);
        classes.count(http::request(&bytes, random.step()));
    }
    classes.show("requests");
}

#[test]
fn replies_are_to_hyper_what_they_are_to_us() {
    let seeds = seeds("reply");
    for seed in &seeds {
        for method in ["GET", "HEAD"] {
            http::reply(method, seed);
        }
    }
    let (mut random, mut classes) = (Random::new(2), Classes::default());
    for _ in 0..cases() {
        let method = random::method(&mut random);
        let bytes = random::or_seed(&mut random, &seeds, random::reply);
        classes.count(http::reply(method, &bytes));
    }
    classes.show("replies");
}

#[test]
fn json_is_to_serde_json_what_it_is_to_us() {
    let seeds = seeds("json");
    for seed in &seeds {
        json::text(seed);
    }
    let (mut random, mut classes) = (Random::new(3), Classes::default());
    for _ in 0..cases() {
        let bytes = random::or_seed(&mut random, &seeds, json_text::text);
        classes.count(json::text(&bytes));
    }
    classes.show("JSON texts");
}

#[test]
fn messages_are_to_serde_json_what_they_are_to_us() {
    let seeds = seeds("json");
    for seed in &seeds {
        json::message(seed);
    }
    let (mut random, mut classes) = (Random::new(4), Classes::default());
    for _ in 0..cases() {
        let bytes = random::or_seed(&mut random, &seeds, json_text::message);
        classes.count(json::message(&bytes));
    }
    classes.show("messages");
}

/// Where other readers differ among themselves, and therefore refused: with what each takes for the method.
#[test]
fn what_is_refused_is_read_in_more_than_one_way() {
    for (text, exact, folding) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#, "ping", "tools/call"),
        ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"METHOD\":\"a/b\"}", "ping", "a/b"),
    ] {
        assert!(readers::ours(text.as_bytes()).is_none(), "{text}");
        let read = readers::serde_json(text.as_bytes()).expect("JSON").reading();
        assert_eq!(read.method(), Some(exact), "{text}");
        let read = readers::folding(text.as_bytes()).expect("JSON");
        assert_eq!(read.method(), Some(folding), "{text}");
    }
}

/// Reads each as one reader does, and counts it; what is refused must have a whole number that the reader cannot hold.
fn compare(
    reader: &str,
    accepted: &[(&[u8], Reading)],
    read: impl IntoIterator<Item = Result<Reading, String>>,
    classes: &mut Classes,
) {
    for ((text, ours), read) in accepted.iter().zip(read) {
        let shown = text.escape_ascii();
        match read {
            Ok(read) => {
                assert!(ours.is(&read), "{reader} reads {read:?} and not {ours:?}: {shown}");
                classes.count(format!("accepted: {reader} reads the same"));
            }
            Err(error) => {
                let has_big = readers::serde_json(text).is_ok_and(|tree| tree.has_big());
                assert!(reader == "simd-json" && has_big, "{reader} refuses it, {error}: {shown}");
                classes.count(format!("refused: {reader}, a number beyond its integers"));
            }
        }
    }
}

#[test]
fn what_is_accepted_is_one_call_to_every_reader() {
    let seeds = seeds("json");
    let mut random = Random::new(5);
    let generated: Vec<_> =
        (0..cases()).map(|_| random::or_seed(&mut random, &seeds, json_text::message)).collect();
    let texts = seeds.iter().chain(&generated).map(Vec::as_slice);
    let accepted: Vec<(&[u8], Reading)> =
        texts.filter_map(|text| Some((text, readers::ours(text)?))).collect();
    assert!(accepted.len() > cases() / 4, "{} accepted", accepted.len());
    let mut classes = Classes::default();
    let reading = |read: Result<Tree, String>| read.map(|tree| tree.reading());
    let all = || accepted.iter().map(|(text, _)| *text);
    for (reader, read) in [
        ("serde_json", readers::serde_json as fn(&[u8]) -> Result<Tree, String>),
        ("simd-json", readers::simd_json),
        ("sonic-rs", readers::sonic_rs),
    ] {
        compare(reader, &accepted, all().map(|text| reading(read(text))), &mut classes);
    }
    compare("any case, the last key", &accepted, all().map(readers::folding), &mut classes);
    let texts: Vec<_> = all().collect();
    for (reader, program, script) in
        [("Python's json", "python3", "reader.py"), ("JSON.parse", "node", "reader.mjs")]
    {
        compare(
            reader,
            &accepted,
            piped::read(program, script, &texts).into_iter().map(reading),
            &mut classes,
        );
    }
    classes.show("readings of accepted messages");
}
