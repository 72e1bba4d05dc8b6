//! `decide` among many rules and callers: `cargo bench -p toolgate-core --bench decision`.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use toolgate_core::decision::{
    Action, Decision, Enforcement, Ids, Mode, Opaque, Place, Server, Transport, decide,
};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{JsonLimits, Message, Scratch, parse};
use toolgate_core::pin::Pinning;
use toolgate_core::policy::{
    Arguments, At, Effect, Glob, IdentityPattern, Key, Literal, Others, Policies, Policy, PolicyMode,
    Predicate, Rule, What,
};

const DOMAIN: &str = "example.org";
const CALL: &[u8] = br#"{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"search","arguments":{"path":"/srv/docs/a/b.md","limit":25,"encoding":"utf-8"}}}"#;

fn identity(name: &str) -> Identity {
    Identity::new(DOMAIN, "default", name).expect("a name")
}

fn pattern(name: &str) -> IdentityPattern {
    IdentityPattern::new(name, DOMAIN, "default").expect("a pattern")
}

fn arguments() -> Arguments {
    let key = |name: &str, predicate: Predicate| (Key::new(name).expect("a key"), vec![predicate]);
    let predicates = vec![
        key("path", Predicate::within("/srv/docs").expect("a directory")),
        key("limit", Predicate::Max(100.0)),
        key("encoding", Predicate::Equals(Literal::Text("utf-8".to_owned()))),
    ];
    Arguments::new(predicates, Others::Deny)
}

/// What is called, with how many other rules beside the one that permits it.
#[derive(Clone, Copy)]
enum Crowd {
    /// Of other servers.
    Servers,
    /// Of the same server, for other tools.
    Tools,
    /// Of the same server and tool, for other callers.
    Callers,
}

fn rule(name: String, caller: &str, server: &str, tool: &str) -> Rule {
    Rule {
        name: name.into(),
        effect: Effect::Allow,
        callers: vec![pattern(caller)],
        servers: vec![pattern(server)],
        what: What::Tools(vec![Glob::name(tool).expect("a glob")]),
        list: None,
        arguments: Some(arguments()),
    }
}

/// The rule that permits is the last. As in an agent, policies and calls have the server from one resource.
fn policies(crowd: Crowd, rules: usize, server: &Identity) -> Policies {
    let other = |n: usize| {
        let name = format!("crowd/{n}");
        match crowd {
            Crowd::Servers => rule(name, "caller", &format!("server-{n}"), "search"),
            Crowd::Tools => rule(name, "caller", "docs", &format!("tool-{n}")),
            Crowd::Callers => rule(name, &format!("caller-{n}"), "docs", "search"),
        }
    };
    let mut all: Vec<_> = (1..rules).map(other).collect();
    all.push(rule("docs/search".to_owned(), "caller", "docs", "search"));
    let mut servers = vec![server.clone()];
    if matches!(crowd, Crowd::Servers) {
        servers.extend((1..rules).map(|n| identity(&format!("server-{n}"))));
    }
    let policy = Policy { name: "crowd".into(), mode: PolicyMode::Enforce, at: At::Server, rules: all };
    Policies::new(vec![policy], &servers)
}

fn decision(criterion: &mut Criterion) {
    let mut scratch = Scratch::new();
    let message = parse(CALL, &mut scratch, &JsonLimits::default()).expect("a call");
    let server = Server {
        identity: identity("docs"),
        place: Place::Local { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)) },
        hosts: Vec::new(),
        path: "/mcp".to_owned(),
        enforcement: Enforcement::Enforce,
        transport: Transport::Streamable,
        pinning: Pinning::OFF,
        opaque: Opaque::Deny,
    };
    let caller = identity("caller");
    let mut group = criterion.benchmark_group("decision");
    let run = |policies: &Policies, message: &Message<'_>| {
        let action = Action::Message(message);
        let decision =
            decide(Ok(&caller), server.captured(), action, Ids::default(), policies, Mode::default());
        matches!(decision, Decision::Permitted(_))
    };
    for (name, crowd, sizes) in [
        ("rules_of_other_servers", Crowd::Servers, &[1, 100, 1_000][..]),
        ("rules_of_other_tools", Crowd::Tools, &[1, 100, 10_000]),
        ("rules_of_other_callers", Crowd::Callers, &[1, 100, 1_000, 10_000]),
    ] {
        for &size in sizes {
            let policies = policies(crowd, size, &server.identity);
            assert!(run(&policies, &message), "{name}/{size}");
            group.bench_function(format!("{name}/{size}"), |b| {
                b.iter(|| run(&policies, black_box(&message)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, decision);
criterion_main!(benches);
