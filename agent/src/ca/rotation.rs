//! What is due: a pure function of what there is, how long it may live, and the time.
//!
//! A root is prepared (in the bundle, so that everybody learns of it), then active (it signs), then retired (in the bundle
//! until all that it signed has ended), then gone. Issuing certificates travel with what they sign, and need no preparation.

use std::time::{Duration, SystemTime};

use super::certify::Validity;
use super::operate::Level;
use super::state::{Entry, Stage, State};

/// Retired certificates that are kept of each level: a clock that jumps to and fro must not fill the bundle.
const RETIRED_MAX: usize = 16;

/// How long everything lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lives {
    /// An SVID.
    pub svid: Duration,
    /// A certificate that signs them.
    pub issuing: Duration,
    /// A root.
    pub root: Duration,
    /// How long a root is in the bundle before it signs: all nodes must have fetched it by then.
    pub overlap: Duration,
    /// How much earlier than now a certificate begins: peers' clocks may be late by that.
    pub skew: Duration,
    /// Whether the root's key is the service manager's to give: then roots do not change by themselves.
    pub root_is_credential: bool,
}

/// One step of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A new root is made; it signs at once where there is none that can.
    MakeRoot { stage: Stage },
    /// The prepared root signs from now on, and the active one is retired.
    ActivateRoot,
    /// A new issuing certificate is made, and the active one is retired.
    MakeIssuing,
    /// All that it signed has ended.
    Forget { level: Level, id: String },
}

/// The next step that is due. `Err`: an entry cannot be read.
pub(super) fn due(state: &State, lives: &Lives, now: SystemTime) -> Result<Option<Step>, String> {
    let Some(root) = state.at(Level::Root, Stage::Active) else {
        return Ok(Some(Step::MakeRoot { stage: Stage::Active }));
    };
    let is_over = root.validity()?.not_after <= now;
    if let Some(prepared) = state.at(Level::Root, Stage::Prepared) {
        if is_over || age(prepared, now) >= lives.overlap {
            return Ok(Some(Step::ActivateRoot));
        }
    } else if !lives.root_is_credential && (is_over || is_half_over(root, lives.root, now)?) {
        return Ok(Some(Step::MakeRoot { stage: Stage::Prepared }));
    }
    let issuing = state.at(Level::Issuing, Stage::Active);
    let is_good = match issuing {
        None => false,
        Some(issuing) => {
            let Validity { not_before, not_after } = issuing.validity()?;
            // Of a time that the clock has left since: peers would take it for not yet valid.
            let is_valid = not_before <= now && now < not_after;
            is_valid && issuing.root.as_ref() == Some(&root.id) && !is_half_over(issuing, lives.issuing, now)?
        }
    };
    if !is_good && !is_over {
        return Ok(Some(Step::MakeIssuing));
    }
    forgettable(state, now)
}

/// Half its life, or half of what a new one would have, has passed.
fn is_half_over(entry: &Entry, life: Duration, now: SystemTime) -> Result<bool, String> {
    let own = entry.validity()?.not_after.duration_since(entry.made_at()).unwrap_or_default();
    Ok(age(entry, now) >= own.min(life) / 2)
}

/// None at all, if the clock has gone back since.
fn age(entry: &Entry, now: SystemTime) -> Duration {
    now.duration_since(entry.made_at()).unwrap_or_default()
}

fn forgettable(state: &State, now: SystemTime) -> Result<Option<Step>, String> {
    let retired = |level| state.of(level).iter().filter(|entry| entry.stage == Stage::Retired);
    let forget = |level, entry: &Entry| Some(Step::Forget { level, id: entry.id.clone() });
    for entry in retired(Level::Issuing) {
        if entry.validity()?.not_after <= now {
            return Ok(forget(Level::Issuing, entry));
        }
    }
    for entry in retired(Level::Root) {
        let has_signed = |issuing: &Entry| issuing.root.as_ref() == Some(&entry.id);
        if !state.of(Level::Issuing).iter().any(has_signed) {
            return Ok(forget(Level::Root, entry));
        }
    }
    let is_crowded = retired(Level::Issuing).count() > RETIRED_MAX;
    Ok(retired(Level::Issuing).next().filter(|_| is_crowded).and_then(|entry| forget(Level::Issuing, entry)))
}
