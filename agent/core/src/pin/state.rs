//! What is known of the definitions of every server, and what it means for a call and for a list.
//!
//! A definition is approved or pending. Who was shown an approved one and is then given a pending one has seen the tool
//! change: then nobody may call it, or is shown it, until that definition is approved, or is no longer what they are given.
//! Who is given another definition from the start has one of their own, and waits for it alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::canonical::{Definition, Digest};
use super::{HiddenCharacters, Kind, Mode, Pinning};
use crate::identity::Identity;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Definitions of one server.
    pub per_server_max: usize,
    /// Definitions of one name.
    pub per_name_max: usize,
    /// Bytes of one definition.
    pub bytes_max: usize,
    /// Bytes of all definitions of one server.
    pub per_server_bytes_max: usize,
    /// Callers of one server of whom it is known what they were shown.
    pub callers_max: usize,
}

/// Which of them was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// `per_server_max`
    PerServer,
    /// `per_name_max`
    PerName,
    /// `bytes_max`
    Bytes,
    /// `per_server_bytes_max`
    PerServerBytes,
    /// `callers_max`
    Callers,
}

/// What pins say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is approved.
    Approved,
    /// Nothing under this name is, or not what was shown.
    NotApproved,
    /// Something under this name is, and the server gives another definition now.
    Changed,
    /// It has characters that a reader does not see.
    Hidden,
}

/// One definition, as a caller was given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it defines.
    pub kind: Kind,
    /// Its name.
    pub name: Arc<str>,
    /// Its digest.
    pub digest: Digest,
    /// Its canonical form; `None` where that is kept already, or too large.
    pub text: Option<String>,
    /// Whether it has hidden characters.
    pub is_hiding: bool,
}

/// A definition that was not known before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// As it was seen; its text is there.
    pub seen: Seen,
    /// Another one is approved under this name.
    pub is_change: bool,
    /// It is approved because nothing was known under its name.
    pub is_approved: bool,
}

/// What is known of one definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its digest.
    pub digest: Digest,
    /// Bytes of its canonical form.
    pub bytes: usize,
    /// Whether it has hidden characters.
    pub is_hiding: bool,
    /// Whether it is approved.
    pub is_approved: bool,
    /// Which of the operator's changes ([`Pins::changes`]) was the last one to it; 0: none since the start.
    pub changed_at: u64,
}

/// All definitions of one name.
#[derive(Debug, Clone, Default)]
pub struct Pin {
    known: SmallVec<[Known; 1]>,
    /// See the module's words.
    has_changed: bool,
    /// A caller of whom nothing is kept was given a pending definition beside an approved one.
    is_unsure: bool,
    /// A definition was seen that could not be kept.
    is_partial: bool,
    /// The operator's change that has let everybody use it again, or nobody any more.
    settled_at: u64,
}

impl Pin {
    /// In the order in which they were seen.
    #[must_use]
    pub fn known(&self) -> &[Known] {
        &self.known
    }

    /// Whether nobody may use it, whatever is approved.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        self.has_changed
    }

    fn find(&self, digest: &Digest) -> Option<&Known> {
        self.known.iter().find(|known| known.digest == *digest)
    }

    fn approves(&self, digest: &Digest) -> bool {
        self.find(digest).is_some_and(|known| known.is_approved)
    }

    fn has_approved(&self) -> bool {
        self.known.iter().any(|known| known.is_approved)
    }
}

/// What a caller was given last under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    digest: Digest,
    /// They were shown an approved one before.
    was_approved: bool,
}

type Names<T> = BTreeMap<Arc<str>, T>;

#[derive(Debug, Clone)]
struct PerKind<T> {
    tools: Names<T>,
    prompts: Names<T>,
    templates: Names<T>,
    instructions: Names<T>,
}

impl<T> Default for PerKind<T> {
    fn default() -> Self {
        let names = BTreeMap::new;
        Self { tools: names(), prompts: names(), templates: names(), instructions: names() }
    }
}

