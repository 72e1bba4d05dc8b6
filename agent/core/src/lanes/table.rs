//! The lanes of one connection, as one end knows them.

use super::frame::{self, BadHeader, DATA_BYTES_MAX, HEADER_BYTES, Header, Kind};
use super::{REPLY_WINDOW_BYTES, REQUEST_WINDOW_BYTES};

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It opens lanes.
    Connecting,
    /// It takes them, and says when it takes no more.
    Accepting,
}

impl End {
    /// Bytes on the way from it on one lane, at most.
    fn window(self) -> usize {
        match self {
            Self::Connecting => REQUEST_WINDOW_BYTES,
            Self::Accepting => REPLY_WINDOW_BYTES,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Connecting => Self::Accepting,
            Self::Accepting => Self::Connecting,
        }
    }
}

/// What an end that keeps to the rules would not have sent. Nothing of the connection can be believed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A kind of frame that there is not.
    #[error("a frame of kind {0}, which there is not")]
    Kind(u8),
    /// A frame that is too long, or too short.
    #[error("a {kind:?} frame of {length} bytes")]
    Length {
        /// Its kind.
        kind: Kind,
        /// What follows its header.
        length: usize,
    },
    /// A frame that is for the other end to send.
    #[error("a {0:?} frame from the end that may not send it")]
    Direction(Kind),
    /// A lane opened out of turn.
    #[error("lane {lane} is opened where {next} is the next")]
    OutOfTurn {
        /// The lane.
        lane: u32,
        /// Whose turn it was.
        next: u32,
    },
    /// More lanes at once than are agreed on.
    #[error("more than {max} lanes at once")]
    Crowded {
        /// How many there may be.
        max: usize,
    },
    /// A lane that was never opened.
    #[error("a {kind:?} frame on lane {lane}, which was never opened")]
    Unopened {
        /// The kind of frame.
        kind: Kind,
        /// The lane.
        lane: u32,
    },
    /// A frame behind the end of its lane.
    #[error("a {kind:?} frame on lane {lane} behind its end")]
    BehindEnd {
        /// The kind of frame.
        kind: Kind,
        /// The lane.
        lane: u32,
    },
    /// More bytes than there was credit for.
    #[error("more bytes on lane {lane} than there was credit for")]
    Overrun {
        /// The lane.
        lane: u32,
    },
    /// Credit for nothing, or for more than a window.
    #[error("credit on lane {lane} for nothing, or beyond its window")]
    Overflow {
        /// The lane.
        lane: u32,
    },
}

impl From<BadHeader> for Broken {
    fn from(bad: BadHeader) -> Self {
        match bad {
            BadHeader::Kind(kind) => Self::Kind(kind),
            BadHeader::Length(kind, length) => Self::Length { kind, length },
        }
    }
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'b> {
    /// The other end has opened a lane.
    Opened(u32),
    /// Bytes for a lane's reader.
    Data(u32, &'b [u8]),
    /// No more will come on a lane.
    Ended(u32),
    /// A lane was broken off.
    Reset(u32),
    /// More may be sent on a lane.
    Credit(u32),
    /// No more lanes are taken there.
    Leaving,
    /// Something for a lane that is gone here, sent before the other end knew.
    Late,
}

/// What comes next of what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'b> {
    /// A frame, and how many bytes it has.
    Frame(usize, Event<'b>),
    /// The next frame is not whole yet.
    More,
    /// A lane is to be opened, and this end must close one first that is over.
    Wait,
}

/// One lane; `own` is for who moves its bytes.
#[derive(Debug)]
pub struct Lane<T> {
    id: u32,
    /// Bytes that may be sent.
    credit: usize,
    /// Bytes that may still come.
    awaited: usize,
    /// Bytes that the reader has taken since it last gave credit.
    taken: usize,
    has_ended: bool,
    other_has_ended: bool,
    is_reset: bool,
    /// What belongs to it here.
    pub own: T,
}

impl<T> Lane<T> {
    /// Bytes that may be sent.
    #[must_use]
    pub fn credit(&self) -> usize {
        self.credit
    }

    /// This end has said that no more comes.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// The other end has.
    #[must_use]
    pub fn other_has_ended(&self) -> bool {
        self.other_has_ended
    }

    /// The other end has broken it off.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.is_reset
    }

