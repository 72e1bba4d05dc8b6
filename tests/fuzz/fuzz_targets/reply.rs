//! Replies, with hyper as the oracle.
#![no_main]

#[path = "../../../agent/core/tests/differential/http.rs"]
mod http;
#[path = "../../../agent/core/tests/differential/hyper_reads.rs"]
mod hyper_reads;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for method in ["POST", "HEAD"] {
        http::reply(method, data);
    }
});
