//! The configuration in plain English: what is captured, who is who, and one sentence for each rule.

use std::fmt::{Display, Write as _};

use toolgate_core::decision::{
    Enforcement, Excluded, External, Opaque, Place, Server, TlsRule, Transport, Undeclared, Unrecognised,
};
use toolgate_core::http1::OwnHeader;
use toolgate_core::mcp::ServerAsks;
use toolgate_core::pin::{HiddenCharacters, Mode, Pinning};
use toolgate_core::policy::{
    Arguments, At, Effect, Glob, Literal, Others, Policies, Policy, PolicyMode, Predicate, Rule, What,
};
use toolgate_core::workload::{Selectors, Workload};

use super::agent::{AgentConfig, Cgroup, Destinations};
use super::resources::Resources;
use super::words::Destination;

/// What `toolgate check` prints.
#[must_use]
pub fn explain(agent: &AgentConfig, resources: &Resources) -> String {
    let mut lines = vec!["captured:".to_owned()];
    lines.extend(capture(agent, resources).map(|line| format!("  {line}")));
    if let Some(peer) = agent.listen.peer {
        lines.push(format!("  agents of other nodes come to {peer} for the local servers, by mutual TLS"));
    }
    if let Some(invoke) = agent.listen.invoke {
        let port = invoke.port();
        lines.push(format!(
            "  captured processes call servers by App ID at {invoke} and `localhost:{port}`, as at a Dapr sidecar"
        ));
    }
    lines.extend(tls(agent).into_iter().map(|line| format!("  {line}")));
    lines.push("callers:".to_owned());
    let read = |one: &Workload| if resources.inspects(&one.identity) { "; its TLS is read" } else { "" };
    let callers = resources.workloads.iter().map(|one| workload(one) + read(one));
    lines.extend(section(callers, "no Workload is declared"));
    lines.push("servers:".to_owned());
    lines.extend(section(
        resources.servers.iter().map(|server| self::server(server, &resources.policies)),
        "no Server is declared",
    ));
    for policy in resources.policies.sources() {
        lines.push(format!("policy {}, {}:", policy.name, applied(policy)));
        lines.extend(policy.rules.iter().map(|rule| format!("  {}", sentence(rule))));
    }
    lines.push("everything else is denied".to_owned());
    lines.extend(agent.dangerous().into_iter().map(|setting| format!("dangerous: {setting}")));
    lines.join("\n") + "\n"
}

/// What becomes of TLS, unless that is up to its target.
fn tls(agent: &AgentConfig) -> Option<String> {
    let excluded = agent.capture.tls_exclude.iter().map(|one| match one {
        Excluded::Name(name) => format!("{name} and what is below it"),
        Excluded::Address(address) => address.to_string(),
    });
    let but = match agent.capture.tls_exclude.as_slice() {
        [] => String::new(),
        _ => format!(", but for {}", and(excluded)),
    };
    match agent.capture.tls {
        TlsRule::Opaque => None,
        TlsRule::Inspect => Some(format!("TLS of callers that say so is read{but}")),
        TlsRule::Deny => Some("TLS is denied, to whomever it goes".to_owned()),
    }
}

fn section(lines: impl Iterator<Item = String>, none: &str) -> Vec<String> {
    let mut lines: Vec<String> = lines.map(|line| format!("  {line}")).collect();
    if lines.is_empty() {
        lines.push(format!("  {none}"));
    }
    lines
}

fn capture(agent: &AgentConfig, resources: &Resources) -> impl Iterator<Item = String> {
    let capture = &agent.capture;
    let mut whose = vec!["what `toolgate exec` starts (to every destination)".to_owned()];
    whose.extend(capture.cgroups.iter().map(|cgroup| match cgroup {
        Cgroup::Root => "every process of this host".to_owned(),
        Cgroup::Below(glob) => format!("{} and below", glob.as_str()),
    }));
    let to = match &capture.destinations {
        Destinations::Declared => match resources.servers.as_slice() {
            [] => "to no destination yet: no Server is declared".to_owned(),
            servers => format!("to {}", and(servers.iter().map(|server| reached_at(server)))),
        },
        Destinations::All => "to every destination".to_owned(),
        Destinations::List(list) => {
            format!("to {} and every declared server", and(list.iter().map(destination)))
        }
    };
    let gap = match &capture.destinations {
        Destinations::Declared | Destinations::List(_) if !capture.cgroups.is_empty() => Some(
            "MCP of these cgroups to other addresses is not seen: `destinations: all` closes that gap"
                .to_owned(),
        ),
        Destinations::Declared | Destinations::List(_) | Destinations::All => None,
    };
    let exclude = (!capture.exclude.is_empty())
        .then(|| format!("never to {}", and(capture.exclude.iter().map(destination))));
    let undeclared = match capture.undeclared {
        Undeclared::Deny => "denied",
        Undeclared::DangerousAllow => "passed on and recorded",
    };
    let unrecognised = match capture.unrecognised {
        Unrecognised::Pass => "passed on",
        Unrecognised::Deny => "denied",
    };
    let rest = format!(
        "captured MCP to a server that is not declared is {undeclared}; what is not MCP and goes to no declared server is {unrecognised}"
    );
    [format!("connections of {}", and(whose)), to].into_iter().chain(exclude).chain(gap).chain([rest])
}

