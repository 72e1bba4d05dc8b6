//! Other readers as oracles: hyper for HTTP, serde_json for JSON. `TOOLGATE_CASES=1000000 cargo test --release -p
//! toolgate-core --test differential -- --nocapture` runs so many of each kind, and prints how many fell into which class.

mod http;
mod hyper_reads;
mod json;
mod json_text;
mod random;

use random::{Classes, Random};
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
