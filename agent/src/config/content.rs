//! How the content of a server's messages is held to something, or not looked at: pins, and TLS.

use toolgate_core::decision::Opaque;
use toolgate_core::pin::{HiddenCharacters, Mode, Pinning};

use super::schema::ServerSpec;
use super::source::Source;
use super::words::{Findings, choice};

pub(super) fn read_pinning(source: &Source, spec: &ServerSpec, findings: &mut Findings) -> Option<Pinning> {
    let modes =
        [("off", Mode::Off), ("warn", Mode::Warn), ("enforce", Mode::Enforce), ("first_use", Mode::FirstUse)];
    let mode = findings.keep(choice(source, &spec.pins, ("pins", Mode::Off), &modes, &[]))?;
    let characters = [("deny", HiddenCharacters::Deny), ("allow", HiddenCharacters::Allow)];
    let default = if mode.holds_back() { HiddenCharacters::Deny } else { HiddenCharacters::Allow };
    let key = ("hidden_characters", default);
    let hidden = findings.keep(choice(source, &spec.hidden_characters, key, &characters, &[]))?;
    if let Some(word) = spec.hidden_characters.as_ref().filter(|_| !mode.holds_back()) {
        let fault = source.error(word, "`hidden_characters` says nothing where pins deny nothing");
        findings.push(fault.help("leave it out, or write `pins: enforce` or `pins: first_use`"));
    }
    Some(Pinning { mode, hidden })
}

pub(super) fn read_opaque(
    source: &Source,
    spec: &ServerSpec,
    pinning: Option<Pinning>,
    findings: &mut Findings,
) -> Option<Opaque> {
    let choices = [("deny", Opaque::Deny), ("allow", Opaque::Allow)];
    let opaque = findings.keep(choice(source, &spec.opaque, ("opaque", Opaque::Deny), &choices, &[]))?;
    let Some(word) = spec.opaque.as_ref().filter(|_| opaque == Opaque::Allow) else { return Some(opaque) };
    if pinning.is_some_and(|pinning| pinning.mode.holds_back()) {
        let fault = source.error(word, "pins cannot hold in TLS that nobody reads");
        findings.push(fault.help("leave `pins` or `opaque` out"));
    }
    if spec.peer.is_some() {
        let fault = source.error(word, "TLS of a client does not go on to another agent");
        findings.push(fault.help("leave it out: agents speak TLS to each other by themselves"));
    }
    let warning = source.error(word, "which tools are called in TLS to this server is not seen").warning();
    findings.push(warning.help("who may anything there may then call all of it: let clients use plain HTTP"));
    Some(opaque)
}