fn destination(destination: &Destination) -> String {
    match destination.port {
        Some(port) => format!("{} port {port}", destination.net),
        None => destination.net.to_string(),
    }
}

fn workload(workload: &Workload) -> String {
    let Selectors { unit, cgroup, user, exe, exe_sha256, container } = &workload.selectors;
    let container = container.as_ref();
    let parts = [
        unit.as_ref().map(|unit| format!("in unit {unit}")),
        cgroup.as_ref().map(|cgroup| format!("in cgroup {} or below", cgroup.as_str())),
        user.as_ref().map(|user| format!("of user {user}")),
        exe.as_ref().map(|exe| match exe.file {
            Some(_) => format!("running {}", exe.path),
            None => format!("running {} (which is not there, so none)", exe.path),
        }),
        exe_sha256.map(|digest| format!("running a file of SHA-256 {digest}")),
        container.and_then(|it| it.id.as_ref()).map(|id| format!("in container {}", id.as_str())),
        container.and_then(|it| it.machine.as_ref()).map(|name| format!("in machine {name}")),
        container.and_then(|it| it.image.as_ref()).map(|image| format!("in a container of image {image}")),
    ];
    if workload.selectors.is_empty() {
        return format!("{} is what `toolgate exec --app-id {0}` starts", workload.name);
    }
    format!("{} is every process {}", workload.name, and(parts.into_iter().flatten()))
}

fn server(server: &Server, policies: &Policies) -> String {
    let hosts =
        if server.hosts.is_empty() { String::new() } else { format!(", named {}", and(&server.hosts)) };
    if let Place::Peer { address, endpoints } = &server.place {
        let endpoints = listed(endpoints.iter(), "or");
        return format!(
            "{} is on another node, whose agent is at {endpoints}; callers connect to {address}{hosts}, path {}",
            server.identity, server.path
        );
    }
    let policy = match (policies.govern(&server.identity), server.enforcement) {
        (_, Enforcement::DangerousObserve) => "; what policy would deny passes (dangerous_observe)",
        (false, Enforcement::Enforce) => "; no policy names it, so every call is denied",
        (true, Enforcement::Enforce) => "",
    };
    let pins = pins(server.pinning);
    let opaque = match server.opaque {
        Opaque::Deny => "",
        Opaque::Allow => {
            "; TLS that names it passes unread for callers that may anything there (opaque: allow)"
        }
    };
    let transport = match server.transport {
        Transport::Streamable => "",
        Transport::Sse => " (HTTP with SSE)",
    };
    let Server { identity, path, .. } = server;
    let place = match &server.place {
        Place::Local { address } | Place::Peer { address, .. } => address.to_string(),
        Place::External(external) => outside(external),
    };
    format!("{identity} is at {place}{hosts}, path {path}{transport}{policy}{pins}{opaque}")
}

/// Where callers connect to.
fn reached_at(server: &Server) -> String {
    match &server.place {
        Place::Local { address } | Place::Peer { address, .. } => address.to_string(),
        Place::External(external) => {
            format!(
                "port {} of {}, at the addresses that are known of it",
                and(external.client_ports()),
                external.host
            )
        }
    }
}

fn outside(external: &External) -> String {
    let mut text = format!("{external} (no agent is there)");
    match (&external.tls, external.http_port) {
        (Some(proof), http_port) => {
            if let Some(port) = http_port {
                let _ = write!(text, ", clients speak plain HTTP to it at port {port}, which goes on in TLS");
            }
            if proof.roots.is_some() {
                text.push_str(", proven by the certificates that it names alone");
            }
            if !proof.pins.is_empty() {
                text.push_str(", by one of the keys in its pins");
            }
            if proof.shown.is_some() {
                text.push_str(", shown a certificate if it asks for one");
            }
        }
        (None, _) => text.push_str(", without TLS"),
    }
    if !external.own_headers.is_empty() {
        let _ =
            write!(text, ", with {} in every request", and(external.own_headers.iter().map(OwnHeader::name)));
    }
    if external.is_elsewhere() {
        let _ = write!(text, ", dialled at {}", listed(external.endpoints.iter(), "or"));
    }
    if external.allow_private {
        text.push_str(", also at addresses that are no public ones (allow_private)");
    }
    text
}

fn pins(pinning: Pinning) -> String {
    let what = "of what it offers";
    let pins = match pinning.mode {
        Mode::Off => return String::new(),
        Mode::Warn => return format!("; {what}, what nobody approved passes and is recorded (pins: warn)"),
        Mode::Enforce => "only what was approved is listed and called (pins: enforce)",
        Mode::FirstUse => {
            "only what was approved is listed and called, and what is first seen is (pins: first_use)"
        }
    };
    let hidden = match pinning.hidden {
        HiddenCharacters::Deny => "nothing with hidden characters",
        HiddenCharacters::Allow => "also with hidden characters",
    };
    format!("; {what}, {pins}, {hidden}")
}

