//! Frames as bytes.

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
/// The most bytes of one `DATA` frame.
pub const DATA_BYTES_MAX: usize = 16 * 1024;

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new lane, by the connecting end.
    Open,
    /// Bytes of a lane.
    Data,
    /// No more bytes from this end.
    End,
    /// The lane is broken off, both ways.
    Reset,
    /// So many bytes more may be sent on this lane: 4 bytes.
    Credit,
    /// The accepting end takes no more lanes; lane 0.
    Leaving,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Open, Self::Data, Self::End, Self::Reset, Self::Credit, Self::Leaving];

    /// As it is sent.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Open => 1,
            Self::Data => 2,
            Self::End => 3,
            Self::Reset => 4,
            Self::Credit => 5,
            Self::Leaving => 6,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.byte() == byte)
    }

    /// Whether its payload may have so many bytes.
    fn takes(self, length: usize) -> bool {
        match self {
            Self::Open | Self::End | Self::Reset | Self::Leaving => length == 0,
            Self::Data => (1..=DATA_BYTES_MAX).contains(&length),
            Self::Credit => length == 4,
        }
    }
}

/// A header whose kind and length are legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) lane: u32,
    pub(super) kind: Kind,
    pub(super) length: usize,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadHeader {
    Kind(u8),
    Length(Kind, usize),
}

impl Header {
    pub(super) fn read(bytes: [u8; HEADER_BYTES]) -> Result<Self, BadHeader> {
        let [a, b, c, d, kind, high, middle, low] = bytes;
        let kind = Kind::of(kind).ok_or(BadHeader::Kind(kind))?;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if !kind.takes(length) {
            return Err(BadHeader::Length(kind, length));
        }
        Ok(Self { lane: u32::from_be_bytes([a, b, c, d]), kind, length })
    }

    pub(super) fn write(self, out: &mut Vec<u8>) {
        let [a, b, c, d] = self.lane.to_be_bytes();
        // Of a length that is legal the upper bytes are zero.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        let [_, high, middle, low] = length;
        out.extend_from_slice(&[a, b, c, d, self.kind.byte(), high, middle, low]);
    }
}

/// A frame without payload.
pub(super) fn write_empty(lane: u32, kind: Kind, out: &mut Vec<u8>) {
    Header { lane, kind, length: 0 }.write(out);
}

/// A `CREDIT` frame.
pub(super) fn write_credit(lane: u32, bytes: usize, out: &mut Vec<u8>) {
    Header { lane, kind: Kind::Credit, length: 4 }.write(out);
    // No credit exceeds a window.
    out.extend_from_slice(&u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes());
}
