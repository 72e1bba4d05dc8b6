//! `MCP-Protocol-Version`, `Mcp-Method` and `Mcp-Name`: headers that repeat what the body says (MCP 2026-07-28, Streamable HTTP, "Standard
//! Request Headers"). Decisions are made on the body alone; a server behind must not find another call in the headers.

use super::message::{Call, Message};
use super::method::{Class, Method};

/// The JSON-RPC code of such a refusal; its HTTP status is 400.
pub const HEADER_MISMATCH_CODE: i32 = -32020;

/// From this revision on there are no sessions, and what a message says is repeated in headers.
const STATELESS_SINCE: &[u8] = b"2026-07-28";

/// Whether a revision has no sessions.
#[must_use]
pub fn is_stateless(version: &[u8]) -> bool {
    version >= STATELESS_SINCE
}

/// A header that says something else than the body, or is not there where the revision asks for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the header `{header}` does not say what the message says; send the same in both")]
pub struct HeaderMismatch {
    /// The header.
    pub header: &'static str,
}

/// The headers that repeat what a message says, where they are given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mirrored<'h> {
    /// `MCP-Protocol-Version`.
    pub version: Option<&'h [u8]>,
    /// `Mcp-Method`.
    pub method: Option<&'h str>,
    /// `Mcp-Name`.
    pub name: Option<&'h str>,
    /// Only Streamable HTTP asks for them; elsewhere they may be left out.
    pub may_miss: bool,
}

/// Compares the headers, where they are given or the revision asks for them, with the message.
///
/// # Errors
/// [`HeaderMismatch`].
pub fn mirrors(message: &Message<'_>, headers: Mirrored<'_>) -> Result<(), HeaderMismatch> {
    let Mirrored { version: version_header, method: method_header, name: name_header, may_miss } = headers;
    let call = match message {
        Message::Request(call) | Message::Notification(call) => Some(call),
        Message::Response(_) => None,
    };
    let says = |value: &str, expected: Option<&str>| expected.is_some_and(|expected| spells(value, expected));
    if method_header.is_some_and(|value| !says(value, call.map(|call| &*call.method_name))) {
        return Err(HeaderMismatch { header: "Mcp-Method" });
    }
    if name_header.is_some_and(|value| !call.is_some_and(|call| names(value, call))) {
        return Err(HeaderMismatch { header: "Mcp-Name" });
    }
    let version = call.and_then(|call| call.version.as_deref()).map(str::as_bytes);
    let is_missing = |version: &[u8]| is_stateless(version) && !may_miss;
    if version.is_some_and(|version| version_header.map_or(is_missing(version), |header| header != version)) {
        return Err(HeaderMismatch { header: "MCP-Protocol-Version" });
    }
    match message {
        Message::Request(call) if version_header.is_some_and(is_stateless) && !may_miss => {
            let needs_name = matches!(call.method.class(), Class::Tool | Class::Prompt)
                || call.method == Method::ResourcesRead;
            match (method_header, name_header) {
                (None, _) => Err(HeaderMismatch { header: "Mcp-Method" }),
                (Some(_), None) if needs_name => Err(HeaderMismatch { header: "Mcp-Name" }),
                (Some(_), _) => Ok(()),
            }
        }
        Message::Request(_) | Message::Notification(_) | Message::Response(_) => Ok(()),
    }
}

/// Whether the value is the name of what the call is about: the tool's, the prompt's, the resource's URI or the task's
/// id. Of a method that is none of these, any of them: what it means there is the server's to say.
fn names(value: &str, call: &Call<'_>) -> bool {
    let name = || call.name.as_deref().is_some_and(|name| spells(value, name));
    let uri = || call.uri.as_deref().is_some_and(|uri| spells(value, uri));
    let task = || {
        let id = call.params.and_then(|params| params.get("taskId"));
        id.and_then(|id| id.as_str()).is_some_and(|id| spells(value, &id))
    };
    match call.method.class() {
        Class::Tool | Class::Prompt => name(),
        Class::Resource => uri(),
        Class::Task => task(),
        Class::Handshake
        | Class::List(_)
        | Class::Tasks
        | Class::Completion
        | Class::Listen
        | Class::ServerToClient
        | Class::Unknown => name() || uri() || task(),
    }
}

