//! The heads of a real client's request and of its reply: `cargo bench -p toolgate-core --bench codec`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use toolgate_core::http1::{
    Changes, ChunkedDecoder, HeadLimits, Outgoing, request_head, response_head, write_request_head,
    write_response_head,
};

/// The official Python client's.
const REQUEST: &[u8] =
    b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: application/json, text/event-stream\r\n\
    Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\n\
    content-type: application/json\r\nmcp-session-id: 1868a90c2a5f4b7e9d1f3c5b7a9e2d4f\r\n\
    mcp-protocol-version: 2025-11-25\r\nContent-Length: 440\r\n\r\n";
/// The official Python server's.
const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Thu, 26 Nov 2026 11:00:00 GMT\r\nserver: uvicorn\r\n\
    cache-control: no-cache, no-transform\r\nconnection: keep-alive\r\ncontent-type: text/event-stream\r\n\
    mcp-session-id: 1868a90c2a5f4b7e9d1f3c5b7a9e2d4f\r\nx-accel-buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n";

fn codec(criterion: &mut Criterion) {
    let limits = HeadLimits::default();
    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    group.bench_function("request_head", |b| b.iter(|| request_head(black_box(REQUEST), &limits).is_ok()));
    let mut out = Vec::with_capacity(1024);
    let head = request_head(REQUEST, &limits).ok().flatten();
    if let Some(head) = &head {
        group.bench_function("write_request_head", |b| {
            b.iter(|| {
                out.clear();
                write_request_head(&mut out, black_box(head), Outgoing::Length(440), Changes::default());
                out.len()
            });
        });
    }
    group.throughput(Throughput::Bytes(REPLY.len() as u64));
    group.bench_function("response_head", |b| {
        b.iter(|| response_head(black_box(REPLY), "POST", &limits).is_ok());
    });
    let head = response_head(REPLY, "POST", &limits).ok().flatten();
    if let Some(head) = &head {
        group.bench_function("write_response_head", |b| {
            b.iter(|| {
                out.clear();
                write_response_head(&mut out, black_box(head), Outgoing::Chunked, false);
                out.len()
            });
        });
    }
    let chunked = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat().repeat(16);
    group.throughput(Throughput::Bytes(chunked.len() as u64));
    group.bench_function("chunks_64k", |b| {
        b.iter(|| {
            let (mut decoder, mut rest, mut bytes) = (ChunkedDecoder::new(), black_box(&chunked[..]), 0);
            while let Ok(decoded) = decoder.decode(rest)
                && decoded.consumed > 0
            {
                bytes += decoded.data.len();
                rest = &rest[decoded.consumed..];
            }
            bytes
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
