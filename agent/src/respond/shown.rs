//! What a caller is shown of a reply: lists without what policy or pins keep from it, and the instructions that are
//! approved.

use toolgate_core::mcp::json::{Malformed, Value};
use toolgate_core::mcp::{ListKind, list};
use toolgate_core::pin::{self, Definition, Kind, Pin, Seen, Verdict};

use super::{Fault, McpExchange, Next, unreadable};
use crate::limits::Limits;
use crate::pins::{self, Findings, Pins};

/// What a reply shows that must be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    List(ListKind),
    Tasks,
    Instructions,
}

/// The pins that a reply is held to.
#[derive(Clone, Copy)]
pub struct PinExchange<'a> {
    /// All of the node's.
    pub pins: &'a Pins,
    /// What is to be told of the reply.
    pub findings: &'a Findings,
}

impl McpExchange<'_> {
    /// What of the reply must be read.
    pub(super) fn shown(&self) -> Option<Shown> {
        let instructions =
            || (self.expected.instructions && self.pins.is_some()).then_some(Shown::Instructions);
        let tasks = || self.expected.tasks.then_some(Shown::Tasks);
        self.expected.list.map(Shown::List).or_else(tasks).or_else(instructions)
    }
}

/// Appends a reply to `out` as the caller may see it. Or tells where its list goes on, if this page is not to be shown.
pub(super) async fn show(
    reply: Value<'_>,
    what: Shown,
    mcp: &McpExchange<'_>,
    limits: &Limits,
    out: &mut Vec<u8>,
) -> Result<Option<Next>, Fault> {
    let shown = match what {
        Shown::List(kind) => show_list(reply, kind, mcp, out).await,
        Shown::Tasks => mcp.show_tasks(reply, out).map(|()| None),
        Shown::Instructions => show_instructions(reply, mcp, out).await.map(|()| None),
    };
    let what = match what {
        Shown::List(_) | Shown::Tasks => "list",
        Shown::Instructions => "instructions",
    };
    let cursor = shown.map_err(|error| unreadable(what, &error.to_string()))?;
    let (Some(pages), Some(cursor)) = (mcp.pages, cursor) else { return Ok(None) };
    pages.next(cursor, reply.text().len(), limits)
}

/// Gives the cursor of a page that goes on and has nothing for the caller.
async fn show_list<'b>(
    reply: Value<'b>,
    kind: ListKind,
    mcp: &McpExchange<'_>,
    out: &mut Vec<u8>,
) -> Result<Option<Value<'b>>, Malformed> {
    let pinned = match (mcp.pins, Kind::of_list(kind)) {
        (Some(pinned), Some(of)) => Some((pinned.findings, approved(reply, kind, of, pinned, mcp).await?)),
        (Some(_) | None, _) => None,
    };
    let permitted = |name: &str| {
        let caller = (mcp.caller, mcp.ends);
        mcp.observe || mcp.resources.policies.lists(caller, &mcp.server.identity, kind, name)
    };
    let holds_back = mcp.server.pinning.mode.holds_back();
    let keep = |place: usize, name: &str| {
        permitted(name)
            && pinned.as_ref().is_none_or(|(findings, approved)| {
                approved.binary_search(&place).is_ok() || findings.keep_back(holds_back)
            })
    };
    let filtered = list::filter(reply, kind, keep, out)?;
    if filtered.kept == 0 { list::next_cursor(reply) } else { Ok(None) }
}

async fn show_instructions(
    reply: Value<'_>,
    mcp: &McpExchange<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if let (Some(pinned), Some(instructions)) = (mcp.pins, pin::instructions(reply)?) {
        let seen = read(instructions, Kind::Instructions, "", pinned.pins, mcp);
        let approved = judged(vec![(0, seen)], pinned, mcp).await;
        if approved.is_empty() && !pinned.findings.keep_back(mcp.server.pinning.mode.holds_back()) {
            pin::without_instructions(reply, instructions, out);
            return Ok(());
        }
    }
    out.extend_from_slice(reply.text().as_bytes());
    Ok(())
}

/// The places in a list whose definitions are approved, in order.
async fn approved(
    reply: Value<'_>,
    list: ListKind,
    kind: Kind,
    pinned: PinExchange<'_>,
    mcp: &McpExchange<'_>,
) -> Result<Vec<usize>, Malformed> {
    let mut all = Vec::new();
    {
        let now = pinned.pins.now();
        let server = &mcp.server.identity;
        let mut room = now.room(server, pinned.pins.limits());
        for (place, name, element) in list::elements(reply, list)? {
            let Some(name) = name else { continue };
            // Of what is known it must be noticed that it changes; of the rest no more is read than can be kept.
            if now.pin(server, kind, &name).is_none() {
                match room.checked_sub(1) {
                    Some(left) => room = left,
                    None => {
                        pinned.findings.limited(pin::Limited::PerServer);
                        continue;
                    }
                }
            }
            all.push((place, read(element, kind, &name, pinned.pins, mcp)));
        }
    }
    Ok(judged(all, pinned, mcp).await)
}

/// A definition as it is given; with its text only where that may be kept.
fn read(value: Value<'_>, kind: Kind, name: &str, pins: &Pins, mcp: &McpExchange<'_>) -> Seen {
    let mut seen = Seen::of(kind, name, Definition::read(value));
    let now = pins.now();
    let known = now.pin(&mcp.server.identity, kind, name).map(Pin::known).unwrap_or_default();
    let is_kept = known.iter().any(|known| known.digest == seen.digest);
    let too_large = |text: &String| text.len() > pins.limits().bytes_max;
    if is_kept || seen.text.as_ref().is_some_and(too_large) {
        seen.text = None;
    }
    seen
}

/// Tells the pins what is new to them or to this caller, and gives the places of what is approved.
async fn judged(
    mut all: Vec<(usize, Seen)>,
    PinExchange { pins, findings }: PinExchange<'_>,
    mcp: &McpExchange<'_>,
) -> Vec<usize> {
    let (server, pinning) = (&mcp.server.identity, mcp.server.pinning);
    let untold: Vec<Seen> = {
        let now = pins.now();
        let unknown = all.iter_mut().filter(|(_, seen)| !now.knows(server, mcp.caller, seen));
        unknown.map(|(_, seen)| Seen { text: seen.text.take(), ..seen.clone() }).collect()
    };
    if !untold.is_empty() {
        let (news, limited) = pins.observe(server, mcp.caller, untold, pinning).await;
        findings.news.borrow_mut().extend(news);
        limited.into_iter().for_each(|reached| findings.limited(reached));
    }
    let now = pins.now();
    let is_approved = |seen: &Seen| now.shown(server, seen, pinning.hidden) == Verdict::Approved;
    all.into_iter().filter(|(_, seen)| is_approved(seen)).map(|(place, _)| place).collect()
}

impl Findings {
    fn limited(&self, reached: pin::Limited) {
        let limit = pins::limit(reached);
        let mut limited = self.limited.borrow_mut();
        if !limited.contains(&limit) {
            limited.push(limit);
        }
    }

    /// Counts one that is not approved. Whether it is shown all the same.
    fn keep_back(&self, holds_back: bool) -> bool {
        let counted = if holds_back { &self.left_out } else { &self.passed };
        counted.set(counted.get() + 1);
        !holds_back
    }
}