impl<T> PerKind<T> {
    fn of(&self, kind: Kind) -> &Names<T> {
        match kind {
            Kind::Tool => &self.tools,
            Kind::Prompt => &self.prompts,
            Kind::ResourceTemplate => &self.templates,
            Kind::Instructions => &self.instructions,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Names<T> {
        match kind {
            Kind::Tool => &mut self.tools,
            Kind::Prompt => &mut self.prompts,
            Kind::ResourceTemplate => &mut self.templates,
            Kind::Instructions => &mut self.instructions,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct OfServer {
    pins: PerKind<Pin>,
    /// What each caller was given last. Not kept beyond a restart.
    views: BTreeMap<Identity, Arc<PerKind<View>>>,
    definitions: usize,
    bytes: usize,
}

/// All of them. A copy shares what does not change.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    servers: BTreeMap<Identity, Arc<OfServer>>,
    changes: u64,
}

impl Pins {
    /// What pins say of a call.
    #[must_use]
    pub fn call(
        &self,
        server: &Identity,
        caller: &Identity,
        (kind, name): (Kind, &str),
        hidden: HiddenCharacters,
    ) -> Verdict {
        let Some(of) = self.servers.get(server) else { return Verdict::NotApproved };
        let Some(pin) = of.pins.of(kind).get(name) else { return Verdict::NotApproved };
        let counts = |known: &&Known| known.is_approved && passes(known.is_hiding, hidden);
        if !pin.known.iter().any(|known| counts(&known)) {
            return if pin.has_approved() { Verdict::Hidden } else { Verdict::NotApproved };
        }
        if pin.has_changed {
            return Verdict::Changed;
        }
        if !pin.is_partial && pin.known.iter().all(|known| counts(&known)) {
            return Verdict::Approved; // whatever the caller was shown
        }
        // Some is pending, or hides something: it depends on what this caller was given.
        let view = of.views.get(caller).and_then(|views| views.of(kind).get(name));
        match view.map(|view| pin.find(&view.digest)) {
            Some(Some(known)) if counts(&known) => Verdict::Approved,
            Some(Some(known)) if known.is_approved => Verdict::Hidden,
            Some(_) => Verdict::NotApproved,
            // Nobody knows which they have.
            None => Verdict::Changed,
        }
    }

    /// What pins say of a definition in a list.
    #[must_use]
    pub fn shown(&self, server: &Identity, seen: &Seen, hidden: HiddenCharacters) -> Verdict {
        let Some(pin) = self.pin(server, seen.kind, &seen.name) else { return Verdict::NotApproved };
        if !pin.approves(&seen.digest) {
            return match (pin.has_approved(), passes(seen.is_hiding, hidden)) {
                (_, false) => Verdict::Hidden,
                (true, true) => Verdict::Changed,
                (false, true) => Verdict::NotApproved,
            };
        }
        match (pin.has_changed, passes(seen.is_hiding, hidden)) {
            (_, false) => Verdict::Hidden,
            (true, true) => Verdict::Changed,
            (false, true) => Verdict::Approved,
        }
    }

    /// Whether a name is kept.
    #[must_use]
    pub fn pin(&self, server: &Identity, kind: Kind, name: &str) -> Option<&Pin> {
        self.servers.get(server)?.pins.of(kind).get(name)
    }

    /// How many more definitions of a server can be kept.
    #[must_use]
    pub fn room(&self, server: &Identity, limits: &Limits) -> usize {
        let taken = self.servers.get(server).map_or(0, |of| of.definitions);
        limits.per_server_max.saturating_sub(taken)
    }

    /// Whether a definition is what the caller was given before under this name: nothing is to be observed then.
    #[must_use]
    pub fn knows(&self, server: &Identity, caller: &Identity, seen: &Seen) -> bool {
        let of = self.servers.get(server);
        let views = of.and_then(|of| of.views.get(caller));
        let view = views.and_then(|views| views.of(seen.kind).get(&*seen.name));
        view.is_some_and(|view| view.digest == seen.digest)
    }

    /// All that is kept of one server.
    pub fn of_server(&self, server: &Identity) -> impl Iterator<Item = (Kind, &Arc<str>, &Pin)> {
        let of = self.servers.get(server);
        let kinds = move |kind| of.into_iter().flat_map(move |of| of.pins.of(kind).iter());
        Kind::ALL.into_iter().flat_map(move |kind| kinds(kind).map(move |(name, pin)| (kind, name, pin)))
    }

    /// How often an operator has changed what is approved.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What a caller may see otherwise than before the operator's changes after the one of that number: of what it was given
    /// last, or of all where it is not known what that was.
    pub fn changed<'p>(
        &'p self,
        server: &Identity,
        caller: &Identity,
        since: u64,
    ) -> impl Iterator<Item = (Kind, &'p Arc<str>)> {
        let views = self.servers.get(server).and_then(|of| of.views.get(caller));
        self.of_server(server)
            .filter(move |(kind, name, pin)| {
                let is_new = |known: &Known| known.changed_at > since;
                match views.map(|views| views.of(*kind).get(*name)) {
                    None => pin.settled_at > since || pin.known.iter().any(is_new),
                    Some(None) => false,
                    Some(Some(view)) => pin.settled_at > since || pin.find(&view.digest).is_some_and(is_new),
                }
            })
            .map(|(kind, name, _)| (kind, name))
    }

    /// The servers of which something is kept.
    pub fn servers(&self) -> impl Iterator<Item = &Identity> {
        self.servers.keys()
    }

    /// The callers to whom a definition was given last.
    pub fn callers<'p>(
        &'p self,
        server: &Identity,
        kind: Kind,
        name: &'p str,
        digest: Digest,
    ) -> impl Iterator<Item = &'p Identity> {
        let of = self.servers.get(server);
        let has =
            move |views: &PerKind<View>| views.of(kind).get(name).is_some_and(|view| view.digest == digest);
        of.into_iter()
            .flat_map(|of| of.views.iter())
            .filter(move |(_, views)| has(views))
            .map(|(caller, _)| caller)
    }

    fn server(&mut self, server: &Identity) -> &mut OfServer {
        Arc::make_mut(self.servers.entry(server.clone()).or_default())
    }

    /// Takes over a definition that was kept.
    pub fn restore(&mut self, server: &Identity, kind: Kind, name: &Arc<str>, known: Known) {
        let of = self.server(server);
        of.definitions += 1;
        of.bytes += known.bytes;
        of.pins.of_mut(kind).entry(Arc::clone(name)).or_default().known.push(known);
    }

    /// Notes what a caller was given. Returns what was not known, and the limits that kept something from being kept.
    pub fn observe(
        &mut self,
        server: &Identity,
        caller: &Identity,
        all: Vec<Seen>,
        pinning: Pinning,
        limits: &Limits,
    ) -> (Vec<News>, Vec<Limited>) {
        let (mut news, mut limited) = (Vec::new(), Vec::new());
        let of = self.server(server);
        let is_tracked = of.views.contains_key(caller) || of.views.len() < limits.callers_max;
        for mut seen in all {
            let (kind, name) = (seen.kind, Arc::clone(&seen.name));
            let before = of.view(caller, kind, &name);
            match of.keep(&mut seen, pinning, limits) {
                Ok(Some(new)) => news.push(new),
                Ok(None) => {}
                Err(reached) => limited.push(reached),
            }
            let Some(pin) = of.pins.of_mut(kind).get_mut(&name) else { continue };
            let was_approved =
                before.is_some_and(|before| before.was_approved || pin.approves(&before.digest));
            let is_pending_beside = pin.has_approved() && !pin.approves(&seen.digest);
            pin.is_partial |= pin.find(&seen.digest).is_none();
            if is_tracked {
                pin.has_changed |= was_approved && is_pending_beside;
                let looks_again = pin.has_changed && !is_pending_beside;
                let views = Arc::make_mut(of.views.entry(caller.clone()).or_default());
                views.of_mut(kind).insert(Arc::clone(&name), View { digest: seen.digest, was_approved });
                if looks_again {
                    of.settle(kind, &name);
                }
            } else {
                limited.push(Limited::Callers);
                pin.is_unsure |= is_pending_beside;
                pin.has_changed |= is_pending_beside;
            }
        }
        limited.dedup();
        (news, limited)
    }

    /// Approves a definition, or withdraws that. False: there is none.
    pub fn set(&mut self, server: &Identity, kind: Kind, name: &str, digest: Digest, approved: bool) -> bool {
        self.changes += 1;
        let change = self.changes;
        let of = self.server(server);
        let Some(pin) = of.pins.of_mut(kind).get_mut(name) else { return false };
        let Some(known) = pin.known.iter_mut().find(|known| known.digest == digest) else { return false };
        (known.is_approved, known.changed_at) = (approved, change);
        pin.is_unsure = false;
        of.settle_at(kind, name, change);
        true
    }

    /// Forgets a definition, and that anybody was given it.
    pub fn forget(&mut self, server: &Identity, kind: Kind, name: &str, digest: Digest) {
        self.changes += 1;
        let change = self.changes;
        let of = self.server(server);
        let pins = of.pins.of_mut(kind);
        let Some(pin) = pins.get_mut(name) else { return };
        let Some(place) = pin.known.iter().position(|known| known.digest == digest) else { return };
        let known = pin.known.remove(place);
        pin.is_unsure = false;
        of.definitions -= 1;
        of.bytes -= known.bytes;
        if pin.known.is_empty() {
            pins.remove(name);
        }
        for views in of.views.values_mut() {
            if views.of(kind).get(name).is_some_and(|view| view.digest == digest) {
                Arc::make_mut(views).of_mut(kind).remove(name);
            }
        }
        of.settle_at(kind, name, change);
    }
}

impl OfServer {
    fn view(&self, caller: &Identity, kind: Kind, name: &str) -> Option<View> {
        self.views.get(caller).and_then(|views| views.of(kind).get(name)).copied()
    }

