//! What the audit says of one message.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use smallvec::SmallVec;
use toolgate_core::decision::ShadowVerdict;
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Call, Method};

use crate::identify::Origin;
use crate::shares::Held;

/// Whether the message went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not known yet; written as a denial, since nothing was forwarded.
    Undecided,
    /// It was forwarded.
    Permit,
    /// It was not.
    Deny,
    /// It was forwarded though policy would deny it.
    Observe,
}

impl Verdict {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Deny | Self::Undecided => "deny",
            Self::Observe => "observe",
        }
    }
}

/// The most bytes of a name or a detail that is kept.
const NAME_BYTES_MAX: usize = 256;

/// Who sent the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The caller, to a server.
    Outbound,
    /// A server, to its caller.
    FromServer,
}

impl Direction {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::FromServer => "from_server",
        }
    }
}

/// Which line of an entry it is: streams have two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The only one.
    Whole,
    /// A stream began.
    Opened,
    /// The same stream ended.
    Closed,
}

/// The place of an entry in its caller's share; a copy of the line has none.
#[derive(Debug)]
struct Place(#[expect(dead_code, reason = "held until the line is written")] Option<Held>);

impl Clone for Place {
    fn clone(&self) -> Self {
        Self(None)
    }
}

/// One line of the audit, before it is text.
#[derive(Debug, Clone)]
pub struct Line {
    id: u64,
    time: SystemTime,
    origin: Arc<Origin>,
    generation: u64,
    pub(super) phase: Phase,
    pub(super) direction: Direction,
    pub(super) caller: Option<Identity>,
    pub(super) target: Option<Identity>,
    pub(super) method: &'static str,
    pub(super) method_name: Option<Box<str>>,
    pub(super) tool: Option<Box<str>>,
    pub(super) digest: Option<[u8; 32]>,
    pub(super) verdict: Verdict,
    /// Why not, or what went wrong after it was permitted.
    pub(super) reason: Option<Reason>,
    pub(super) rules: SmallVec<[Arc<str>; 2]>,
    /// What the shadow policies would have said.
    pub(super) shadow: Option<ShadowVerdict>,
    pub(super) detail: Option<String>,
    pub(super) status: u16,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) duration: Duration,
    _place: Place,
}

impl Line {
    pub(super) fn new(id: u64, origin: Arc<Origin>, generation: u64, place: Held) -> Self {
        Self {
            id,
            time: SystemTime::now(),
            origin,
            generation,
            phase: Phase::Whole,
            direction: Direction::Outbound,
            caller: None,
            target: None,
            method: "unread",
            method_name: None,
            tool: None,
            digest: None,
            verdict: Verdict::Undecided,
            reason: None,
            rules: SmallVec::new(),
            shadow: None,
            detail: None,
            status: 0,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
            _place: Place(Some(place)),
        }
    }

    pub(super) fn call(&mut self, call: &Call<'_>, digest: Option<[u8; 32]>) {
        self.method = call.method.as_str();
        if call.method == Method::Other {
            self.method_name = Some(bounded(&call.method_name));
        }
        if call.method == Method::ToolsCall {
            self.tool = call.name.as_deref().map(bounded);
        }
        self.digest = digest;
    }

    /// The label of the tool; empty where the message names none.
    pub(super) fn tool_label(&self) -> &str {
        match self.tool.as_deref() {
            // Cut short, it is no tool's name any more.
            Some(tool) if tool.len() > NAME_BYTES_MAX => "other",
            Some(tool) => tool,
            None => "",
        }
    }

    pub(super) fn request_id(&self) -> String {
        format!("{:x}", self.id)
    }

    /// The label of the caller: its App ID, or that it has none.
    pub(super) fn caller_label(&self) -> String {
        self.caller.as_ref().map_or_else(|| "unidentified".to_owned(), ToString::to_string)
    }

    /// The label of the target: its App ID, or `undeclared`.
    pub(super) fn target_label(&self) -> String {
        self.target.as_ref().map_or_else(|| "undeclared".to_owned(), ToString::to_string)
    }

    /// The label of the reason.
    pub(super) fn reason_label(&self) -> &'static str {
        self.reason.map_or("permitted", Reason::as_str)
    }

    /// As JSON, with its newline.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let process = &self.origin.captured.process;
        let text = AuditLine {
            time: humantime::format_rfc3339_micros(self.time).to_string(),
            request_id: self.request_id(),
            phase: match self.phase {
                Phase::Whole => None,
                Phase::Opened => Some("opened"),
                Phase::Closed => Some("closed"),
            },
            direction: self.direction.as_str(),
            caller: AuditCaller {
                app_id: self.caller.as_ref().map(ToString::to_string),
                spiffe_id: self.caller.as_ref().map(Identity::spiffe_id),
                pid: process.tgid,
                exe: self.origin.exe.as_deref(),
                uid: process.uid,
                cgroup: self.origin.process.as_ref().map(|process| process.cgroup.as_str()),
            },
            target: self.target_label(),
            address: self.origin.captured.original.to_string(),
            method: self.method_name.as_deref().unwrap_or(self.method),
            tool: self.tool.as_deref(),
            arguments_digest: self.digest.map(hex),
            decision: self.verdict.as_str(),
            reason: self.reason_label(),
            rules: &self.rules,
            shadow: self.shadow.as_ref().map(|shadow| AuditShadow {
                decision: if shadow.reason.is_none() { "permit" } else { "deny" },
                reason: shadow.reason.map(Reason::as_str),
                rules: &shadow.rules,
            }),
            detail: self.detail.as_deref().map(bounded),
            generation: self.generation,
            status: self.status,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            duration_us: u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX),
        };
        // Strings and numbers always serialise, and a Vec takes all.
        let _ = serde_json::to_writer(&mut *out, &text);
        out.push(b'\n');
    }
}

#[derive(Serialize)]
struct AuditLine<'a> {
    time: String,
    request_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    phase: Option<&'static str>,
    direction: &'static str,
    caller: AuditCaller<'a>,
    target: String,
    address: String,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments_digest: Option<String>,
    decision: &'static str,
    reason: &'static str,
    rules: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<AuditShadow<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<Box<str>>,
    generation: u64,
    status: u16,
    request_bytes: u64,
    response_bytes: u64,
    duration_us: u64,
}

#[derive(Serialize)]
struct AuditShadow<'a> {
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    rules: &'a [Arc<str>],
}

#[derive(Serialize)]
struct AuditCaller<'a> {
    app_id: Option<String>,
    spiffe_id: Option<String>,
    pid: u32,
    exe: Option<&'a str>,
    uid: u32,
    cgroup: Option<&'a str>,
}

/// A name as it is kept: what a message says may be as long as a body.
pub(super) fn bounded(name: &str) -> Box<str> {
    if name.len() <= NAME_BYTES_MAX {
        return name.into();
    }
    format!("{}…", &name[..name.floor_char_boundary(NAME_BYTES_MAX)]).into()
}

fn hex(digest: [u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    digest.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_lower_case_hex() {
        let mut digest = [0; 32];
        digest[..3].copy_from_slice(&[0x0f, 0xa0, 0xff]);
        assert_eq!(hex(digest), format!("0fa0ff{}", "0".repeat(58)));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(&*bounded("search"), "search");
        let cut = bounded(&"\u{e9}".repeat(200));
        assert_eq!(&*cut, format!("{}…", "\u{e9}".repeat(128)));
        let odd = bounded(&format!("a{}", "\u{e9}".repeat(200)));
        assert_eq!(&*odd, format!("a{}…", "\u{e9}".repeat(127)));
    }
}
