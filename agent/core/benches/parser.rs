//! One message of each kind of body, beside other parsers: `cargo bench -p toolgate-core --bench parser`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::value::RawValue;
use toolgate_core::mcp::{JsonLimits, Scratch, parse};

/// What other gateways read: the envelope, the rest unread.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "read for what it costs")]
struct Envelope<'b> {
    jsonrpc: &'b str,
    id: Option<&'b RawValue>,
    method: Option<&'b str>,
    #[serde(borrow)]
    params: Option<&'b RawValue>,
}

fn call(arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{{"_meta":{{"progressToken":17}},"name":"search_documents","arguments":{arguments}}}}}"#
    )
}

/// 444 bytes, as a client's library writes them.
fn small() -> String {
    call(
        r#"{"query":"quarterly revenue by region","path":"/srv/docs/reports/2026","limit":25,"filters":{"language":"en","author":"ada","since":"2026-01-01"},"fields":["title","summary","updated_at"],"include_archived":false,"note":"Only what was approved by the finance team; leave out drafts and all that is older than a year."}"#,
    )
}

/// 64 KiB that are one text, an escape in each line.
fn text() -> String {
    let line = "The quick brown fox jumps over the lazy dog, and the agent reads along as it goes on its way";
    call(&format!(r#"{{"text":"{}"}}"#, format!("{line}\\n").repeat(696)))
}

/// 64 KiB of one text beyond ASCII.
fn foreign() -> String {
    call(&format!(r#"{{"text":"{}"}}"#, "Größe, π und 文字 in one line.".repeat(1820)))
}

/// 64 KiB of records.
fn structured() -> String {
    let record = |n: u32| {
        format!(
            r#"{{"id":{n},"title":"Record {n}","path":"/srv/docs/a/b-{n}.md","score":0.{n},"tags":["alpha","beta"],"owner":{{"name":"Ada","team":"research"}},"active":true,"parent":null}}"#
        )
    };
    let records: Vec<_> = (1000..1410).map(record).collect();
    call(&format!(r#"{{"records":[{}]}}"#, records.join(",")))
}

fn parser(criterion: &mut Criterion) {
    let limits = JsonLimits::default();
    let mut scratch = Scratch::new();
    for (name, body) in [
        ("call", small()),
        ("text_64k", text()),
        ("foreign_text_64k", foreign()),
        ("structured_64k", structured()),
    ] {
        let mut group = criterion.benchmark_group(format!("parser/{name}"));
        group.throughput(Throughput::Bytes(body.len() as u64));
        let body = body.as_bytes();
        assert!(parse(body, &mut scratch, &limits).is_ok(), "{name}");
        group.bench_function("toolgate", |b| {
            b.iter(|| parse(black_box(body), &mut scratch, &limits).is_ok());
        });
        group.bench_function("utf8_alone", |b| b.iter(|| std::str::from_utf8(black_box(body)).is_ok()));
        group.bench_function("serde_json_raw", |b| {
            b.iter(|| serde_json::from_slice::<Envelope<'_>>(black_box(body)).is_ok());
        });
        group.bench_function("serde_json_value", |b| {
            b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(body)).is_ok());
        });
        group.bench_function("sonic_rs_value", |b| {
            b.iter(|| sonic_rs::from_slice::<sonic_rs::Value>(black_box(body)).is_ok());
        });
        // It writes into its input, so that a copy belongs to it.
        let (mut copy, mut buffers) = (Vec::new(), simd_json::Buffers::default());
        group.bench_function("simd_json_tape", |b| {
            b.iter(|| {
                copy.clear();
                copy.extend_from_slice(black_box(body));
                simd_json::to_tape_with_buffers(&mut copy, &mut buffers).is_ok()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, parser);
criterion_main!(benches);
