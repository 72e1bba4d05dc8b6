//! Headers that a server's owner wants with every request, whoever calls.

use super::headers::{is_token, is_visible};
use super::name::Name;
use crate::secret::Secret;

/// A header that comes in the place of the caller's own of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnHeader {
    name: Box<str>,
    value: Secret,
}

/// Why a server cannot have such a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnHeaderError {
    /// RFC 9110 section 5.1.
    #[error("it is no name of a header")]
    Name,
    /// It frames the message, names its server or its caller, or says how the message is read.
    #[error("it is the agent's to write, or says what the agent decides by")]
    Agents,
    /// RFC 9110 section 5.5, without what is obsolete there.
    #[error("its value is empty, or has other characters than visible ASCII and spaces within")]
    Value,
}

impl OwnHeader {
    /// Of its two parts.
    ///
    /// # Errors
    /// [`OwnHeaderError`]
    pub fn new(name: &str, value: &str) -> Result<Self, OwnHeaderError> {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(OwnHeaderError::Name);
        }
        if !may_be_own(name) {
            return Err(OwnHeaderError::Agents);
        }
        if value.is_empty() || value.trim_ascii() != value || !is_visible(value.as_bytes()) {
            return Err(OwnHeaderError::Value);
        }
        Ok(Self { name: name.into(), value: Secret::new(value.as_bytes()) })
    }

    /// Its name, as it is written.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a name is the same, also to a server that takes underscores for hyphens.
    #[must_use]
    pub fn is(&self, name: &[u8]) -> bool {
        let normal = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        name.len() == self.name.len()
            && name.iter().zip(self.name.bytes()).all(|(&one, own)| normal(one) == normal(own))
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for part in [self.name.as_bytes(), b": ", self.value.reveal(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

fn may_be_own(name: &str) -> bool {
    let of_mcp = name.get(..4).is_some_and(|front| front.eq_ignore_ascii_case("mcp-"));
    match Name::of(name.as_bytes()) {
        Name::Authorization | Name::DaprApiToken | Name::DaprAppId | Name::Other => !of_mcp,
        Name::Connection
        | Name::ContentEncoding
        | Name::ContentLength
        | Name::ContentType
        | Name::Expect
        | Name::Host
        | Name::LastEventId
        | Name::McpMethod
        | Name::McpName
        | Name::McpParam
        | Name::McpProtocolVersion
        | Name::McpSessionId
        | Name::Traceparent
        | Name::TransferEncoding
        | Name::HopByHop
        | Name::NotForwarded
        | Name::Twin => false,
    }
}
