//! The names of headers that matter to the agent, told apart once for each header.

use arrayvec::ArrayVec;

/// What a header is to the agent, by its name alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Name {
    /// `Authorization`
    Authorization,
    /// `Connection`
    Connection,
    /// `Content-Encoding`
    ContentEncoding,
    /// `Content-Length`
    ContentLength,
    /// `Content-Type`
    ContentType,
    /// `Dapr-Api-Token`: for a sidecar, and no server behind it.
    DaprApiToken,
    /// `Dapr-App-Id`: whom a request is for that is addressed by App ID.
    DaprAppId,
    /// `Expect`
    Expect,
    /// `Host`
    Host,
    /// `Last-Event-ID`: whose stream that event was on must be known before it goes on.
    LastEventId,
    /// `Mcp-Method`
    McpMethod,
    /// `Mcp-Name`
    McpName,
    /// `Mcp-Param-*`: one that repeats an argument.
    McpParam,
    /// `Mcp-Protocol-Version`
    McpProtocolVersion,
    /// `Mcp-Session-Id`
    McpSessionId,
    /// `traceparent`: of W3C Trace Context.
    Traceparent,
    /// `Transfer-Encoding`
    TransferEncoding,
    /// Any that holds for one connection alone (RFC 9110 7.6.1).
    HopByHop,
    /// Any that a request goes on without: how the agent wants the reply, and what a caller may not say about itself.
    NotForwarded,
    /// Any with an underscore that a server which takes that for a hyphen would take for one that counts.
    Twin,
    /// Any other.
    #[default]
    Other,
}

impl Name {
    /// Of a name that has the bytes of a token alone.
    pub(super) fn of(name: &[u8]) -> Self {
        let known = by_hyphens(name);
        if known == Self::Other && memchr::memchr(b'_', name).is_some() {
            by_underscores(name)
        } else {
            known
        }
    }

    /// In lower case, where it is one name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Connection => "connection",
            Self::ContentEncoding => "content-encoding",
            Self::ContentLength => "content-length",
            Self::ContentType => "content-type",
            Self::DaprApiToken => "dapr-api-token",
            Self::DaprAppId => "dapr-app-id",
            Self::Expect => "expect",
            Self::Host => "host",
            Self::LastEventId => "last-event-id",
            Self::McpMethod => "mcp-method",
            Self::McpName => "mcp-name",
            Self::McpProtocolVersion => "mcp-protocol-version",
            Self::McpSessionId => "mcp-session-id",
            Self::Traceparent => "traceparent",
            Self::TransferEncoding => "transfer-encoding",
            Self::McpParam | Self::HopByHop | Self::NotForwarded | Self::Twin | Self::Other => "",
        }
    }

    /// As one bit of a set.
    pub(super) fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Whether it ends here, in both directions: it is of this hop, or the framing, which is written anew.
    pub(super) fn ends_here(self) -> bool {
        const HERE: u32 = 1 << Name::Connection as u8
            | 1 << Name::ContentLength as u8
            | 1 << Name::TransferEncoding as u8
            | 1 << Name::HopByHop as u8;
        self.bit() & HERE != 0
    }
}

/// Names that are told apart by their length first.
fn by_hyphens(name: &[u8]) -> Name {
    use Name::{HopByHop, NotForwarded};
    let known = match name.len() {
        2 => pick(name, [(b"te", HopByHop)]),
        4 => pick(name, [(b"host", Name::Host)]),
        6 => pick(name, [(b"expect", Name::Expect)]),
        7 => pick(name, [(b"trailer", HopByHop), (b"upgrade", HopByHop)]),
        8 => pick(name, [(b"mcp-name", Name::McpName)]),
        9 => pick(name, [(b"forwarded", NotForwarded)]),
        10 => pick(
            name,
            [(b"connection", Name::Connection), (b"keep-alive", HopByHop), (b"mcp-method", Name::McpMethod)],
        ),
        11 => pick(name, [(b"traceparent", Name::Traceparent), (b"dapr-app-id", Name::DaprAppId)]),
        12 => pick(name, [(b"content-type", Name::ContentType)]),
        13 => pick(name, [(b"last-event-id", Name::LastEventId), (b"authorization", Name::Authorization)]),
        14 => pick(
            name,
            [
                (b"content-length", Name::ContentLength),
                (b"mcp-session-id", Name::McpSessionId),
                (b"dapr-api-token", Name::DaprApiToken),
                (b"http2-settings", HopByHop),
            ],
        ),
        15 => pick(name, [(b"accept-encoding", NotForwarded)]),
        16 => pick(name, [(b"content-encoding", Name::ContentEncoding)]),
        17 => pick(name, [(b"transfer-encoding", Name::TransferEncoding)]),
        20 => pick(name, [(b"mcp-protocol-version", Name::McpProtocolVersion)]),
        _ => Name::Other,
    };
    if known != Name::Other {
        return known;
    }
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'p') if begins(name, b"proxy-") => HopByHop,
        Some(b'm') if begins(name, MCP_PARAM) => Name::McpParam,
        Some(b'd') if begins(name, b"dapr-caller-") || begins(name, b"dapr-callee-") => NotForwarded,
        Some(b'x') if begins(name, b"x-toolgate-") || begins(name, b"x-forwarded-") => NotForwarded,
        _ => Name::Other,
    }
}