const SENTINEL: &str = "=?base64?";

/// Whether a header's value is this text: as it is, or as `=?base64?<text>?=`, in its one canonical encoding.
pub(super) fn spells(value: &str, text: &str) -> bool {
    let front = value.get(..SENTINEL.len());
    // Without its end it is no encoding.
    if !front.is_some_and(|front| front.eq_ignore_ascii_case(SENTINEL)) || !value.ends_with("?=") {
        return value == text;
    }
    let encoded = value.strip_prefix(SENTINEL).and_then(|rest| rest.strip_suffix("?="));
    encoded.is_some_and(|encoded| encoded.bytes().eq(base64(text.as_bytes())))
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.chunks(3).flat_map(|chunk| {
        let byte = |at: usize| chunk.get(at).map_or(0, |&byte| u32::from(byte));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let characters = chunk.len() + 1;
        (0..4).map(move |at| if at < characters { digit(bits >> (18 - 6 * at) & 63) } else { b'=' })
    })
}

fn digit(six_bits: u32) -> u8 {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    usize::try_from(six_bits).ok().and_then(|at| DIGITS.get(at)).copied().unwrap_or(b'=')
}

#[cfg(test)]
mod tests {
    use super::super::{JsonLimits, Scratch, parse};
    use super::*;

    #[test]
    fn headers_say_what_the_message_says() {
        let tool = r#""id":1,"method":"tools/call","params":{"name":"echo","uri":"u"}"#;
        let accented = r#""id":1,"method":"tools/call","params":{"name":"h\u00e9llo"}"#;
        let unended = r#""id":1,"method":"tools/call","params":{"name":"=?base64?ZWNobw=="}"#;
        let resource = r#""id":1,"method":"resources/read","params":{"uri":"file:///a","name":"n"}"#;
        let task = r#""id":1,"method":"tasks/get","params":{"taskId":"t","name":"n"}"#;
        let list = r#""id":1,"method":"tools/list""#;
        let own = r#""id":1,"method":"x/y","params":{"name":"n"}"#;
        let reply = r#""id":1,"result":{}"#;
        /// Members of a message, `Mcp-Method`, `Mcp-Name`, the header that is refused.
        type Row<'r> = (&'r str, Option<&'r str>, Option<&'r str>, Option<&'r str>);
        let table: &[Row<'_>] = &[
            (tool, None, None, None),
            (tool, Some("tools/call"), Some("echo"), None),
            (tool, Some("tools/list"), Some("echo"), Some("Mcp-Method")),
            (tool, Some("Tools/call"), None, Some("Mcp-Method")),
            (tool, Some(""), None, Some("Mcp-Method")),
            (tool, Some("=?base64?dG9vbHMvY2FsbA==?="), None, None),
            (tool, None, Some("other"), Some("Mcp-Name")),
            (tool, None, Some("u"), Some("Mcp-Name")),
            (tool, None, Some("=?base64?ZWNobw==?="), None),
            (tool, None, Some("=?base64?ZWNobw?="), Some("Mcp-Name")),
            (tool, None, Some("=?base64?ZWNobx==?="), Some("Mcp-Name")),
            (tool, None, Some("=?base64?b3RoZXI=?="), Some("Mcp-Name")),
            (tool, None, Some("=?BASE64?ZWNobw==?="), Some("Mcp-Name")),
            (tool, None, Some("=?base64?ZWNobw=="), Some("Mcp-Name")),
            (unended, None, Some("=?base64?ZWNobw=="), None),
            (unended, None, Some("=?base64?PT9iYXNlNjQ/WldOb2J3PT0=?="), None),
            (tool, None, Some("=?base64?é?="), Some("Mcp-Name")),
            (accented, None, Some("=?base64?aMOpbGxv?="), None),
            (resource, Some("resources/read"), Some("file:///a"), None),
            (resource, None, Some("n"), Some("Mcp-Name")),
            (task, None, Some("t"), None),
            (task, None, Some("n"), Some("Mcp-Name")),
            (list, Some("tools/list"), None, None),
            (list, None, Some("echo"), Some("Mcp-Name")),
            (list, None, Some(""), Some("Mcp-Name")),
            (own, Some("x/y"), Some("n"), None),
            (own, Some("x/y"), Some("m"), Some("Mcp-Name")),
            (reply, Some("tools/call"), None, Some("Mcp-Method")),
            (reply, None, Some("echo"), Some("Mcp-Name")),
        ];
        for &(members, method, name, expected) in table {
            let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
            let mut scratch = Scratch::new();
            let message = parse(text.as_bytes(), &mut scratch, &JsonLimits::default()).unwrap();
            let headers = Mirrored { method, name, ..Mirrored::default() };
            let got = mirrors(&message, headers).err().map(|mismatch| mismatch.header);
            assert_eq!(got, expected, "{text} {method:?} {name:?}");
        }
    }

