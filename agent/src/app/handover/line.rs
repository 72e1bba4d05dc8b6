//! One end of the socket between the two.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::{ANSWER_TIME_MAX, HandoverError, Role};
use crate::bindings::Binding;
use crate::events::Stream;
use crate::given::{Key, Passed};
use crate::inspect::Kept;

/// Bytes of one message.
pub(super) const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Descriptors of one message: the kernel takes 253 (SCM_MAX_FD).
const DESCRIPTORS_MAX: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "say")]
pub(super) enum Message {
    Lock { version: u32 },
    Listener { role: Role },
    Inspection { authority: Kept },
    Whole { port: u16 },
    Attached,
    Failed { error: String },
    Sessions { bindings: Vec<Binding> },
    Streams { streams: Vec<Stream> },
    Given { secret: Key, given: Vec<Passed> },
    Over,
    Taken,
}

/// One end of the socket between the two.
pub(in crate::app) struct Line(OwnedFd);

impl Line {
    /// This process's end, and the other, which is the successor's standard input.
    pub(in crate::app) fn pair() -> Result<(Self, OwnedFd), HandoverError> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, its) = pair.map_err(|errno| HandoverError::Channel { cause: errno.into() })?;
        Ok((Self::new(ours)?, its))
    }

    /// Who does not take what is said to it holds nobody up for long.
    pub(super) fn new(end: OwnedFd) -> Result<Self, HandoverError> {
        let limited = SockRef::from(&end).set_write_timeout(Some(ANSWER_TIME_MAX));
        limited.map_err(|cause| HandoverError::Channel { cause })?;
        Ok(Self(end))
    }

    /// The same end once more.
    pub(in crate::app) fn clone_of(&self) -> Result<Self, HandoverError> {
        self.0.try_clone().map(Self).map_err(|cause| HandoverError::Channel { cause })
    }

    /// Nobody hears anything more at either end.
    pub(in crate::app) fn close(&self) {
        // Closed by the other end already is as good.
        let _ = SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }

    pub(super) fn say(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let text = serde_json::to_vec(message).map_err(|error| failed(error.into()))?;
        let raw: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
        let attached = [ControlMessage::ScmRights(&raw)];
        let attached = if raw.is_empty() { &attached[..0] } else { &attached[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], attached, flags, None) {
            Err(nix::Error::EAGAIN) => Err(failed(io::ErrorKind::TimedOut.into())),
            sent => sent.map(drop).map_err(|errno| failed(errno.into())),
        }
    }

    /// `None`: the other end has gone.
    pub(super) fn hear(&self) -> Result<Option<(Message, Vec<OwnedFd>)>, HandoverError> {
        let failed = |cause| HandoverError::Channel { cause };
        let mut text = vec![0; MESSAGE_BYTES_MAX];
        let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let heard = loop {
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.0.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(failed(io::ErrorKind::TimedOut.into())),
                Err(nix::Error::ECONNRESET) => return Ok(None),
                heard => break heard.map_err(|errno| failed(errno.into()))?,
            }
        };
        let mut descriptors = Vec::new();
        for attached in heard.cmsgs().map_err(|errno| failed(errno.into()))? {
            if let ControlMessageOwned::ScmRights(given) = attached {
                // SAFETY: the kernel has just made these descriptors for us alone.
                descriptors.extend(given.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let (bytes, cut) = (heard.bytes, heard.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
        if bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(text.get(..bytes).unwrap_or_default());
        match message {
            Ok(message) if !cut => Ok(Some((message, descriptors))),
            Ok(_) => Err(HandoverError::Language { problem: "a message was cut".to_owned() }),
            Err(error) => Err(HandoverError::Language { problem: error.to_string() }),
        }
    }

    pub(super) fn patience(&self, length: Option<Duration>) -> Result<(), HandoverError> {
        SockRef::from(&self.0).set_read_timeout(length).map_err(|cause| HandoverError::Channel { cause })
    }
}

pub(super) fn unexpected(message: &Message) -> HandoverError {
    HandoverError::Language { problem: format!("an unexpected `{message:?}`") }
}
