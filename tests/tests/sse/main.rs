//! HTTP with SSE (MCP 2024-11-05, `transport: sse`): a stream names an endpoint, and what is sent there is answered on the
//! stream, by the server or in its place.
//!
//! - `rig`: a server whose every byte is the test's own, and clients of it
//! - `answers`: what comes on the stream, and what is recorded of it
//! - `endpoints`: which endpoints there are, and whose
//! - `ends`: what becomes of who waits when a stream ends
//! - `hostile`: servers and clients that keep to no rule
//! - `sdks`: the official SDKs at both ends

mod answers;
mod endpoints;
mod ends;
mod hostile;
mod rig;
mod sdks;