fn applied(policy: &Policy) -> &'static str {
    match (policy.mode, policy.at) {
        (PolicyMode::Enforce, At::Server) => "applied at the server's end",
        (PolicyMode::Enforce, At::Caller) => "applied at the caller's end",
        (PolicyMode::Shadow, At::Server) => "recorded only, as if applied at the server's end",
        (PolicyMode::Shadow, At::Caller) => "recorded only, as if applied at the caller's end",
    }
}

/// One rule as a sentence.
fn sentence(rule: &Rule) -> String {
    let effect = match rule.effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    };
    let what = match &rule.what {
        What::Everything => "do anything".to_owned(),
        What::Tools(globs) => format!("call {}", named("tool", globs)),
        What::Methods(globs) => format!("use {}", named("method", globs)),
        What::Resources(globs) => format!("read {}", named("resource", globs)),
        What::Prompts(globs) => format!("get {}", named("prompt", globs)),
        What::ServerRequests(asks) => return asking(rule, asks),
    };
    let when = rule.arguments.as_ref().map(conditions).unwrap_or_default();
    let hidden = if rule.list == Some(false) { ", hidden from lists" } else { "" };
    let (callers, servers) = (and(&rule.callers), and(&rule.servers));
    match rule.effect {
        Effect::Allow => format!("{effect} {callers} to {what} on {servers}{when}{hidden} [{}]", rule.name),
        Effect::Deny => format!("{effect} that {callers} {what} on {servers}{when} [{}]", rule.name),
    }
}

/// A rule about what servers do.
fn asking(rule: &Rule, asks: &[ServerAsks]) -> String {
    let (callers, servers, name) = (and(&rule.callers), and(&rule.servers), &rule.name);
    let what = and(asks.iter().map(|asks| asks.as_str()));
    match rule.effect {
        Effect::Allow => format!("allow {servers} to ask {callers} for {what} [{name}]"),
        Effect::Deny => format!("deny that {servers} asks {callers} for {what} [{name}]"),
    }
}

fn named(noun: &str, globs: &[Glob]) -> String {
    match globs {
        [one] if one.as_str() == "*" => format!("any {noun} without `/` in its name"),
        [one] => format!("{noun} {}", one.as_str()),
        several => format!("{noun}s {}", and(several.iter().map(Glob::as_str))),
    }
}

fn conditions(arguments: &Arguments) -> String {
    let mut all: Vec<String> =
        arguments.iter().map(|(key, predicates)| condition(key.as_str(), predicates)).collect();
    match (arguments.others(), all.is_empty()) {
        (Others::Deny, true) => all.push("no argument is given".to_owned()),
        (Others::Deny, false) => all.push("no other argument is given".to_owned()),
        (Others::Allow, _) => {}
    }
    if all.is_empty() { String::new() } else { format!(" when {}", and(all)) }
}

fn condition(subject: &str, predicates: &[Predicate]) -> String {
    if predicates.is_empty() {
        return format!("{subject} is anything");
    }
    let predicates = predicates.iter().map(predicate);
    format!("{subject} {}", and(predicates))
}

fn predicate(predicate: &Predicate) -> String {
    match predicate {
        Predicate::Equals(value) => format!("is {}", literal(value)),
        Predicate::In(values) => format!("is {}", listed(values.iter().map(literal), "or")),
        Predicate::Prefix(text) => format!("begins with {text:?}"),
        Predicate::Suffix(text) => format!("ends with {text:?}"),
        Predicate::Glob(glob) => format!("fits {}", glob.as_str()),
        Predicate::Regex(_, pattern) => format!("fits the regular expression {pattern}"),
        Predicate::Within(directory) => format!("is within {}", directory.path()),
        Predicate::Min(number) => format!("is at least {number}"),
        Predicate::Max(number) => format!("is at most {number}"),
        Predicate::MaxLength(length) => format!("has a length of at most {length}"),
        Predicate::Type(kind) => format!("is of type {}", kind.as_str()),
        Predicate::Absent(true) => "is not given".to_owned(),
        Predicate::Absent(false) => "is given".to_owned(),
        Predicate::Any(predicates) => {
            format!("has an element that {}", and(predicates.iter().map(self::predicate)))
        }
        Predicate::Every(predicates) => {
            format!("has only elements that {}", and(predicates.iter().map(self::predicate)))
        }
    }
}

fn literal(literal: &Literal) -> String {
    match literal {
        Literal::Null => "null".to_owned(),
        Literal::Bool(value) => value.to_string(),
        Literal::Number(number) => number.to_string(),
        Literal::Text(text) => format!("{text:?}"),
    }
}

fn and<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    listed(items, "and")
}

/// `a, b and c`
fn listed<T: Display>(items: impl IntoIterator<Item = T>, last: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [many @ .., end] => format!("{} {last} {end}", many.join(", ")),
    }
}
