//! Where a body ends, and which of the bytes read are its data.

use toolgate_core::http1::{ChunkedDecoder, Framing, HttpError};

/// One run of data at the front of what was read.
pub struct Run<'b> {
    /// Bytes read, framing included.
    pub consumed: usize,
    /// The data in them.
    pub data: &'b [u8],
}

/// A body, as far as it was read.
pub enum Body {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked(ChunkedDecoder),
    /// What comes until the other side closes.
    UntilClose,
    /// All of it was read.
    Done,
}

impl Body {
    /// A body of which nothing was read.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(ChunkedDecoder::new()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Whether all of it was read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The other side closed. Whether the body is whole thereby.
    pub fn end(&mut self) -> bool {
        let whole = matches!(self, Self::UntilClose);
        if whole {
            *self = Self::Done;
        }
        whole
    }

    /// Takes the next run off the front of `bytes`; nothing consumed: more must be read.
    ///
    /// # Errors
    /// [`HttpError`] for broken chunks.
    pub fn next<'b>(&mut self, bytes: &'b [u8]) -> Result<Run<'b>, HttpError> {
        match self {
            Self::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= count as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Run { consumed: count, data: &bytes[..count] })
            }
            Self::Chunked(decoder) => {
                let decoded = decoder.decode(bytes)?;
                if decoder.is_done() {
                    *self = Self::Done;
                }
                Ok(Run { consumed: decoded.consumed, data: decoded.data })
            }
            Self::UntilClose => Ok(Run { consumed: bytes.len(), data: bytes }),
            Self::Done => Ok(Run { consumed: 0, data: &[] }),
        }
    }
}
