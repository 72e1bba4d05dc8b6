//! A server whose every byte is the test's own: it accepts when the test does, and says what the test says.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context as _, Result, bail};

use crate::{Connection, wait};

/// What the kernel takes for a connection that nobody reads.
const RECEIVE_BYTES: usize = 64 * 1024;

/// It listens until it is dropped; then connections to it are refused.
#[derive(Debug)]
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    listener: TcpListener,
}

impl Peer {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// There is none.
    pub fn start() -> Result<Self> {
        Self::at((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Listens where it is told.
    ///
    /// # Errors
    /// It is no address of this namespace, or in use.
    pub fn at(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        // Its connections inherit it: a large body does not fit in what the kernel holds for a test that does not read.
        socket2::SockRef::from(&listener)
            .set_recv_buffer_size(RECEIVE_BYTES)
            .context("cannot set the size of the receive buffer")?;
        let address = listener.local_addr().context("a listener without address")?;
        Ok(Self { address, listener })
    }

    /// Waits for a connection: its other end.
    ///
    /// # Errors
    /// None comes.
    pub fn accept(&self) -> Result<Connection> {
        wait::until("a connection to the server", || self.accept_now())
    }

    /// A connection that has come already.
    ///
    /// # Errors
    /// It cannot be accepted.
    pub fn accept_now(&self) -> Result<Option<Connection>> {
        match self.listener.accept() {
            Ok((stream, client)) => {
                stream.set_nonblocking(false).context("cannot make the connection blocking")?;
                Connection::new(stream, client).map(Some)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => bail!("cannot accept: {error}"),
        }
    }
}
