//! The tables of `policies/cases`, run through the same code as the agent: YAML -> resources -> `decide`.
#![expect(clippy::unwrap_used, reason = "a test that cannot read its table fails")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toolgate::config::{AgentConfig, Diagnostic, Resources, explain, load_agent, load_resources};
use toolgate_core::decision::{
    Action, Asks, Decision, Ids, Mode, Server, ShadowVerdict, Target, Use, decide, server_request,
};
use toolgate_core::denial::Reason;
use toolgate_core::identity::Identity;
use toolgate_core::mcp::{JsonLimits, ListKind, Method, Revision, Scratch, parse};
use toolgate_core::policy::{Ends, Predicate};
use toolgate_core::workload::Unidentified;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    resources: String,
    cases: Vec<Case>,
    lists: Vec<List>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default = "agent")]
    caller: String,
    caller_is: Option<String>,
    #[serde(default = "docs")]
    server: String,
    /// Another agent speaks for the caller.
    #[serde(default)]
    from_peer: bool,
    message: Option<String>,
    action: Option<String>,
    /// The revision that the request says it is of.
    revision: Option<String>,
    /// The revision that its session was opened in.
    session_revision: Option<String>,
    /// The server asks this of the caller.
    asks: Option<String>,
    /// The server's request that an answer answers.
    question: Option<String>,
    /// The message goes on with a state that its caller did not get.
    #[serde(default)]
    state: Option<String>,
    session: Option<String>,
    task: Option<String>,
    tool: Option<String>,
    event: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    observe: bool,
    expect: String,
    reason: Option<String>,
    rules: Option<Vec<String>>,
    observed: Option<String>,
    shadow: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    server: String,
    #[serde(default = "agent")]
    caller: String,
    #[serde(default)]
    from_peer: bool,
    kind: String,
    shown: Vec<String>,
    hidden: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    predicate: String,
    r#match: Vec<String>,
    miss: Vec<String>,
    absent: Vec<String>,
    wrong_type: Vec<String>,
    colliding: Vec<String>,
    #[serde(default)]
    beyond: Vec<String>,
}

fn agent() -> String {
    "agent".to_owned()
}

fn docs() -> String {
    "docs".to_owned()
}

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies")
}

fn read<T: for<'de> Deserialize<'de>>(file: &str) -> T {
    let text = std::fs::read_to_string(policies().join("cases").join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// As the agent sees it that captured the call, or that another one passes it to.
fn target(server: &Server, from_peer: bool) -> Target<'_> {
    if from_peer { Target { server, ends: Ends::Server } } else { server.captured() }
}

fn load(yaml: &str) -> Resources {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("resources.yaml"), yaml).unwrap();
    load_resources(dir.path(), &AgentConfig::default())
        .unwrap_or_else(|findings| panic!("{}", shown(&findings)))
}

fn shown(findings: &[Diagnostic]) -> String {
    findings.iter().map(ToString::to_string).collect()
}

fn identity(name: &str) -> Identity {
    let (app_id, namespace) = name.split_once('.').unwrap_or((name, "default"));
    Identity::new("example.org", namespace, app_id).unwrap()
}

fn server<'r>(resources: &'r Resources, name: &str) -> &'r Server {
    resources.servers.iter().find(|server| server.identity == identity(name)).unwrap()
}

/// What became of a case, in the words of its file.
#[derive(Debug, PartialEq)]
struct Outcome {
    expect: String,
    reason: Option<String>,
    rules: Vec<String>,
    observed: Option<String>,
    shadow: Option<String>,
}

impl Case {
    fn revision(&self) -> Option<Revision> {
        self.revision.as_deref().map(dated)
    }
}

fn dated(date: &str) -> Revision {
    Revision::named(date.as_bytes()).unwrap()
}

/// An action of a revision.
struct Asked<'m>(Action<'m>, Option<Revision>);

impl Asks for Asked<'_> {
    fn action(&self) -> Action<'_> {
        self.0
    }

    fn revision(&self) -> Option<Revision> {
        self.1
    }

    fn names_revision(&self) -> bool {
        self.1.is_some()
    }
}

