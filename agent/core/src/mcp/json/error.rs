//! Why a text is no JSON that every reader would read alike, or no message.

/// A text that is refused. `offset` is the byte in the text where it was noticed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Bytes that are no UTF-8.
    #[error("byte {offset}: the text is not UTF-8; JSON is UTF-8 alone (RFC 8259), so encode it so")]
    NotUtf8 {
        /// The first byte that is none.
        offset: usize,
    },
    /// A byte order mark before the text.
    #[error("byte {offset}: the text begins with a byte order mark; send it without one")]
    ByteOrderMark {
        /// Always 0.
        offset: usize,
    },
    /// Not the grammar of RFC 8259.
    #[error(
        "byte {offset}: no valid JSON, {expected} was expected; the text may be cut off or not JSON at all"
    )]
    Syntax {
        /// Where something else stands.
        offset: usize,
        /// What would have been valid here.
        expected: &'static str,
    },
    /// A raw control character in a string.
    #[error("byte {offset}: a raw control character in a string; write it as an escape such as `\\n`")]
    Control {
        /// The character.
        offset: usize,
    },
    /// Half a surrogate pair.
    #[error("byte {offset}: half a surrogate pair; write both halves or the character itself")]
    LoneSurrogate {
        /// The escape.
        offset: usize,
    },
    /// A number that no double can hold.
    #[error("byte {offset}: the number overflows a double; send it as a string")]
    Number {
        /// The number's first byte.
        offset: usize,
    },
    /// Objects and arrays nested too deep.
    #[error("byte {offset}: nested deeper than {depth_max} levels (`json_depth_max`); flatten the value")]
    Depth {
        /// The bracket that is one too many.
        offset: usize,
        /// The limit in force.
        depth_max: usize,
    },
    /// An object with too many members.
    #[error(
        "byte {offset}: an object with more than {members_max} members (`json_members_max`); split the value"
    )]
    Members {
        /// The member that is one too many.
        offset: usize,
        /// The limit in force.
        members_max: usize,
    },
    /// The same key twice in an object, after unescaping.
    #[error(
        "byte {offset}: the key `{key}` stands twice in one object; readers differ in which one counts, so send it once"
    )]
    DuplicateKey {
        /// The second one.
        offset: usize,
        /// The key, shortened.
        key: String,
    },
    /// A key that differs from another, or from a name of the protocol, only in case.
    #[error(
        "byte {offset}: the key `{key}` differs from another name only in case; some readers take it for the other, so spell it as the protocol does"
    )]
    CollidingKey {
        /// The key.
        offset: usize,
        /// The key, shortened.
        key: String,
    },
    /// Several messages in one array.
    #[error("byte {offset}: a batch; send one message per request (MCP 2025-06-18 removed batches)")]
    Batch {
        /// The bracket.
        offset: usize,
    },
    /// JSON, but no object.
    #[error("byte {offset}: the message is no JSON object; a JSON-RPC 2.0 message was expected")]
    NotAnObject {
        /// The value.
        offset: usize,
    },
    /// A member of the message with the wrong type or value.
    #[error("byte {offset}: `{member}` must be {expected}")]
    Member {
        /// The value.
        offset: usize,
        /// Its path in the message.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A member that the message cannot do without.
    #[error("`{member}` is missing: {needed_by} needs it")]
    Missing {
        /// Its path in the message.
        member: &'static str,
        /// The method or kind of message.
        needed_by: &'static str,
    },
    /// A message that is more than one kind, or none.
    #[error("the message has {has}; it must have one of `method`, `result` and `error`")]
    Ambiguous {
        /// What it has.
        has: &'static str,
    },
}

impl Malformed {
    /// The byte in the text where it was noticed; 0 where the whole message is meant.
    #[must_use]
    pub fn offset(&self) -> usize {
        match self {
            Self::NotUtf8 { offset }
            | Self::ByteOrderMark { offset }
            | Self::Syntax { offset, .. }
            | Self::Control { offset }
            | Self::LoneSurrogate { offset }
            | Self::Number { offset }
            | Self::Depth { offset, .. }
            | Self::Members { offset, .. }
            | Self::DuplicateKey { offset, .. }
            | Self::CollidingKey { offset, .. }
            | Self::Batch { offset }
            | Self::NotAnObject { offset }
            | Self::Member { offset, .. } => *offset,
            Self::Missing { .. } | Self::Ambiguous { .. } => 0,
        }
    }

    /// The JSON-RPC error code: -32700 where the text is refused, -32600 where the message is.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::NotUtf8 { .. }
            | Self::ByteOrderMark { .. }
            | Self::Syntax { .. }
            | Self::Control { .. }
            | Self::LoneSurrogate { .. }
            | Self::Number { .. }
            | Self::Depth { .. }
            | Self::Members { .. }
            | Self::DuplicateKey { .. } => -32700,
            Self::CollidingKey { .. }
            | Self::Batch { .. }
            | Self::NotAnObject { .. }
            | Self::Member { .. }
            | Self::Missing { .. }
            | Self::Ambiguous { .. } => -32600,
        }
    }
}

/// At most 64 characters of a key, for a message that people read.
pub(super) fn shortened(key: &str) -> String {
    key.chars().take(64).collect()
}
