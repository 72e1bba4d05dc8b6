//! Why a head or a body is refused.

/// HTTP that is refused. Names what the client, or for replies the server, did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not the grammar of RFC 9112.
    #[error("no valid HTTP/1.1: {problem}; the peer may speak another protocol")]
    Syntax {
        /// What is wrong.
        problem: &'static str,
    },
    /// A line that ends in LF alone.
    #[error("a line ends in LF without CR; end every line of the head in CRLF")]
    BareLf,
    /// A CR within a line.
    #[error("a CR without LF in the head; end every line of the head in CRLF")]
    BareCr,
    /// An empty line before the head.
    #[error("an empty line before the head; the body before it may be longer than it was said to be")]
    EmptyLine,
    /// A header continued on the next line.
    #[error("a header is continued on the next line; RFC 9112 5.2 forbids it, so write it on one line")]
    ObsoleteFolding,
    /// White space between a header's name and its colon.
    #[error("white space before the colon of a header; remove it (RFC 9112 5.1)")]
    SpaceBeforeColon,
    /// Another version than 1.1 (for replies: than 1.0 and 1.1).
    #[error("the HTTP version is not supported; use HTTP/1.1")]
    Version,
    /// More headers than fit.
    #[error("more than {headers_max} headers (`headers_max`); send fewer")]
    TooManyHeaders {
        /// The limit in force.
        headers_max: usize,
    },
    /// A head that is too large.
    #[error(
        "the head is larger than {head_bytes_max} bytes (`head_bytes_max`); send fewer or shorter headers"
    )]
    HeadTooLarge {
        /// The limit in force.
        head_bytes_max: usize,
    },
    /// A target that is too long.
    #[error("the target is longer than {target_bytes_max} bytes (`target_bytes_max`); send a shorter one")]
    TargetTooLong {
        /// The limit in force.
        target_bytes_max: usize,
    },
    /// `GET http://host/ HTTP/1.1`: meant for a proxy.
    #[error(
        "the target `{target}` has the absolute form; send the path alone, and set no proxy for this address"
    )]
    AbsoluteForm {
        /// The target, shortened.
        target: String,
    },
    /// `CONNECT host:port HTTP/1.1`: meant for a proxy.
    #[error("the target `{target}` has the authority form (CONNECT); set no proxy for this address")]
    AuthorityForm {
        /// The target, shortened.
        target: String,
    },
    /// `OPTIONS * HTTP/1.1`
    #[error("the target `*` names no path; send a path")]
    AsteriskForm,
    /// A target with a byte or an escape that none may have.
    #[error("the target `{target}` is refused: {problem}")]
    Target {
        /// The target, shortened.
        target: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A path that some readers take for another.
    #[error(
        "the path of `{target}` has {has}, which some servers take for another path; send the plain path"
    )]
    AmbiguousPath {
        /// The target, shortened.
        target: String,
        /// What it has.
        has: &'static str,
    },
    /// No Host header.
    #[error("the Host header is missing; HTTP/1.1 needs one (RFC 9112 3.2)")]
    HostMissing,
    /// A Host header that names no host.
    #[error("the Host header is no host with an optional port; send the name of the server")]
    HostInvalid,
    /// A header twice that may stand once.
    #[error("the header `{name}` stands twice; readers differ in which one counts, so send it once")]
    Duplicate {
        /// The header.
        name: String,
    },
    /// A value beyond visible ASCII where no other is allowed.
    #[error("the value of the header `{name}` is not visible ASCII")]
    HeaderValue {
        /// The header.
        name: String,
    },
    /// An underscore where a header that counts has a hyphen.
    #[error("the header `{name}` has an underscore where some servers read a hyphen; use the hyphen")]
    Underscore {
        /// The header.
        name: String,
    },
    /// Connection names a header that must arrive.
    #[error("the Connection header names `{name}`, so it would be removed on the way; do not name it there")]
    ConnectionNames {
        /// The header.
        name: String,
    },
    /// Both Content-Length and Transfer-Encoding.
    #[error("both Content-Length and Transfer-Encoding; send one of them (RFC 9112 6.1)")]
    LengthAndEncoding,
    /// A Content-Length that is no number.
    #[error("the Content-Length is no decimal number below 2^63")]
    ContentLength,
    /// A Transfer-Encoding other than `chunked`.
    #[error("the Transfer-Encoding is not `chunked` alone; use `chunked` or a Content-Length")]
    TransferEncoding,
    /// A Content-Encoding on a request.
    #[error("the body has a Content-Encoding; send it without one")]
    ContentEncoding,
    /// An Expect other than `100-continue`.
    #[error("the Expect header asks for something other than `100-continue`; leave it out")]
    Expectation,
    /// A chunked body that is none.
    #[error("no valid chunked body: {problem}")]
    Chunk {
        /// What is wrong.
        problem: &'static str,
    },
    /// Chunk extensions or trailers beyond their limit.
    #[error(
        "chunk extensions and trailers are larger than {bytes_max} bytes (`chunk_overhead_bytes_max`); send fewer"
    )]
    ChunkOverhead {
        /// The limit in force.
        bytes_max: usize,
    },
}

impl HttpError {
    /// The status that answers it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax { .. }
            | Self::BareLf
            | Self::BareCr
            | Self::EmptyLine
            | Self::ObsoleteFolding
            | Self::SpaceBeforeColon
            | Self::AbsoluteForm { .. }
            | Self::AsteriskForm
            | Self::Target { .. }
            | Self::AmbiguousPath { .. }
            | Self::HostMissing
            | Self::HostInvalid
            | Self::Duplicate { .. }
            | Self::HeaderValue { .. }
            | Self::Underscore { .. }
            | Self::ConnectionNames { .. }
            | Self::LengthAndEncoding
            | Self::ContentLength
            | Self::Chunk { .. } => 400,
            Self::ChunkOverhead { .. } => 413,
            Self::TargetTooLong { .. } => 414,
            Self::ContentEncoding => 415,
            Self::Expectation => 417,
            Self::TooManyHeaders { .. } | Self::HeadTooLarge { .. } => 431,
            Self::AuthorityForm { .. } | Self::TransferEncoding => 501,
            Self::Version => 505,
        }
    }
}

/// At most 64 characters of what a peer sent, for a message that people read; beyond ASCII it shows escapes.
pub(super) fn shortened(bytes: &[u8]) -> String {
    bytes.iter().take(64).flat_map(|&byte| std::ascii::escape_default(byte)).map(char::from).collect()
}