    /// Keeps a definition if it is new and there is room for it.
    fn keep(&mut self, seen: &mut Seen, pinning: Pinning, limits: &Limits) -> Result<Option<News>, Limited> {
        let pin = self.pins.of(seen.kind).get(&seen.name);
        if pin.is_some_and(|pin| pin.find(&seen.digest).is_some()) {
            return Ok(None);
        }
        let bytes = seen.text.as_ref().map_or(usize::MAX, String::len);
        if bytes > limits.bytes_max {
            return Err(Limited::Bytes);
        }
        if pin.is_some_and(|pin| pin.known.len() >= limits.per_name_max) {
            return Err(Limited::PerName);
        }
        if self.definitions >= limits.per_server_max {
            return Err(Limited::PerServer);
        }
        if bytes > limits.per_server_bytes_max.saturating_sub(self.bytes) {
            return Err(Limited::PerServerBytes);
        }
        let is_approved =
            pinning.mode == Mode::FirstUse && pin.is_none() && passes(seen.is_hiding, pinning.hidden);
        let is_change = pin.is_some_and(Pin::has_approved);
        let known =
            Known { digest: seen.digest, bytes, is_hiding: seen.is_hiding, is_approved, changed_at: 0 };
        self.pins.of_mut(seen.kind).entry(Arc::clone(&seen.name)).or_default().known.push(known);
        self.definitions += 1;
        self.bytes += bytes;
        let text = seen.text.take();
        Ok(Some(News { seen: Seen { text, ..seen.clone() }, is_change, is_approved }))
    }