    #[test]
    fn what_the_revision_asks_for_must_be_there() {
        let said = |version: &str, method: &str, more: &str| {
            let meta = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"#;
            format!(r#""id":1,"method":"{method}","params":{{{more}{meta}"{version}"}}}}"#)
        };
        let tool = said("2026-07-28", "tools/call", r#""name":"echo","#);
        let old = said("2025-11-25", "tools/call", r#""name":"echo","#);
        let list = said("2026-07-28", "tools/list", "");
        let notification = r#""method":"notifications/cancelled""#.to_owned();
        let unsaid = r#""id":1,"method":"tools/list""#.to_owned();
        let (new, before) = (Some("2026-07-28"), Some("2025-11-25"));
        /// Members of a message, `MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name`, the header that is refused.
        type Row<'r> = (&'r String, Option<&'r str>, Option<&'r str>, Option<&'r str>, Option<&'r str>);
        let table: &[Row<'_>] = &[
            (&tool, new, Some("tools/call"), Some("echo"), None),
            (&tool, None, Some("tools/call"), Some("echo"), Some("MCP-Protocol-Version")),
            (&tool, before, Some("tools/call"), Some("echo"), Some("MCP-Protocol-Version")),
            (&tool, new, None, Some("echo"), Some("Mcp-Method")),
            (&tool, new, Some("tools/call"), None, Some("Mcp-Name")),
            (&old, before, None, None, None),
            (&old, None, None, None, None),
            (&old, new, Some("tools/call"), Some("echo"), Some("MCP-Protocol-Version")),
            (&list, new, Some("tools/list"), None, None),
            (&notification, new, None, None, None),
            // What is missing in the body is its server's to say.
            (&unsaid, new, Some("tools/list"), None, None),
            (&unsaid, new, None, None, Some("Mcp-Method")),
            (&unsaid, before, None, None, None),
        ];
        for &(members, version, method, name, expected) in table {
            let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
            let mut scratch = Scratch::new();
            let message = parse(text.as_bytes(), &mut scratch, &JsonLimits::default()).unwrap();
            let headers = Mirrored { version: version.map(str::as_bytes), method, name, may_miss: false };
            let got = mirrors(&message, headers).err().map(|mismatch| mismatch.header);
            assert_eq!(got, expected, "{text} {version:?} {method:?} {name:?}");
            // What is there says the same wherever it is; nothing need be there where nobody asks for it.
            let is_there = match expected {
                Some("Mcp-Method") => method.is_some(),
                Some("Mcp-Name") => name.is_some(),
                Some(_) => version.is_some(),
                None => false,
            };
            let got = mirrors(&message, Mirrored { may_miss: true, ..headers })
                .err()
                .map(|mismatch| mismatch.header);
            assert_eq!(got, expected.filter(|_| is_there), "{text} {version:?} {method:?} {name:?}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 section 10.
        for (text, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("?>~", "Pz5+")]
        {
            assert_eq!(String::from_utf8(base64(text.as_bytes()).collect()).unwrap(), expected);
        }
    }
}
