//! Requests, with hyper as the oracle, in pieces as long as the first byte says.
#![no_main]

#[path = "../../../agent/core/tests/differential/http.rs"]
mod http;
#[path = "../../../agent/core/tests/differential/hyper_reads.rs"]
mod hyper_reads;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    http::request(data, usize::from(data.first().copied().unwrap_or(1)).max(1));
});