fn outcome(resources: &Resources, case: &Case) -> Outcome {
    let mut scratch = Scratch::default();
    let message = case.message.as_ref().map(|text| {
        parse(text.as_bytes(), &mut scratch, &JsonLimits::default())
            .unwrap_or_else(|e| panic!("{}: {e}", case.name))
    });
    if let Some(method) = &case.asks {
        let (caller, server) = (identity(&case.caller), server(resources, &case.server));
        let (method, mode) = ((Method::from_name(method), case.revision()), Mode { observe: case.observe });
        return told(server_request(
            &caller,
            target(server, case.from_peer),
            method,
            &resources.policies,
            mode,
        ));
    }
    let action = match (case.action.as_deref(), &message) {
        (None, Some(message)) => Action::Message(message),
        (Some("get"), None) => Action::OpenStream,
        (Some("delete"), None) => Action::EndSession,
        (Some("other_path"), None) => Action::OtherPath,
        other => panic!("{}: {other:?}", case.name),
    };
    let named = |word: &Option<String>| match word.as_deref() {
        None => Use::None,
        Some("own") => Use::Own,
        Some("foreign") => Use::Foreign,
        Some("unknown") => Use::Unknown,
        Some(other) => panic!("{}: {other}", case.name),
    };
    let (session, task, event) = (named(&case.session), named(&case.task), named(&case.event));
    let (tool, question) = (case.tool.as_deref(), case.question.as_deref().map(Method::from_name));
    let revision = case.session_revision.as_deref().map(dated);
    let (endpoint, state) = (named(&case.endpoint), named(&case.state));
    let ids = Ids { session, revision, task, tool, event, endpoint, question, state };
    let nobody = case.caller_is.as_deref().map(nobody);
    let somebody = identity(&case.caller);
    let caller = nobody.as_ref().map_or(Ok(&somebody), Err);
    let mode = Mode { observe: case.observe };
    let server = server(resources, &case.server);
    let action = Asked(action, case.revision());
    told(decide(caller, target(server, case.from_peer), action, ids, &resources.policies, mode))
}

fn told<T>(decision: Decision<T>) -> Outcome {
    match decision {
        Decision::Permitted(permitted) => Outcome {
            expect: "permit".to_owned(),
            reason: None,
            rules: permitted.rules().iter().map(ToString::to_string).collect(),
            observed: permitted.observed().map(|denied| denied.reason.as_str().to_owned()),
            shadow: permitted.shadow().map(shadow),
        },
        Decision::Denied(denied) => Outcome {
            expect: "deny".to_owned(),
            reason: Some(denied.reason.as_str().to_owned()),
            rules: denied.rules.iter().map(ToString::to_string).collect(),
            observed: None,
            shadow: denied.shadow.as_ref().map(shadow),
        },
    }
}

fn nobody(word: &str) -> Unidentified {
    match word {
        "unidentified" => Unidentified::Unknown,
        "ambiguous" => Unidentified::Ambiguous { workloads: vec!["a".into(), "b".into()] },
        "contradicted" => Unidentified::Contradicted { claimed: identity("agent"), workload: "agent".into() },
        other => panic!("{other}"),
    }
}

fn shadow(verdict: &ShadowVerdict) -> String {
    verdict.reason.map_or("permit", Reason::as_str).to_owned()
}

