//! The way back to the client: what is written together, and what the client has seen.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use toolgate_core::http1;

use super::{Fault, Seen};
use crate::buffer::Scratch;
use crate::limits::Limits;
use crate::parse::{Client, Stream};
use crate::shares::Charge;

/// A chunk of so many bytes waits for what is ready after it: one write for both.
const TOGETHER_BYTES_MAX: usize = 8 * 1024;

/// So many bytes wait at most.
const QUEUED_BYTES_MAX: usize = 24 * 1024;

pub(super) struct ToClient<'r, S> {
    io: &'r mut Client<S>,
    limits: &'r Limits,
    /// For what the reply holds while it waits.
    pub(super) charge: Charge,
    /// What is to be written with the next bytes: the head, small chunks.
    pub(super) out: Scratch,
    /// Bytes of the body in it.
    queued: usize,
    /// Bytes of the body that the client got.
    pub(super) bytes: u64,
    pub(super) seen: Seen,
}

impl<'r, S: Stream> ToClient<'r, S> {
    pub(super) fn new(io: &'r mut Client<S>, limits: &'r Limits, seen: Seen) -> Self {
        let charge = Charge::new(Arc::clone(io.share()));
        let out = Scratch::default();
        Self { io, limits, charge, out, queued: 0, bytes: 0, seen }
    }

    /// Resolves when the client left.
    pub(super) async fn left(&mut self) {
        self.io.left().await;
    }

    /// Sends one run of a body, as a chunk if the body is `chunked`; one that is small waits for what is ready after it.
    /// `held`: bytes that are held meanwhile.
    pub(super) async fn run(&mut self, data: &[u8], chunked: bool, held: usize) -> Result<(), Fault> {
        if data.is_empty() {
            return Ok(());
        }
        if chunked && data.len() <= TOGETHER_BYTES_MAX {
            put_chunk(self.out.vec(), data);
            self.queued += data.len();
            return Ok(());
        }
        if chunked {
            http1::write_chunk_head(self.out.vec(), data.len());
        }
        self.with(data, if chunked { http1::CHUNK_END } else { b"" }, held).await
    }

    /// Forgets a head of a reply of which nothing is to be said, unless something of it waits or was sent. Whether it did.
    pub(super) fn takes_back(&mut self) -> bool {
        let is_alone = self.seen == Seen::Nothing && self.queued == 0;
        if is_alone {
            self.out.clear();
        }
        is_alone
    }

    /// Whether what waits must be written before more is put to it.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= QUEUED_BYTES_MAX
    }

    /// Writes what waits.
    pub(super) async fn flush(&mut self, held: usize) -> Result<(), Fault> {
        if self.out.is_empty() { Ok(()) } else { self.with(b"", b"", held + self.out.capacity()).await }
    }

    /// Writes what waits, and `data` of the body with what ends it behind that. What is `held` meanwhile is charged where
    /// the client does not take it at once.
    pub(super) async fn with(&mut self, data: &[u8], end: &[u8], held: usize) -> Result<(), Fault> {
        self.seen = Seen::Part;
        let mut parts = [IoSlice::new(&self.out), IoSlice::new(data), IoSlice::new(end)];
        write(self.io, &mut self.charge, held, &mut parts, self.limits).await?;
        self.out.clear();
        self.bytes += (std::mem::take(&mut self.queued) + data.len()) as u64;
        Ok(())
    }
}

async fn write<S: Stream>(
    client: &mut Client<S>,
    charge: &mut Charge,
    held: usize,
    parts: &mut [IoSlice<'_>],
    limits: &Limits,
) -> Result<(), Fault> {
    let mut writing = pin!(client.write(parts, limits));
    let written = poll_fn(|cx| {
        let polled = writing.as_mut().poll(cx);
        if polled.is_pending()
            && let Err(exceeded) = charge.at_least(held)
        {
            return Poll::Ready(Err(exceeded));
        }
        polled.map(Ok)
    });
    written.await?.map_err(|error| {
        let is_slow = error.kind() == io::ErrorKind::TimedOut;
        if is_slow { Fault::SlowClient(limits.client_write_max) } else { Fault::ClientLeft }
    })
}

pub(super) fn put_chunk(out: &mut Vec<u8>, data: &[u8]) {
    http1::write_chunk_head(out, data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(http1::CHUNK_END);
}
