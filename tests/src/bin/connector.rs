//! A captured process, as the tests need one: it connects where it is told and hands the connection over.
//!
//! Its standard input is a Unix socket. A line `ADDRESS` is answered by `+PEER` with the connected socket attached (the
//! address that `getpeername` gives here), or by `-ERROR`. A line `exec PATH` is answered, and makes another
//! program of it, which answers the next line. At the end of the input it leaves.

use std::io::{BufRead as _, BufReader, IoSlice, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// A connection that nobody accepts is an error, not a wait.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("no standard input")?;
    let mut channel = UnixStream::from(stdin);
    let lines = BufReader::new(channel.try_clone().context("cannot share the channel")?);
    for line in lines.lines() {
        let line = line.context("cannot read an address")?;
        if let Some(program) = line.strip_prefix("exec ") {
            // What is sent before the answer would be read here, and lost.
            channel.write_all(b"executing\n").context("cannot answer")?;
            return Err(Command::new(program).exec()).context("cannot execute it");
        }
        match connect(&line) {
            Ok((stream, peer)) => {
                let answer = format!("+{peer}\n");
                let descriptors: [RawFd; 1] = [stream.as_raw_fd()];
                let attached = [ControlMessage::ScmRights(&descriptors)];
                let text = [IoSlice::new(answer.as_bytes())];
                sendmsg::<()>(channel.as_raw_fd(), &text, &attached, MsgFlags::empty(), None)
                    .context("cannot hand the connection over")?;
            }
            // One write, as the other end reads one message.
            Err(error) => channel.write_all(format!("-{error:#}\n").as_bytes()).context("cannot answer")?,
        }
    }
    Ok(())
}

fn connect(line: &str) -> Result<(TcpStream, SocketAddr)> {
    let address: SocketAddr = line.parse().context("not an address")?;
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).context("cannot connect")?;
    let peer = stream.peer_addr().context("no peer")?;
    Ok((stream, peer))
}
