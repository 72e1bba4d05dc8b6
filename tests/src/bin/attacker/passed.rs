//! Descriptors and bytes that go from process to process, past the captured cgroup.
//!
//! The other process is this program again, started before this one joins the captured cgroup; its standard input is
//! the channel between the two.

use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Child, Stdio};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use socket2::Socket;

use crate::ask::{Ask, At as _, Stopped, Tried, ended, stopped};
use crate::{speak, tcp};

/// What the other process says before it passes nothing.
const REFUSED: u8 = b'-';
const PASSED: u8 = b'+';

/// Starts this program again, outside, with a channel to it.
pub(crate) fn helper(ask: &Ask, attempt: &str) -> Result<(Child, UnixStream), Stopped> {
    let (own, its) = UnixStream::pair().at("pair")?;
    own.set_read_timeout(Some(speak::SILENCE)).at("timeout")?;
    let child = ask
        .again(attempt)?
        .stdin(OwnedFd::from(its))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .at("helper")?;
    Ok((child, own))
}

/// The channel, in the helper.
pub(crate) fn channel() -> Result<UnixStream, Stopped> {
    std::io::stdin().as_fd().try_clone_to_owned().at("channel").map(UnixStream::from)
}

/// Passes a descriptor.
pub(crate) fn give(channel: &UnixStream, socket: &Socket) -> Result<(), Stopped> {
    let descriptors: [RawFd; 1] = [socket.as_raw_fd()];
    let attached = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&[PASSED])], &attached, MsgFlags::empty(), None)
        .at("pass")
        .map(|_bytes| ())
}

/// Takes a descriptor that was passed.
pub(crate) fn receive(channel: &UnixStream) -> Result<Socket, Stopped> {
    let mut word = [0];
    let mut space = cmsg_space!([RawFd; 1]);
    let mut buffers = [IoSliceMut::new(&mut word)];
    let message =
        recvmsg::<()>(channel.as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .at("receive")?;
    for attached in message.cmsgs().at("receive")? {
        if let ControlMessageOwned::ScmRights(descriptors) = attached
            && let Some(&descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for us alone.
            return Ok(unsafe { Socket::from_raw_fd(descriptor) });
        }
    }
    if word == [REFUSED] {
        let mut number = [0; 4];
        (&*channel).read_exact(&mut number).at("receive")?;
        return Err(Stopped::from_errno("the helper's connect", i32::from_ne_bytes(number)));
    }
    Err(stopped("receive", "no descriptor came"))
}

/// An unconnected socket that a process outside has made.
pub(crate) fn received(ask: &Ask) -> Tried {
    let (child, channel) = helper(ask, "gives-socket")?;
    ask.join()?;
    let socket = receive(&channel)?;
    socket.connect(&ask.to()?.into()).at("connect")?;
    let said = tcp::said(socket, ask);
    drop(channel);
    ended(child)?;
    said
}

/// A connected one.
pub(crate) fn received_connected(ask: &Ask) -> Tried {
    let (child, channel) = helper(ask, "gives-connected")?;
    ask.join()?;
    let socket = receive(&channel)?;
    let said = tcp::said(socket, ask);
    drop(channel);
    ended(child)?;
    said
}

/// The helper of both.
pub(crate) fn gives(ask: &Ask, connected: bool) -> Tried {
    let channel = channel()?;
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    if connected && let Err(error) = socket.connect(&to.into()) {
        let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        (&channel).write_all(&[&[REFUSED][..], &number].concat()).at("pass")?;
        return Ok(String::new());
    }
    give(&channel, &socket)?;
    Ok(String::new())
}

/// Connects, captured, and hands the connection to a process outside, which says the call.
pub(crate) fn handed_on(ask: &Ask) -> Tried {
    let (child, mut channel) = helper(ask, "speaks-for")?;
    ask.join()?;
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    give(&channel, &socket)?;
    drop(socket);
    let mut said = String::new();
    channel.read_to_string(&mut said).at("the helper's answer")?;
    ended(child)?;
    Ok(said)
}

/// Its helper.
pub(crate) fn speaks_for(ask: &Ask) -> Tried {
    let mut channel = channel()?;
    let said = tcp::said(receive(&channel)?, ask).unwrap_or_else(|stopped| stopped.line());
    channel.write_all(said.as_bytes()).at("answer")?;
    Ok(String::new())
}

fn relay_name(ask: &Ask) -> Result<SocketAddr, Stopped> {
    SocketAddr::from_abstract_name(ask.tool()?).at("name")
}

/// Talks to a relay outside through an abstract Unix socket.
pub(crate) fn relayed(ask: &Ask) -> Tried {
    let (child, mut channel) = helper(ask, "relays")?;
    channel.read_exact(&mut [0]).at("the relay's start")?;
    ask.join()?;
    let stream = UnixStream::connect_addr(&relay_name(ask)?).at("connect")?;
    let said = tcp::said(Socket::from(OwnedFd::from(stream)), ask);
    drop(channel);
    ended(child)?;
    said
}

/// The relay: one connection, one request, one reply.
pub(crate) fn relays(ask: &Ask) -> Tried {
    let mut channel = channel()?;
    let listener = UnixListener::bind_addr(&relay_name(ask)?).at("bind")?;
    channel.write_all(b"+").at("start")?;
    let (mut inside, _name) = listener.accept().at("accept")?;
    let Ok(mut server) = TcpStream::connect(ask.to()?) else {
        // The end of the connection says it.
        return Ok(String::new());
    };
    let mut answers = server.try_clone().at("relay")?;
    let mut back = inside.try_clone().at("relay")?;
    std::thread::spawn(move || {
        let _broken_off = std::io::copy(&mut inside, &mut server);
        // The server hears that the asking end has gone, and goes.
        let _gone = server.shutdown(std::net::Shutdown::Write);
    });
    let mut some = [0; 4096];
    while let Ok(read @ 1..) = answers.read(&mut some) {
        if back.write_all(some.get(..read).unwrap_or_default()).is_err() {
            break;
        }
    }
    Ok(String::new())
}