    /// Nothing comes or goes any more.
    fn is_over(&self) -> bool {
        self.is_reset || (self.has_ended && self.other_has_ended)
    }
}

/// All lanes of a connection that this end has not closed, in the order of their numbers.
#[derive(Debug)]
pub struct Table<T> {
    end: End,
    lanes: Vec<Lane<T>>,
    /// Those that are not over: the other end counts the same, or fewer.
    live: usize,
    lanes_max: usize,
    last_opened: u32,
    is_leaving: bool,
}

impl<T: Default> Table<T> {
    /// Of a new connection, on which so many lanes may be at once.
    #[must_use]
    pub fn new(end: End, lanes_max: usize) -> Self {
        Self { end, lanes: Vec::new(), live: 0, lanes_max, last_opened: 0, is_leaving: false }
    }

    /// One that this end has not closed.
    pub fn lane(&mut self, lane: u32) -> Option<&mut Lane<T>> {
        let place = self.place(lane)?;
        self.lanes.get_mut(place)
    }

    /// All of them.
    pub fn lanes(&mut self) -> impl Iterator<Item = &mut Lane<T>> {
        self.lanes.iter_mut()
    }

    /// How many this end has not closed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Whether the accepting end takes no more.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Whether one more may be opened.
    #[must_use]
    pub fn takes_more(&self) -> bool {
        self.end == End::Connecting
            && !self.is_leaving
            && self.live < self.lanes_max
            && self.last_opened < u32::MAX
    }

    /// Opens a lane; `None`: none may be.
    pub fn open(&mut self, out: &mut Vec<u8>) -> Option<u32> {
        if !self.takes_more() {
            return None;
        }
        let lane = self.add();
        frame::write_empty(lane, Kind::Open, out);
        Some(lane)
    }

