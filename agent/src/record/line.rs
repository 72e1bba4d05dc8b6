//! What the audit says of one message.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;
use toolgate_core::decision::ShadowVerdict;
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{Call, Method};
use toolgate_core::trace::TraceId;

use super::json::{Clock, Json};
use super::name::Name;
use crate::identify::{Origin, Remote, Source};
use crate::shares::{Exceeded, Use};

/// Whether the message went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// Who sent the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// A caller on this node, to a server.
    Outbound,
    /// A caller on another node, by its agent, to a server here.
    Inbound,
    /// A server, to its caller.
    FromServer,
}

impl Direction {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
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

/// What of a message is counted, apart from its time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    pub(super) direction: Direction,
    pub(super) caller: Option<Identity>,
    pub(super) target: Option<Identity>,
    pub(super) method: &'static str,
    pub(super) tool: Option<Name>,
    pub(super) verdict: Verdict,
    /// Why not, or what went wrong after it was permitted.
    pub(super) reason: Option<Reason>,
}

impl Labels {
    /// The label of the caller: its App ID, or that it has none.
    pub(super) fn caller(&self) -> String {
        self.caller.as_ref().map_or_else(|| "unidentified".to_owned(), ToString::to_string)
    }

    /// The label of the target: its App ID, or `undeclared`.
    pub(super) fn target(&self) -> String {
        self.target.as_ref().map_or_else(|| "undeclared".to_owned(), ToString::to_string)
    }

    /// The label of the tool; empty where the message names none.
    pub(super) fn tool(&self) -> &str {
        match &self.tool {
            // Cut short, it is no tool's name any more.
            Some(tool) if tool.is_cut() => "other",
            Some(tool) => tool.as_str(),
            None => "",
        }
    }

    /// The label of the reason.
    pub(super) fn reason(&self) -> &'static str {
        self.reason.map_or("permitted", Reason::as_str)
    }
}

/// Whose message it is, and its place in the share of that; a copy of the line has none.
#[derive(Debug)]
pub(super) struct Place {
    origin: Arc<Origin>,
    is_held: bool,
}

impl Place {
    /// One more.
    ///
    /// # Errors
    /// [`Exceeded`]: there is none left.
    pub(super) fn take(origin: &Arc<Origin>) -> Result<Self, Exceeded> {
        origin.share.count(Use::Entry)?;
        Ok(Self { origin: Arc::clone(origin), is_held: true })
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.origin.share.uncount(Use::Entry);
        }
    }
}

impl Clone for Place {
    fn clone(&self) -> Self {
        Self { origin: Arc::clone(&self.origin), is_held: false }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// One line of the audit, before it is text.
#[derive(Debug, Clone)]
pub struct Line {
    id: u64,
    trace: TraceId,
    time: SystemTime,
    generation: u64,
    pub(super) phase: Phase,
    pub(super) labels: Labels,
    pub(super) method_name: Option<Name>,
    pub(super) digest: Option<[u8; 32]>,
    pub(super) rules: SmallVec<[Arc<str>; 2]>,
    /// What the shadow policies would have said.
    pub(super) shadow: Option<ShadowVerdict>,
    pub(super) detail: Option<String>,
    /// By which name the TLS around it was read.
    pub(super) inspected: Option<Arc<str>>,
    pub(super) status: u16,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) duration: Duration,
    place: Place,
}

impl Line {
    pub(super) fn new((id, trace): (u64, TraceId), place: Place, generation: u64) -> Self {
        let direction = match place.origin.source {
            Source::Process(_) => Direction::Outbound,
            Source::Peer(_) => Direction::Inbound,
        };
        Self {
            id,
            trace,
            time: SystemTime::now(),
            generation,
            phase: Phase::Whole,
            labels: Labels {
                direction,
                caller: None,
                target: None,
                method: "unread",
                tool: None,
                verdict: Verdict::Undecided,
                reason: None,
            },
            method_name: None,
            digest: None,
            rules: SmallVec::new(),
            shadow: None,
            detail: None,
            inspected: None,
            status: 0,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
            place,
        }
    }

    pub(super) fn call(&mut self, call: &Call<'_>, digest: Option<[u8; 32]>) {
        self.labels.method = call.method.as_str();
        if call.method == Method::Other {
            self.method_name = Some(Name::new(&call.method_name));
        }
        if call.method == Method::ToolsCall {
            self.labels.tool = call.name.as_deref().map(Name::new);
        }
        self.digest = digest;
    }

    /// It is written: another entry of its caller's may have its place, and what its connection alone had is kept no longer.
    pub(super) fn leave_place(&mut self) {
        self.labels.caller = None;
        self.place.leave();
    }

    /// It is a part of a trace that others know.
    pub(super) fn traced(&mut self, trace: TraceId) {
        self.trace = trace;
    }

    pub(super) fn trace(&self) -> (TraceId, u64) {
        (self.trace, self.id)
    }

    pub(super) fn request_id(&self) -> String {
        format!("{:x}", self.id)
    }