    /// The same after a change of the operator's.
    fn settle_at(&mut self, kind: Kind, name: &str, change: u64) {
        let has_changed = |of: &Self| of.pins.of(kind).get(name).is_some_and(|pin| pin.has_changed);
        let before = has_changed(self);
        self.settle(kind, name);
        if before != has_changed(self)
            && let Some(pin) = self.pins.of_mut(kind).get_mut(name)
        {
            pin.settled_at = change;
        }
    }

    /// Looks again whether it has changed for somebody.
    fn settle(&mut self, kind: Kind, name: &str) {
        let Some(pin) = self.pins.of_mut(kind).get_mut(name) else { return };
        let has_changed = |view: &View| view.was_approved && !pin.approves(&view.digest);
        let views = self.views.values().filter_map(|views| views.of(kind).get(name));
        pin.has_changed = pin.has_approved() && (pin.is_unsure || views.into_iter().any(has_changed));
    }
}

fn passes(is_hiding: bool, hidden: HiddenCharacters) -> bool {
    match hidden {
        HiddenCharacters::Deny => !is_hiding,
        HiddenCharacters::Allow => true,
    }
}

impl Seen {
    /// Of a definition, with its text.
    #[must_use]
    pub fn of(kind: Kind, name: &str, definition: Definition) -> Self {
        let Definition { text, digest, is_hiding } = definition;
        Self { kind, name: name.into(), digest, text: Some(text), is_hiding }
    }
}