    /// Says as much of `parts` as its lane has credit for, at most `room` bytes: how much that was.
    pub fn say<'p>(
        &mut self,
        lane: u32,
        parts: impl Iterator<Item = &'p [u8]> + Clone,
        room: usize,
        out: &mut Vec<u8>,
    ) -> usize {
        let Some(known) = self.lane(lane).filter(|known| !known.has_ended && !known.is_reset) else {
            return 0;
        };
        let wanted: usize = parts.clone().map(<[u8]>::len).sum();
        let said = wanted.min(known.credit).min(room);
        known.credit -= said;
        let (mut parts, mut part, mut left) = (parts, &[][..], said);
        while left > 0 {
            let length = left.min(DATA_BYTES_MAX);
            left -= length;
            Header { lane, kind: Kind::Data, length }.write(out);
            let mut of_frame = length;
            while of_frame > 0 {
                if part.is_empty() {
                    part = parts.next().unwrap_or_default();
                    continue;
                }
                let (now, later) = part.split_at_checked(of_frame).unwrap_or((part, &[]));
                out.extend_from_slice(now);
                of_frame -= now.len();
                part = later;
            }
        }
        said
    }

    /// A lane's reader has taken so many bytes: credit goes back once it is half a window, and while more may come.
    pub fn took(&mut self, lane: u32, bytes: usize, out: &mut Vec<u8>) {
        let window = self.end.other().window();
        let Some(known) = self.lane(lane) else { return };
        known.taken += bytes;
        if known.taken >= window / 2 && !known.other_has_ended && !known.is_reset {
            known.awaited += known.taken;
            frame::write_credit(lane, std::mem::take(&mut known.taken), out);
        }
    }

    /// Says that no more comes on a lane from here.
    pub fn end(&mut self, lane: u32, out: &mut Vec<u8>) {
        let Some(known) = self.lane(lane).filter(|known| !known.has_ended && !known.is_reset) else { return };
        known.has_ended = true;
        let is_over = known.is_over();
        frame::write_empty(lane, Kind::End, out);
        self.live -= usize::from(is_over);
    }

    /// Forgets a lane: where it is not over it is broken off.
    pub fn close(&mut self, lane: u32, out: &mut Vec<u8>) -> Option<T> {
        let closed = self.lanes.remove(self.place(lane)?);
        if !closed.is_over() {
            frame::write_empty(lane, Kind::Reset, out);
            self.live -= 1;
        }
        Some(closed.own)
    }

    /// Says that this end takes no more lanes; what is opened meanwhile is taken all the same.
    pub fn leave(&mut self, out: &mut Vec<u8>) {
        if self.end == End::Accepting && !self.is_leaving {
            self.is_leaving = true;
            frame::write_empty(0, Kind::Leaving, out);
        }
    }

    /// What comes next of `bytes`, which are to be given again from behind the frame on.
    ///
    /// # Errors
    /// [`Broken`]: the connection is over.
    pub fn received<'b>(&mut self, bytes: &'b [u8]) -> Result<Step<'b>, Broken> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(Step::More) };
        let header = Header::read(*header)?;
        let Some(payload) = rest.get(..header.length) else { return Ok(Step::More) };
        let event = match header.kind {
            Kind::Open if self.end == End::Connecting => return Err(Broken::Direction(Kind::Open)),
            Kind::Leaving if self.end == End::Accepting => return Err(Broken::Direction(Kind::Leaving)),
            Kind::Open => match self.opened(header.lane)? {
                Some(opened) => opened,
                None => return Ok(Step::Wait),
            },
            Kind::Leaving if header.lane != 0 => {
                return Err(Broken::Unopened { kind: Kind::Leaving, lane: header.lane });
            }
            Kind::Leaving => {
                self.is_leaving = true;
                Event::Leaving
            }
            Kind::Data | Kind::End | Kind::Reset | Kind::Credit => self.on_lane(header, payload)?,
        };
        Ok(Step::Frame(HEADER_BYTES + header.length, event))
    }

    /// `None`: not before one that is over is closed here.
    fn opened(&mut self, lane: u32) -> Result<Option<Event<'static>>, Broken> {
        let next = self.last_opened.saturating_add(1);
        if lane != next || self.last_opened == u32::MAX {
            return Err(Broken::OutOfTurn { lane, next });
        }
        if self.live >= self.lanes_max {
            return Err(Broken::Crowded { max: self.lanes_max });
        }
        if self.lanes.len() >= self.lanes_max {
            return Ok(None);
        }
        Ok(Some(Event::Opened(self.add())))
    }

    fn on_lane<'b>(&mut self, header: Header, payload: &'b [u8]) -> Result<Event<'b>, Broken> {
        let Header { lane, kind, .. } = header;
        if lane == 0 || lane > self.last_opened {
            return Err(Broken::Unopened { kind, lane });
        }
        let window = self.end.window();
        let Some(known) = self.lane(lane) else { return Ok(Event::Late) };
        let is_behind_end =
            known.is_reset || (known.other_has_ended && matches!(kind, Kind::Data | Kind::End));
        if is_behind_end {
            return Err(Broken::BehindEnd { kind, lane });
        }
        let was_over = known.is_over();
        let event = known.hears(kind, payload, window)?;
        let is_over = known.is_over();
        self.live -= usize::from(is_over && !was_over);
        Ok(event)
    }

    fn add(&mut self) -> u32 {
        self.last_opened += 1;
        self.live += 1;
        self.lanes.push(Lane {
            id: self.last_opened,
            credit: self.end.window(),
            awaited: self.end.other().window(),
            taken: 0,
            has_ended: false,
            other_has_ended: false,
            is_reset: false,
            own: T::default(),
        });
        self.last_opened
    }

    fn place(&self, lane: u32) -> Option<usize> {
        self.lanes.binary_search_by_key(&lane, |known| known.id).ok()
    }
}

impl<T> Lane<T> {
    fn hears<'b>(&mut self, kind: Kind, payload: &'b [u8], window: usize) -> Result<Event<'b>, Broken> {
        let lane = self.id;
        match kind {
            Kind::Data => {
                self.awaited = self.awaited.checked_sub(payload.len()).ok_or(Broken::Overrun { lane })?;
                Ok(Event::Data(lane, payload))
            }
            Kind::End => {
                self.other_has_ended = true;
                Ok(Event::Ended(lane))
            }
            Kind::Reset => {
                self.is_reset = true;
                Ok(Event::Reset(lane))
            }
            Kind::Credit => {
                let given = payload.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                let credit = self.credit.saturating_add(given);
                if given == 0 || credit > window {
                    return Err(Broken::Overflow { lane });
                }
                self.credit = credit;
                Ok(Event::Credit(lane))
            }
            Kind::Open | Kind::Leaving => Err(Broken::Direction(kind)), // they are of no lane
        }
    }
}