const MCP_PARAM: &[u8; 10] = b"mcp-param-";
/// No name that is looked for is longer; of a longer one its front alone may matter.
const NAME_MAX: usize = 32;

/// A name with underscores, as a server reads it that takes them for hyphens.
fn by_underscores(name: &[u8]) -> Name {
    let hyphen = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
    let hyphens: ArrayVec<u8, NAME_MAX> = name.iter().take(NAME_MAX).map(hyphen).collect();
    // What follows `Mcp-Param-` is a name of the server's own, and may have underscores.
    let fronts = [(begins(&hyphens, MCP_PARAM), 10), (begins(&hyphens, b"mcp-"), 4)];
    let front = fronts.into_iter().find_map(|(is_it, bytes)| is_it.then_some(bytes)).unwrap_or_default();
    if name.get(..front).is_some_and(|front| front.contains(&b'_')) {
        return Name::Twin;
    }
    let known = by_hyphens(&hyphens);
    let only_passed_on = matches!(known, Name::HopByHop | Name::NotForwarded | Name::Other);
    if only_passed_on { known } else { Name::Twin }
}

fn pick<const N: usize, const M: usize>(name: &[u8], of: [(&[u8; N], Name); M]) -> Name {
    of.into_iter().find(|(lower, _)| is(name, lower)).map_or(Name::Other, |(_, known)| known)
}

/// Equal without regard to case. `lower` has lower-case letters, digits and hyphens: of the bytes of a token no others
/// become one of these by that bit.
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    name.len() == N && begins(name, lower)
}

fn begins<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let different = |all, (name, lower): (&u8, &u8)| all | ((name | 0x20) ^ lower);
    name.first_chunk::<N>().is_some_and(|front| front.iter().zip(lower).fold(0, different) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [Name; 15] = [
        Name::Authorization,
        Name::Connection,
        Name::ContentEncoding,
        Name::ContentLength,
        Name::ContentType,
        Name::DaprApiToken,
        Name::DaprAppId,
        Name::Expect,
        Name::Host,
        Name::LastEventId,
        Name::McpMethod,
        Name::McpName,
        Name::McpProtocolVersion,
        Name::McpSessionId,
        Name::TransferEncoding,
    ];
    const HOP_BY_HOP: [&str; 7] =
        ["keep-alive", "te", "trailer", "upgrade", "http2-settings", "proxy-connection", "proxy-"];
    const NOT_FORWARDED: [&str; 7] = [
        "accept-encoding",
        "forwarded",
        "dapr-caller-app-id",
        "dapr-callee-app-id",
        "x-toolgate-",
        "x-forwarded-for",
        "x-forwarded-a-name-that-is-longer-than-any-that-is-looked-for",
    ];
    const OTHERS: [&str; 8] =
        ["a", "accept", "proxy", "x-forwarde", "mcp", "x-host", "content-lengths", "authorizations"];

    /// The name in each spelling that is the same, and none that is another.
    #[track_caller]
    fn check(lower: &str, expected: Name) {
        for spelled in [lower.to_owned(), lower.to_uppercase()] {
            assert_eq!(Name::of(spelled.as_bytes()), expected, "{spelled}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        for name in NAMES {
            check(name.as_str(), name);
            assert_eq!(Name::of(format!("{}s", name.as_str()).as_bytes()), Name::Other);
        }
        HOP_BY_HOP.iter().for_each(|name| check(name, Name::HopByHop));
        NOT_FORWARDED.iter().for_each(|name| check(name, Name::NotForwarded));
        OTHERS.iter().for_each(|name| check(name, Name::Other));
    }

    #[test]
    fn underscores_are_hyphens_to_some() {
        let twins = NAMES.iter().map(|name| name.as_str()).filter(|name| name.contains('-'));
        twins.chain(["mcp-x"]).for_each(|name| check(&name.replace('-', "_"), Name::Twin));
        for name in ["last_event-id", "mcp_session-id", "mcp-session_id", "mcp_param-x", "mcp-param_x"] {
            check(name, Name::Twin);
        }
        let hyphenated = |name: &&&str| name.contains('-');
        for name in HOP_BY_HOP.iter().filter(hyphenated) {
            check(&name.replace('-', "_"), Name::HopByHop);
        }
        for name in NOT_FORWARDED.iter().filter(hyphenated) {
            check(&name.replace('-', "_"), Name::NotForwarded);
        }
        for name in ["x_y", "_", "x_mcp_name", "ho_st", "content_lengths"] {
            check(name, Name::Other);
        }
        for name in ["mcp-param-", "mcp-param-a", "mcp-param-a_b", "mcp-param-ab-c"] {
            check(name, Name::McpParam);
        }
    }

    /// By every byte of a token in every place of a name: the comparison knows letters by one bit.
    #[test]
    fn no_other_byte_passes_for_a_letter() {
        let tokens = || (0..128_u8).filter(|&byte| super::super::headers::is_token(byte));
        for name in NAMES {
            for at in 0..name.as_str().len() {
                let written = name.as_str().as_bytes();
                let same = |byte: &u8| byte.eq_ignore_ascii_case(&written[at]);
                for byte in tokens().filter(|byte| !same(byte)) {
                    let mut other = written.to_vec();
                    other[at] = byte;
                    assert_ne!(Name::of(&other), name, "{}", other.escape_ascii());
                }
            }
        }
    }
}