#[test]
fn decisions() {
    let table: Table = read("decisions.yaml");
    let resources = load(&table.resources);
    let mut names = BTreeSet::new();
    let mut failed = Vec::new();
    for case in &table.cases {
        assert!(names.insert(&case.name), "two cases are called `{}`", case.name);
        let got = outcome(&resources, case);
        let expected = Outcome {
            expect: case.expect.clone(),
            reason: case.reason.clone(),
            rules: case.rules.clone().unwrap_or_else(|| got.rules.clone()),
            observed: case.observed.clone(),
            shadow: case.shadow.clone(),
        };
        if got != expected {
            failed.push(format!("{}: {got:?}, expected {expected:?}", case.name));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn lists() {
    let table: Table = read("decisions.yaml");
    let resources = load(&table.resources);
    for List { server, caller, from_peer, kind, shown, hidden } in &table.lists {
        let ends = target(self::server(&resources, server), *from_peer).ends;
        let kind = match kind.as_str() {
            "tools" => ListKind::Tools,
            "prompts" => ListKind::Prompts,
            "resources" => ListKind::Resources,
            "resource_templates" => ListKind::ResourceTemplates,
            other => panic!("{other}"),
        };
        for (names, expected) in [(shown, true), (hidden, false)] {
            for name in names {
                let lists =
                    resources.policies.lists((&identity(caller), ends), &identity(server), kind, name);
                assert_eq!(lists, expected, "{name} of {server} for {caller}");
            }
        }
    }
}

/// Whether `decide` may give this reason. No wildcard: a new reason must be placed here, and then have a case.
fn is_given_by_decide(reason: Reason) -> bool {
    match reason {
        Reason::UnidentifiedCaller
        | Reason::AmbiguousCaller
        | Reason::ExecContradicted
        | Reason::NoRule
        | Reason::DeniedByRule
        | Reason::ArgumentsRefused
        | Reason::MethodUnknown
        | Reason::UnexpectedResponse
        | Reason::ServerRequest
        | Reason::UnknownState
        | Reason::ForeignState
        | Reason::MissingCapability
        | Reason::UnknownSession
        | Reason::ForeignSession
        | Reason::UnknownTask
        | Reason::ForeignTask
        | Reason::UnknownEvent
        | Reason::RevisionMismatch
        | Reason::ForeignEvent
        | Reason::UnknownEndpoint
        | Reason::ForeignEndpoint
        | Reason::PathNotServed => true,
        Reason::NotApproved
        | Reason::DefinitionChanged
        | Reason::HiddenCharacters
        | Reason::Undeclared
        | Reason::NoAppId
        | Reason::Unrecognised
        | Reason::Opaque
        | Reason::TlsDenied
        | Reason::ClientPinned
        | Reason::HandshakeFailed
        | Reason::HostMismatch
        | Reason::MalformedHttp
        | Reason::HeaderMismatch
        | Reason::MalformedMessage
        | Reason::Batch
        | Reason::TooLarge
        | Reason::ServerUnreachable
        | Reason::NameUnresolved
        | Reason::AddressRefused
        | Reason::ServerUnproven
        | Reason::PeerUnproven
        | Reason::CertificateRefused
        | Reason::ServerTimeout
        | Reason::ServerFault
        | Reason::Overload
        | Reason::AuditUnavailable
        | Reason::NoRecord
        | Reason::ShuttingDown
        | Reason::Proxied
        | Reason::ClientLeft => false,
    }
}

#[test]
fn every_reason_of_decide_has_a_case() {
    let table: Table = read("decisions.yaml");
    let covered: BTreeSet<&str> = table.cases.iter().filter_map(|case| case.reason.as_deref()).collect();
    for reason in Reason::ALL {
        assert_eq!(covered.contains(reason.as_str()), is_given_by_decide(*reason), "{}", reason.as_str());
    }
}

/// Two servers: on `allow` each row's predicate is the condition of an allow rule, on `deny` of a deny rule beside
/// an allow rule for everything. One tool a row.
fn predicate_resources(rows: &[Row]) -> Resources {
    let mut yaml = String::new();
    for (name, port) in [("allow", 1), ("deny", 2)] {
        writeln!(yaml, "---\napiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: {name} }}").unwrap();
        writeln!(yaml, "spec: {{ local: {{ address: \"127.0.0.1:{port}\" }} }}").unwrap();
    }
    writeln!(yaml, "---\napiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: p }}\nspec:\n  rules:")
        .unwrap();
    writeln!(yaml, "  - {{ name: all, effect: allow, callers: [agent], servers: [deny], tools: [\"*\"] }}")
        .unwrap();
    for (at, row) in rows.iter().enumerate() {
        let arguments = format!("arguments: {{ a: {} }}", row.predicate);
        let allow = "effect: allow, callers: [agent], servers: [allow], other_arguments: allow";
        writeln!(yaml, "  - {{ name: a{at}, {allow}, tools: [t{at}], {arguments} }}").unwrap();
        let deny = "effect: deny, callers: [agent], servers: [deny]";
        writeln!(yaml, "  - {{ name: d{at}, {deny}, tools: [t{at}], {arguments} }}").unwrap();
    }
    load(&yaml)
}

#[test]
fn predicates() {
    let rows: Vec<Row> = read("predicates.yaml");
    let resources = predicate_resources(&rows);
    let (mut failed, mut calls) = (Vec::new(), 0);
    for (at, row) in rows.iter().enumerate() {
        let columns: [(&str, &[String], bool, bool); 6] = [
            ("match", &row.r#match, true, false),
            ("miss", &row.miss, false, true),
            ("absent", &row.absent, false, false),
            ("wrong_type", &row.wrong_type, false, false),
            ("colliding", &row.colliding, false, false),
            ("beyond", &row.beyond, false, false),
        ];
        for (column, all, under_allow, under_deny) in columns {
            for arguments in all {
                for (name, expected) in [("allow", under_allow), ("deny", under_deny)] {
                    let permitted = permits(&resources, name, at, arguments);
                    calls += 1;
                    if permitted != expected {
                        failed.push(format!(
                            "{} {column} {arguments} under {name}: {permitted}",
                            row.predicate
                        ));
                    }
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(calls > 200, "{calls}");
}

fn permits(resources: &Resources, name: &str, tool: usize, arguments: &str) -> bool {
    let text = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t{tool}","arguments":{arguments}}}}}"#
    );
    let mut scratch = Scratch::default();
    let message = parse(text.as_bytes(), &mut scratch, &JsonLimits::default())
        .unwrap_or_else(|e| panic!("{text}: {e}"));
    let (caller, action) = (identity("agent"), Action::Message(&message));
    let server = server(resources, name);
    match decide(Ok(&caller), server.captured(), action, Ids::default(), &resources.policies, Mode::default())
    {
        Decision::Permitted(_) => true,
        Decision::Denied(_) => false,
    }
}

#[test]
fn every_predicate_has_every_column() {
    let rows: Vec<Row> = read("predicates.yaml");
    for name in Predicate::NAMES {
        let beginning = format!("{{ {name}:");
        let of_name: Vec<&Row> = rows.iter().filter(|row| row.predicate.starts_with(&beginning)).collect();
        let some = |column: fn(&Row) -> &Vec<String>| of_name.iter().any(|row| !column(row).is_empty());
        assert!(some(|row| &row.r#match) && some(|row| &row.miss) && some(|row| &row.colliding), "{name}");
        // `absent` is what absent answers; every type answers `type`.
        assert!(name == "absent" || some(|row| &row.absent), "{name}");
        assert!(matches!(name, "absent" | "type") || some(|row| &row.wrong_type), "{name}");
    }
}

#[test]
fn examples_are_clean() {
    for (example, sentence) in [
        (
            "demo",
            "allow demo-agent to call tool echo on everything when message fits the regular expression \
             [A-Za-z0-9 ,.!?-]*, has a length of at most 40 and is of type string and no other argument is given \
             [demo/echo-short]",
        ),
        (
            "docs",
            "allow research-agent to call tools search and read_* on docs when path is within /srv/docs, /filter/limit \
             is at most 100, encoding is anything and no other argument is given [docs/researchers-search]",
        ),
    ] {
        let dir = policies().join("examples").join(example);
        let agent = load_agent(&dir).unwrap_or_else(|findings| panic!("{}", shown(&findings)));
        let resources = load_resources(&dir.join("resources"), &agent)
            .unwrap_or_else(|findings| panic!("{}", shown(&findings)));
        assert!(resources.warnings.is_empty(), "{}", shown(&resources.warnings));
        let text = explain(&agent, &resources);
        assert!(text.contains(sentence), "{text}");
    }
}
