//! Chunked bodies (RFC 9112 7.1), one run of data at a time.

use super::error::HttpError;
use super::headers::is_token;

/// Extensions and trailers of one body together; they are read over and dropped.
const OVERHEAD_BYTES_MAX: usize = 8 * 1024;
/// Digits of a chunk's size: 2^60 bytes are beyond every limit on bodies.
const SIZE_DIGITS_MAX: u8 = 15;

/// What one call of [`ChunkedDecoder::decode`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded<'b> {
    /// Bytes of the input that are done with, framing and data.
    pub consumed: usize,
    /// One run of data, from the end of those; empty if there was framing alone.
    pub data: &'b [u8],
    /// The body has ended; what is behind `consumed` belongs to the next message.
    pub done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Digits so far, and their value.
    Size {
        digits: u8,
        bytes: u64,
    },
    Extension {
        bytes: u64,
    },
    SizeLf {
        bytes: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer or of the final empty line.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    FinalLf,
    Done,
}

/// Takes a chunked body apart. May be fed the body in pieces of any size; each byte is looked at once.
#[derive(Debug, Clone)]
pub struct ChunkedDecoder {
    state: State,
    overhead_bytes: usize,
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkedDecoder {
    /// At the start of a body.
    #[must_use]
    pub fn new() -> Self {
        Self { state: State::Size { digits: 0, bytes: 0 }, overhead_bytes: 0 }
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads on. Returns after one run of data; call again with what is behind `consumed`.
    ///
    /// # Errors
    /// [`HttpError::Chunk`], [`HttpError::ChunkOverhead`]; the connection cannot be read on.
    pub fn decode<'b>(&mut self, input: &'b [u8]) -> Result<Decoded<'b>, HttpError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            if let State::Data { left } = self.state {
                let rest = input.get(at..).unwrap_or_default();
                let run = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                let left = left - run as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                let data = rest.get(..run).unwrap_or_default();
                return Ok(Decoded { consumed: at + run, data, done: false });
            }
            if self.is_done() {
                break;
            }
            self.state = self.framing(self.state, byte)?;
            at += 1;
        }
        Ok(Decoded { consumed: at, data: &[], done: self.is_done() })
    }

    /// One byte of framing.
    fn framing(&mut self, state: State, byte: u8) -> Result<State, HttpError> {
        let refused = |problem| Err(HttpError::Chunk { problem });
        let plain = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
        match (state, byte) {
            (State::Size { digits, bytes }, _) => size(digits, bytes, byte),
            (State::Extension { bytes }, b'\r') => Ok(State::SizeLf { bytes }),
            (State::Extension { .. } | State::TrailerValue, _) if plain => self.overhead(state),
            (State::Extension { .. }, _) => refused("a control character in a chunk extension"),
            (State::SizeLf { bytes: 0 }, b'\n') => Ok(State::TrailerStart),
            (State::SizeLf { bytes }, b'\n') => Ok(State::Data { left: bytes }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { digits: 0, bytes: 0 }),
            (State::DataCr | State::DataLf, _) => refused("the chunk's data is longer than its size"),
            (State::TrailerStart, b'\r') => Ok(State::FinalLf),
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                self.overhead(State::TrailerName)
            }
            (State::TrailerName, b':') => self.overhead(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) => refused("a trailer that is no header"),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) => refused("a control character in a trailer"),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            (State::FinalLf, b'\n') => Ok(State::Done),
            (State::SizeLf { .. } | State::TrailerLf | State::FinalLf, _) => refused("a CR without LF"),
            (State::Data { .. } | State::Done, _) => Ok(state),
        }
    }

    fn overhead(&mut self, state: State) -> Result<State, HttpError> {
        self.overhead_bytes += 1;
        if self.overhead_bytes > OVERHEAD_BYTES_MAX {
            return Err(HttpError::ChunkOverhead { bytes_max: OVERHEAD_BYTES_MAX });
        }
        Ok(state)
    }
}

/// One byte of a chunk's size line, before its extensions.
fn size(digits: u8, bytes: u64, byte: u8) -> Result<State, HttpError> {
    let problem = match (byte, char::from(byte).to_digit(16)) {
        (_, Some(_)) if digits >= SIZE_DIGITS_MAX => "the chunk's size has too many digits",
        (_, Some(digit)) => {
            return Ok(State::Size { digits: digits + 1, bytes: bytes << 4 | u64::from(digit) });
        }
        (b'\r', None) if digits > 0 => return Ok(State::SizeLf { bytes }),
        (b';', None) if digits > 0 => return Ok(State::Extension { bytes }),
        (_, None) => "the chunk's size is no hexadecimal number",
    };
    Err(HttpError::Chunk { problem })
}
