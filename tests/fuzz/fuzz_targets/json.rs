//! JSON texts and messages, with serde_json as the oracle.
#![no_main]

#[path = "../../../agent/core/tests/differential/json.rs"]
mod json;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    json::text(data);
    json::message(data);
});