    /// As JSON, with its newline; `shown` is of its labels.
    pub(super) fn write(&self, shown: &Shown, clock: &mut Clock, out: &mut Vec<u8>) {
        let [who, where_to] = self.place.origin.shown.get_or_init(|| of_origin(&self.place.origin));
        let mut json = Json(out);
        json.raw(r#"{"time":""#);
        clock.show(self.time, &mut json);
        json.raw(r#"","request_id":""#).hex_number(self.id);
        json.raw(r#"","trace_id":""#).hex(&self.trace.bytes()).raw("\"");
        match self.phase {
            Phase::Whole => {}
            Phase::Opened => {
                json.raw(r#","phase":"opened""#);
            }
            Phase::Closed => {
                json.raw(r#","phase":"closed""#);
            }
        }
        json.raw(&shown.caller).raw(who).raw(&shown.target).raw(where_to);
        if let Some(name) = &self.inspected {
            json.raw(r#","inspected":"#).string(name);
        }
        match &self.method_name {
            None => json.raw(&shown.method),
            Some(name) => json.raw(METHOD).string(name.as_str()),
        };
        json.raw(&shown.tool);
        if let Some(digest) = &self.digest {
            json.raw(r#","arguments_digest":""#).hex(digest).raw("\"");
        }
        json.raw(&shown.outcome);
        self.why(&mut json);
        json.raw(r#","generation":"#).number(self.generation);
        json.raw(r#","status":"#).number(self.status.into());
        json.raw(r#","request_bytes":"#).number(self.request_bytes);
        json.raw(r#","response_bytes":"#).number(self.response_bytes);
        let micros = u64::try_from(self.duration.as_micros()).unwrap_or(u64::MAX);
        json.raw(r#","duration_us":"#).number(micros).raw("}\n");
    }

    fn why(&self, json: &mut Json<'_>) {
        json.raw(r#","rules":"#).strings(&self.rules);
        if let Some(shadow) = &self.shadow {
            let decision = if shadow.reason.is_none() { "permit" } else { "deny" };
            json.raw(r#","shadow":{"decision":"#).string(decision);
            if let Some(reason) = shadow.reason {
                json.raw(r#","reason":"#).string(reason.as_str());
            }
            json.raw(r#","rules":"#).strings(&shadow.rules).raw("}");
        }
        if let Some(detail) = &self.detail {
            json.raw(r#","detail":"#).string(Name::new(detail).as_str());
        }
    }
}

const METHOD: &str = r#","method":"#;

/// What labels are in a line, in its order. Few labels differ, so it is made once for each of them and copied from then on.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    caller: Box<str>,
    target: Box<str>,
    method: Box<str>,
    tool: Box<str>,
    outcome: Box<str>,
}

impl Shown {
    pub(super) fn of(labels: &Labels) -> Self {
        let caller = text(|json| {
            json.raw(r#","direction":"#).string(labels.direction.as_str()).raw(r#","caller":{"app_id":"#);
            match &labels.caller {
                Some(caller) => {
                    json.name(caller).raw(r#","spiffe_id":"spiffe://"#).escaped(caller.trust_domain());
                    json.raw("/ns/").raw(caller.namespace()).raw("/").raw(caller.app_id()).raw("\"");
                }
                None => {
                    json.raw(r#"null,"spiffe_id":null"#);
                }
            }
        });
        let target = text(|json| {
            json.raw(r#","target":"#);
            match &labels.target {
                Some(target) => json.name(target),
                None => json.raw(r#""undeclared""#),
            };
        });
        let method = text(|json| {
            json.raw(METHOD).string(labels.method);
        });
        let tool = text(|json| {
            if let Some(tool) = &labels.tool {
                json.raw(r#","tool":"#).string(tool.as_str());
            }
        });
        let outcome = text(|json| {
            json.raw(r#","decision":"#).string(labels.verdict.as_str());
            json.raw(r#","reason":"#).string(labels.reason());
        });
        Self { caller, target, method, tool, outcome }
    }
}

/// Who connected, and where to: the same for all messages of a connection.
fn of_origin(origin: &Origin) -> [Box<str>; 2] {
    let origin = match &origin.source {
        Source::Process(connecting) => connecting,
        Source::Peer(remote) => return of_remote(remote),
    };
    let recorded = &origin.captured.process;
    let cgroup = origin.process.as_ref().map(|process| process.cgroup.as_str());
    let who = text(|json| {
        json.raw(r#","pid":"#).number(recorded.tgid.into());
        json.raw(r#","exe":"#).string_or_null(origin.exe.as_deref());
        json.raw(r#","uid":"#).number(recorded.uid.into());
        json.raw(r#","cgroup":"#).string_or_null(cgroup).raw("}");
    });
    let where_to = text(|json| {
        json.raw(r#","address":"#).string(&origin.captured.original.to_string());
    });
    [who, where_to]
}

/// The same of a caller of another node.
fn of_remote(remote: &Remote) -> [Box<str>; 2] {
    let who = text(|json| {
        json.raw(r#","svid":"#).string(&remote.serial).raw("}");
    });
    let where_to = text(|json| {
        json.raw(r#","peer":"#).string(&remote.address.to_string());
    });
    [who, where_to]
}

fn text(write: impl FnOnce(&mut Json<'_>)) -> Box<str> {
    let mut text = Vec::new();
    write(&mut Json(&mut text));
    String::from_utf8(text).unwrap_or_default().into() // it is made of strings
}
