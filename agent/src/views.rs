//! What callers may see of the lists of servers: who has a stream is told where an operator changes that, by a reload of the
//! resources, or by approving or revoking a definition.
//!
//! Nothing is kept of anybody but by the streams themselves: each knows what its caller could see, and looks again when it
//! is woken. However often that is while a client does not read, it is told once.

use std::cell::Cell;
use std::future::pending;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use toolgate_core::decision::{Mode, Server};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{ListKind, Lists};
use toolgate_core::pin::{HiddenCharacters, Kind};
use toolgate_core::policy::Ends;

use crate::config::Resources;
use crate::pins::Pins;

/// Wakes the streams that look again.
#[derive(Default)]
pub struct Changes(watch::Sender<()>);

impl Changes {
    /// Something that lists are made by is another.
    pub fn tell(&self) {
        self.0.send_replace(());
    }
}

/// What decides what a caller sees.
#[derive(Clone, Copy)]
pub struct Sources<'n> {
    /// Who is told of changes.
    pub changes: &'n Changes,
    /// The resources of now.
    pub resources: &'n ArcSwap<Resources>,
    /// What is approved now.
    pub pins: &'n Pins,
    /// Whether policy is only observed.
    pub mode: Mode,
}

/// What one stream's caller may see of its server.
pub struct View<'n> {
    from: Sources<'n>,
    caller: &'n Identity,
    /// Which ends of the stream are here.
    ends: Ends,
    server: &'n Identity,
    woken: watch::Receiver<()>,
    /// The lists whose changes it is told of.
    told_of: Cell<Lists>,
    by: By,
    /// The last of the operator's changes to pins that it knows.
    approvals: u64,
    /// Counts how often its caller was told.
    times: &'n Cell<usize>,
}

impl<'n> View<'n> {
    /// As it is by `resources`, which may be others than those of now.
    #[must_use]
    pub fn new(
        from: Sources<'n>,
        (caller, ends, server): (&'n Identity, Ends, &'n Identity),
        resources: &Arc<Resources>,
        told_of: Lists,
        times: &'n Cell<usize>,
    ) -> Self {
        let mut woken = from.changes.0.subscribe();
        let approvals = from.pins.now().changes();
        if !Arc::ptr_eq(resources, &from.resources.load()) {
            woken.mark_changed();
        }
        let by = By::read(resources, (caller, ends), server, from.mode);
        Self { from, caller, ends, server, woken, told_of: Cell::new(told_of), by, approvals, times }
    }

    /// The caller has been told.
    pub fn told(&self) {
        self.times.set(self.times.get() + 1);
    }

    /// The server has agreed to tell of these, and may be spoken for from here on.
    pub fn acknowledged(&self, lists: Lists) {
        self.told_of.set(lists);
    }

    /// Waits until the caller may see something else, in lists that it is told of. Safe to cancel.
    pub async fn changed(&mut self) -> Lists {
        loop {
            if self.woken.changed().await.is_err() {
                return pending().await; // the agent ends
            }
            let changed = self.look_again().and(self.told_of.get());
            if changed != Lists::default() {
                return changed;
            }
        }
    }

    fn look_again(&mut self) -> Lists {
        let resources = self.from.resources.load();
        let now = By::read(&resources, (self.caller, self.ends), self.server, self.from.mode);
        let before = std::mem::replace(&mut self.by, now);
        let all = before.pinning != now.pinning;
        let mut changed = Lists {
            tools: all || before.tools != now.tools,
            resources: all || before.resources != now.resources,
            prompts: all || before.prompts != now.prompts,
        };
        let pins = self.from.pins.now();
        let since = std::mem::replace(&mut self.approvals, pins.changes());
        let approvals = now.pinning.map(|_| pins.changed(self.server, self.caller, since));
        for (kind, name) in approvals.into_iter().flatten() {
            let (list, changes) = match kind {
                Kind::Tool => (ListKind::Tools, &mut changed.tools),
                Kind::Prompt => (ListKind::Prompts, &mut changed.prompts),
                Kind::ResourceTemplate => (ListKind::ResourceTemplates, &mut changed.resources),
                Kind::Instructions => continue,
            };
            *changes |=
                now.is_whole || resources.policies.lists((self.caller, self.ends), self.server, list, name);
        }
        changed
    }
}

/// What a caller's lists are made by.
#[derive(Clone, Copy)]
struct By {
    /// Digests of the policy about each.
    tools: u64,
    resources: u64,
    prompts: u64,
    /// Policy hides nothing.
    is_whole: bool,
    /// How strictly what is not approved is held back; `None`: it is not.
    pinning: Option<HiddenCharacters>,
}

impl By {
    fn read(resources: &Resources, caller: (&Identity, Ends), server: &Identity, mode: Mode) -> Self {
        let declared =
            resources.servers.iter().map(Arc::as_ref).find(|one: &&Server| one.identity == *server);
        let is_whole = declared.is_some_and(|declared| mode.relaxes(declared));
        let view = |kind| if is_whole { 0 } else { resources.policies.view(caller, server, kind) };
        let pinning = declared.map(|declared| declared.pinning).filter(|pinning| pinning.mode.holds_back());
        Self {
            tools: view(ListKind::Tools),
            resources: view(ListKind::Resources),
            prompts: view(ListKind::Prompts),
            is_whole,
            pinning: pinning.map(|pinning| pinning.hidden),
        }
    }
}
