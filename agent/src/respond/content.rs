//! What a reply's body is, by its head: how it is to be read, or that there should be none such.

use toolgate_core::http1::{Framing, Name, ResponseHead};
use toolgate_core::mcp::{NotOwed, Owed, names_other_charset, says_json};

use super::{Fault, McpExchange, unreadable};

/// How a body is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A stream: each event is read.
    Events,
    /// Read when it is whole.
    Whole,
    /// Nothing that a client would take for an answer: it goes on as it comes.
    Unread,
}

pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// What the body is that this head belongs to. Clients differ in what they go by: what some of them read is read here.
pub(super) fn of(head: &ResponseHead<'_>, mcp: Option<&McpExchange<'_>>) -> Result<Content, Fault> {
    let Some(mcp) = mcp else { return Ok(Content::Unread) };
    let status = head.status;
    if (300..400).contains(&status) {
        return Err(Fault::Redirect { status });
    }
    let is_plain = head.headers.only_bytes(Name::ContentType)? == Some(b"application/json"); // as nearly always
    let content_type = if is_plain { None } else { head.headers.only(Name::ContentType)? };
    let content_type = content_type.unwrap_or_default();
    let events = !is_plain && is_event_stream(content_type)?;
    let succeeds = is_success(status);
    match mcp.owed {
        Owed::Stream | Owed::Resumed { .. } if succeeds && !events => return Err(Fault::NoStream { status }),
        // Whoever sends to an endpoint does not read what the reply holds, and may wait for its end.
        Owed::Elsewhere if events => return Err(NotOwed::Misplaced.into()),
        Owed::Answer { .. } if succeeds && head.framing == Framing::None => {
            return Err(Fault::NoAnswer { status });
        }
        Owed::Answer { .. } | Owed::Nothing | Owed::Elsewhere | Owed::Stream | Owed::Resumed { .. } => {}
    }
    // Some clients read what failed as well, where it says that it is JSON.
    let is_read = is_plain || events || succeeds || content_type.is_empty() || says_json(content_type);
    if head.framing == Framing::None || !is_read {
        return Ok(Content::Unread);
    }
    if head.headers.count(Name::ContentEncoding) > 0 {
        // It was asked for none: Accept-Encoding is removed on the way in.
        return Err(unreadable("reply", "it is compressed though that was not asked for"));
    }
    if !is_plain && names_other_charset(content_type) {
        return Err(unreadable("reply", "it says that it is not in UTF-8"));
    }
    Ok(if events { Content::Events } else { Content::Whole })
}

/// Some clients look for the name anywhere: a type that only mentions it would be read in two ways.
fn is_event_stream(content_type: &str) -> Result<bool, Fault> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("text/event-stream") {
        return Ok(true);
    }
    let mentions = |name: &str| {
        content_type.as_bytes().windows(name.len()).any(|part| part.eq_ignore_ascii_case(name.as_bytes()))
    };
    if mentions("event-stream") {
        return Err(unreadable("reply", "its type is not clear: some readers take it for an event stream"));
    }
    Ok(false)
}
