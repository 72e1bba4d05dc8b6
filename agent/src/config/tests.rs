//! Every error that a file can cause, with its place, and what good files become.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::diagnostic::Severity;
use super::source::Source;
use super::words::Findings;
use super::*;

/// Long enough for any machine; a test waits so long only when it fails.
const WAIT_MAX: Duration = Duration::from_secs(20);

fn source(text: &str) -> Source {
    Source { file: "x.yaml".into(), text: text.to_owned() }
}

fn compile(text: &str) -> Result<Resources, Vec<Diagnostic>> {
    resources::compile(&[source(text)], &AgentConfig::default(), Findings::default())
}

/// `line:column message` of each finding of one severity.
fn shown(findings: &[Diagnostic], severity: Severity) -> Vec<String> {
    let chosen = findings.iter().filter(|finding| finding.severity == severity);
    chosen.map(|finding| format!("{}:{} {}", finding.line, finding.column, finding.message)).collect()
}

/// Each text with the beginnings of the errors that it must cause, in the order of the report.
fn check(table: &[(String, Vec<String>)], read: impl Fn(&str) -> Vec<Diagnostic>) {
    let mut failed = Vec::new();
    for (text, expected) in table {
        let errors = read(text);
        let got = shown(&errors, Severity::Error);
        let fits =
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, want)| got.starts_with(want));
        if !fits || errors.iter().any(|error| error.line > 0 && error.excerpt.is_none()) {
            failed.push(format!("{text}\n  got      {got:#?}\n  expected {expected:#?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn owned(table: &[(&str, &[&str])], whole: impl Fn(&str) -> String) -> Vec<(String, Vec<String>)> {
    table
        .iter()
        .map(|(text, errors)| (whole(text), errors.iter().map(|&one| one.to_owned()).collect()))
        .collect()
}

fn refused(text: &str) -> Vec<Diagnostic> {
    compile(text).expect_err(text)
}

#[test]
fn default_file_states_the_defaults() {
    assert_eq!(agent::parse(&source(DEFAULT)), Ok(AgentConfig::default()));
    assert_eq!(agent::parse(&source("# nothing\n")), Ok(AgentConfig::default()));
}

#[test]
fn agent_settings_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("trust_domian: x\n", &["1:1 unknown key `trust_domian`"]),
        ("trust_domain: Example.org\n", &["1:15 `Example.org` is no trust domain"]),
        ("trust_domain:\n", &["1:13 a value is missing"]),
        ("capture:\n", &["1:8 keys and values belong here"]),
        ("capture: { tls: read }\n", &["1:17 `read` is no value of `tls`"]),
        (
            "capture: { tls_exclude: [a.example] }\n",
            &["1:25 `tls_exclude` says nothing without `tls: inspect`"],
        ),
        (
            "capture: { tls: inspect, tls_exclude: [\"*.example\"] }\n",
            &["1:40 `*.example` is neither a host's name nor an address"],
        ),
        ("capture: { tls: inspect, tls_roots: roots.pem }\n", &["1:37 `roots.pem` is no absolute path"]),
        ("capture: { tls: inspect, tls_roots: /nowhere }\n", &["1:37 cannot read it"]),
        ("capture: { agent_loss: open }\n", &["1:24 `open` is no value of `agent_loss`"]),
        ("capture: { existing: stop }\n", &["1:22 `stop` is no value of `existing`"]),
        ("capture: { canary: soon }\n", &["1:20 `soon` is no length of time"]),
        ("capture: { undeclared: allow }\n", &["1:24 `allow` is no value of `undeclared`"]),
        ("capture: { unrecognised: drop }\n", &["1:26 `drop` is no value of `unrecognised`"]),
        ("capture: { destinations: some }\n", &["1:26 `some` is no value of `destinations`"]),
        ("capture: { destinations: [10.0.0.1/8] }\n", &["1:27 `10.0.0.1/8` is no network"]),
        ("capture: { exclude: [db:5432] }\n", &["1:22 `db:5432` is no network"]),
        ("capture: { exclude: db }\n", &["1:21 a list belongs here"]),
        ("capture: { cgroups: [\"a/**\"] }\n", &["1:22 `a/**` has `**`"]),
        ("listen: { peer: 70000 }\n", &["1:17 this is neither a port nor an address"]),
        ("listen: { peer: \"10.0.0.2\" }\n", &["1:17 this is neither a port nor an address"]),
        ("listen: { peer: true }\n", &["1:17 this is neither a port nor an address"]),
        ("identity: { source: workload-api }\n", &["1:21 there is no `socket`, and SPIFFE_ENDPOINT_SOCKET"]),
        (
            "identity: { source: workload-api, socket: \"tcp://127.0.0.1:1\" }\n",
            &["1:43 `tcp://127.0.0.1:1` is no Unix socket"],
        ),
        ("identity: { socket: /run/x.sock }\n", &["1:21 `socket` is of `source: workload-api`"]),
        (
            "identity: { source: workload-api, socket: /x, svid_ttl: 1h }\n",
            &["1:57 with that `source` it is the authority's to say"],
        ),
        (
            "identity: { source: workload-api, socket: /x }\nlisten: { workload_api: /y }\n",
            &["2:25 with `identity: { source: workload-api }` this node issues no SVIDs"],
        ),
        ("listen: { workload_api: y.sock }\n", &["1:25 `y.sock` is no absolute path"]),
        ("identity: { source: spire }\n", &["1:21 `spire` is no value of `source`"]),
        ("identity: { svid_ttl: 1s }\n", &["1:23 `1s` is no life of a certificate"]),
        ("identity: { root_ttl: 999999h }\n", &["1:23 `999999h` is no life of a certificate"]),
        ("identity: { svid_ttl: 361h }\n", &["1:23 `svid_ttl` is more than half of `issuing_ttl`"]),
        (
            "identity: { overlap: 30000h }\n",
            &["1:22 `issuing_ttl` and `overlap` are more than half of `root_ttl`"],
        ),
        ("listen: { invoke: 10.0.0.2:3500 }\n", &["1:19 `10.0.0.2:3500` is not on loopback"]),
        ("listen: { invoke: 3500 }\n", &["1:19 `3500` is no address with a port"]),
        (
            "listen: { invoke: 127.0.0.1:15020 }\n",
            &["1:19 `127.0.0.1:15020` has the port of `listen.metrics`"],
        ),
        (
            "listen: { invoke: 127.0.0.1:15001 }\n",
            &["1:19 `127.0.0.1:15001` has the port of `listen.outbound`"],
        ),
        ("listen: { outbound: 70000 }\n", &["1:21 a whole number from 0 to 65535 belongs here"]),
        ("listen: { metrics: localhost:1 }\n", &["1:20 `localhost:1` is no address with a port"]),
        ("listen: { admin: admin.sock }\n", &["1:18 `admin.sock` is no absolute path"]),
        ("audit: { sync: 100 }\n", &["1:16 `100` is no length of time"]),
        ("audit: { on_failure: allow }\n", &["1:22 `allow` is no value of `on_failure`"]),
        (
            "audit: { file: x }\nlisten: { ready: y }\n",
            &["2:18 `y` is no address", "1:16 `x` is no absolute path"],
        ),
        ("trust_domain: a\n---\ntrust_domain: b\n", &["0:0 more than one YAML document"]),
    ];
    check(&owned(table, str::to_owned), |text| agent::parse(&source(text)).expect_err(text));
}

#[test]
fn agent_settings_that_are_read() {
    let text = "capture: { cgroups: [/, /system.slice/x.service], destinations: [\"10.0.0.0/8:443\"], \
                undeclared: dangerous_allow }\naudit: { sync: 2s, on_failure: dangerous_allow }\n";
    let config = agent::parse(&source(text)).unwrap();
    let below = toolgate_core::policy::Glob::new("system.slice/x.service").unwrap();
    assert_eq!(config.capture.cgroups, [Cgroup::Root, Cgroup::Below(below)]);
    let net = "10.0.0.0/8".parse().unwrap();
    assert_eq!(config.capture.destinations, Destinations::List(vec![Destination { net, port: Some(443) }]));
    assert_eq!(config.audit.sync, Duration::from_secs(2));
    assert_eq!(config.dangerous().len(), 2);
}

#[test]
fn a_workload_api_is_named_as_spiffe_does_or_by_its_path() {
    for (given, expected) in [
        ("unix:///run/spire/agent.sock", "unix:/run/spire/agent.sock"),
        ("unix:/run/spire/agent.sock", "unix:/run/spire/agent.sock"),
        ("/run/spire/agent.sock", "unix:/run/spire/agent.sock"),
    ] {
        let text = format!("identity: {{ source: workload-api, socket: \"{given}\" }}\n");
        let config = agent::parse(&source(&text)).unwrap();
        assert_eq!(config.identity.socket.as_deref(), Some(expected), "{given}");
    }
}

const HEAD: &str = "apiVersion: toolgate/v1\nkind: ";

#[test]
fn resources_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("a: [\n", &["1:4 "]),
        ("kind: Policy\n", &["1:1 `apiVersion` is missing"]),
        ("apiVersion: v1\nkind: Policy\n", &["1:13 no version `v1` of `Policy`"]),
        ("apiVersion: toolgate/v1\nkind: Polizy\n", &["2:7 unknown kind `Polizy`"]),
        (
            "apiVersion: dapr.io/v1alpha1\nkind: MCPServer\n",
            &["2:7 kind `MCPServer` is designed but not built yet"],
        ),
        ("kind: A\nkind: B\napiVersion: x\n", &["2:1 `kind` is given twice"]),
        (
            "apiVersion: toolgate/v1\nkind: Server\nmetadata: { name: d }\n\
             spec: { local: { address: \"127.0.0.1:1\" }, transport: ws }\n---\n\
             apiVersion: toolgate/v1\nkind: Policy\nmetadata: { name: p }\n\
             spec: { rules: [{ name: a, effect: allow, callers: [x], servers: [d], tools: [t] }] }\n",
            &["4:55 `ws` is no value of `transport`"],
        ),
        ("apiVersion: &x toolgate/v1\n<<: *x\nkind: A\n", &["2:1 `<<` merges are not read here"]),
    ];
    check(&owned(table, str::to_owned), refused);
    let table: &[(&str, &[&str])] = &[
        ("Workload\nmetadata: { name: A }\nspec: {}\n", &["3:19 `A` is no valid App ID"]),
        ("Workload\nmetadata: { name: a, labels: {} }\nspec: {}\n", &["3:22 unknown key `labels`"]),
        ("Workload\nmetadata: { name: a, namespace: a.b }\nspec: {}\n", &["3:33 `a.b` is no valid App ID"]),
        ("Workload\nmetadata: { name: a }\n", &["3:1 `spec` is missing"]),
        ("Workload\nmetadata: { name: a }\nspec:\n", &["4:5 keys and values belong here"]),
        ("Workload\nmetadata: { name: a }\nspec: { selectors: { unti: x } }\n", &["4:22 unknown key `unti`"]),
        ("Workload\nmetadata: { name: a }\nspec: { tls: inspect }\n", &["4:14 this node reads nobody's TLS"]),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { unit: x.timer } }\n",
            &["4:28 `x.timer` is no service or scope"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { user: no-such-user-here } }\n",
            &["4:28 there is no user `no-such-user-here`"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { cgroup: / } }\n",
            &["4:30 every process is in the root"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { exe: bin/x } }\n",
            &["4:27 `bin/x` is no absolute path"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { exe_sha256: abc } }\n",
            &["4:34 `abc` is no SHA-256"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { container: x } }\n",
            &["4:33 keys and values belong here"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { container: {} } }\n",
            &["4:33 `container` does not say which"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { container: { id: abc, image: \"a b\" } } }\n",
            &["4:39 `abc` is no container id", "4:51 `a b` is no name of an image"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { container: { image: a@sha256:1, machine: m } } }\n",
            &[
                "4:42 `a@sha256:1` names an image by its manifest",
                "4:63 a machine has neither `id` nor `image`",
            ],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { container: { name: x } } }\n",
            &["4:35 unknown key `name`"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { configuration: x }\n",
            &["4:24 `configuration` is designed"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: {}\n---\napiVersion: toolgate/v1\nkind: Workload\nmetadata: { name: a }\nspec: {}\n",
            &["8:19 another Workload is called `a`"],
        ),
        (
            "Workload\nmetadata: { name: a }\nspec: { selectors: { user: 1 } }\n---\napiVersion: toolgate/v1\nkind: Workload\nmetadata: { name: b }\nspec: { selectors: { user: 1, cgroup: x } }\n",
            &["8:19 every process that fits one of `b` and `a` fits the other"],
        ),
        ("Server\nmetadata: { name: s }\nspec: {}\n", &["3:19 `local` is missing"]),
        ("Server\nmetadata: { name: s }\nspec: { local: {} }\n", &["4:16 `address` is missing"]),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: 127.0.0.1 } }\n",
            &["4:27 `127.0.0.1` is no address"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"0.0.0.0:80\" } }\n",
            &["4:27 nobody can connect to `0.0.0.0:80`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\", workload: w } }\n",
            &["4:52 no Workload is called `w`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: x } }\n",
            &["4:26 `x` is no URL of a server"],
        ),
        ("Server\nmetadata: { name: s }\nspec: { external: {} }\n", &["4:19 `url` is missing"]),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://u@a.example/mcp\" } }\n",
            &["4:26 `https://u@a.example/mcp` has a user in it"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example:0/mcp\" } }\n",
            &["4:26 `https://a.example:0/mcp` has no port that one can connect to"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://0x7f.1/mcp\" } }\n",
            &["4:26 `https://0x7f.1/mcp` names no host"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp?key=1\" } }\n",
            &["4:26 `/mcp?key=1` is no path as requests have it"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://169.254.169.254/mcp\" } }\n",
            &["4:26 `169.254.169.254` is no public address (link-local)"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://[::ffff:127.0.0.1]/mcp\" } }\n",
            &["4:26 `127.0.0.1` is no public address (loopback)"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp\", http_port: 0, ca_file: /nowhere, pins: [x] } }\n",
            &[
                "4:62 nobody can connect to port 0",
                "4:74 cannot read it",
                "4:91 a pin is the SHA-256 of a public key",
            ],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"http://a.example/mcp\", http_port: 80, pins: [] }, opaque: allow }\n",
            &[
                "4:61 `http_port` says nothing where the `url` is `http`",
                "4:71 `pins` says nothing where the `url` is `http`",
                "4:85 `opaque` says nothing where the `url` is `http`",
            ],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp\" }, path: /x, hosts: [y] }\n",
            &[
                "4:59 the path of an external server is in its `url`",
                "4:71 an external server has the name in its `url` alone",
            ],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp\" } }\n---\napiVersion: toolgate/v1\nkind: Server\nmetadata: { name: t }\nspec: { external: { url: \"https://A.example./mcp\" } }\n",
            &["9:19 Server `s` has this host, port and path too"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp\" } }\n---\napiVersion: toolgate/v1\nkind: Server\nmetadata: { name: t }\nspec: { external: { url: \"https://a.example/sse\" }, transport: sse }\n",
            &["9:19 Server `s` has this host and port too, and not all there is told by paths"],
        ),
        ("Server\nmetadata: { name: s }\nspec: { peer: {} }\n", &["4:15 `address` is missing"]),
        (
            "Server\nmetadata: { name: s }\nspec: { peer: { address: \"10.0.0.2:80\", endpoints: [] }, pins: warn }\n",
            &["4:52 `endpoints` is empty", "4:64 what a server offers is pinned at its own end"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { peer: { address: \"10.0.0.2:80\", endpoints: [x] } }\n",
            &["4:53 `x` is no address with a port"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:80\" }, peer: { address: \"10.0.0.2:80\" } }\n",
            &["4:51 a Server is `local`, `peer` or `external`: one of them"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\", unix: /x }, opaque: allow, transport: ws }\n",
            &["4:48 `unix` is designed", "4:80 `ws` is no value of `transport`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, pins: enforce, opaque: allow }\n",
            &["4:67 pins cannot hold in TLS that nobody reads"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { peer: { address: \"10.0.0.2:80\" }, transport: sse }\n",
            &["4:54 `transport: sse` of a server on another node is not built yet"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { peer: { address: \"10.0.0.2:80\" }, opaque: allow }\n",
            &["4:51 TLS of a client does not go on to another agent"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, pins: on }\n",
            &["4:50 `on` is no value of `pins`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, pins: enforce, hidden_characters: pass }\n",
            &["4:78 `pass` is no value of `hidden_characters`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, pins: warn, hidden_characters: deny }\n",
            &["4:75 `hidden_characters` says nothing where pins deny nothing"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, path: /a/../b }\n",
            &["4:50 `/a/../b` is no path as requests have it"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, hosts: [\"http://x\"] }\n",
            &["4:52 `http://x` is no value of a Host header"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" }, enforcement: observe }\n",
            &["4:57 `observe` is no value of `enforcement`"],
        ),
        (
            "Server\nmetadata: { name: s }\nspec: { local: { address: \"127.0.0.1:1\" } }\n---\napiVersion: toolgate/v1\nkind: Server\nmetadata: { name: t }\nspec: { app_id: s, local: { address: \"127.0.0.1:1\" } }\n",
            &[
                "9:17 another Server has the App ID `s`",
                "9:38 `127.0.0.1:1` is the address of Server `s` too",
            ],
        ),
        ("Policy\nmetadata: { name: p }\nspec: {}\n", &["0:0 policy `p` has no rules"]),
        ("Policy\nmetadata: { name: p }\nspec: { rules: [] }\n", &["4:16 policy `p` has no rules"]),
        (
            "Policy\nmetadata: { name: p }\nspec: { mode: off, rules: [{}] }\n",
            &["4:15 `off` is no value of `mode`", "4:28 `name` is missing"],
        ),
    ];
    check(&owned(table, |text| format!("{HEAD}{text}")), refused);
}

/// A server, a workload, and a policy with this rule on line 14, its keys from column 7.
fn with_rule(rule: &str) -> String {
    format!(
        "{HEAD}Server\nmetadata: {{ name: docs }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }} }}\n---\n\
         {HEAD}Workload\nmetadata: {{ name: agent }}\nspec: {{}}\n---\n\
         {HEAD}Policy\nmetadata: {{ name: p }}\nspec: {{ rules: [\n    {{ {rule} }},\n  ] }}\n"
    )
}

#[test]
fn rules_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("effect: allow", &["15:5 `name` is missing"]),
        ("name: r", &["15:5 `effect` is missing"]),
        ("name: r, effect: permit", &["15:24 `permit` is no value of `effect`"]),
        ("name: r, effect: allow", &["15:5 `callers` is missing"]),
        ("name: r, effect: allow, callers: [agent]", &["15:5 `servers` is missing"]),
        (
            "name: r, effect: allow, callers: [agent], servers: [docs]",
            &["15:5 the rule does not say what it allows"],
        ),
        ("name: r, effect: allow, callers: [], servers: [docs], tools: [a]", &["15:40 `callers` is empty"]),
        ("name: r, effect: deny, callers: [agent], servers: []", &["15:57 `servers` is empty"]),
        ("name: r, effect: deny, callers: agent, servers: [docs]", &["15:39 a list belongs here"]),
        (
            "name: r, effect: deny, callers: [a.b.c], servers: [docs]",
            &["15:40 `a.b.c` has more than one `.`"],
        ),
        ("name: r, effect: deny, callers: [\"a?\"], servers: [docs]", &["15:40 `a?` has `?`"]),
        (
            "name: r, effect: deny, callers: [agent], servers: [dosc]",
            &["15:58 no Server has the App ID `dosc`"],
        ),
        ("name: R, effect: deny, callers: [agent], servers: [docs]", &["15:13 `R` is no valid"]),
    ];
    check(&owned(table, with_rule), refused);
    // What follows the beginning of a rule that is right so far, and the column after that beginning.
    type Row<'r> = (&'r str, &'r str, &'r [(usize, &'r str)]);
    let table: &[Row<'_>] = &[
        ("allow", "tools: []", &[(7, "`tools` is empty")]),
        ("allow", "toolz: [a]", &[(0, "unknown key `toolz`")]),
        ("allow", "tools: [\"a**\"]", &[(8, "`a**` has `**`")]),
        ("allow", "tools: [\"{a,b}\"]", &[(8, "`{a,b}` has `{`")]),
        ("allow", "tools: [a], tools: [b]", &[(12, "`tools` is given twice")]),
        ("allow", "tools: [a], prompts: [b]", &[(21, "`prompts` beside another kind")]),
        ("allow", "methods: [tools/call]", &[(10, "`tools/call` allows `tools/call` whatever it names")]),
        ("allow", "methods: [\"*/*\"]", &[(10, "`*/*` allows `tools/call`")]),
        ("allow", "methods: [\"prompts/*\"]", &[(10, "`prompts/*` allows `prompts/get`")]),
        ("allow", "server_requests: []", &[(17, "`server_requests` is empty")]),
        ("allow", "server_requests: [rots]", &[(18, "servers ask for nothing called `rots`")]),
        ("allow", "server_requests: [\"*\"]", &[(18, "servers ask for nothing called `*`")]),
        ("allow", "tools: [a], server_requests: [roots]", &[(29, "`server_requests` beside another kind")]),
        ("allow", "server_requests: [roots], list: true", &[(32, "what servers ask is in no list")]),
        (
            "allow",
            "server_requests: [roots], arguments: {}",
            &[(37, "only tools and prompts have arguments")],
        ),
        ("allow", "tools: [a], token: {}", &[(19, "`token` is designed")]),
        ("allow", "tools: [a], when: { rego: x }", &[(18, "`when` is designed")]),
        ("allow", "tools: [a], list: yes", &[(18, "neither `true` nor `false`")]),
        ("deny", "tools: [a], list: true", &[(18, "a deny rule lists nothing")]),
        ("deny", "tools: [a], arguments: {}", &[(23, "a deny rule without predicates")]),
        (
            "deny",
            "tools: [a], arguments: { a: {} }, other_arguments: deny",
            &[(51, "a deny rule matches on its predicates")],
        ),
        ("allow", "tools: [a], other_arguments: allow", &[(29, "without `arguments` any")]),
        ("allow", "resources: [a], arguments: {}", &[(27, "only tools and prompts have arguments")]),
        ("deny", "arguments: { a: { equals: 1 } }", &[(11, "only tools and prompts have arguments")]),
        ("allow", "tools: [a], arguments:", &[(21, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: }", &[(26, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: { within: } }", &[(36, "a value is missing")]),
        ("allow", "tools: [a], arguments: { a: { any: } }", &[(33, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: x }", &[(28, "keys and values belong here")]),
        ("allow", "tools: [a], arguments: { a: {}, a: {} }", &[(32, "`a` is given twice")]),
        ("allow", "tools: [a], arguments: { a: { equal: 1 } }", &[(30, "unknown key `equal`")]),
        (
            "allow",
            "tools: [a], arguments: { a: { equals: [1] } }",
            &[(30, "invalid type: sequence, expected a text")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { equals: 9007199254740992 } }",
            &[(38, "9007199254740992 is beyond")],
        ),
        ("allow", "tools: [a], arguments: { a: { in: [] } }", &[(34, "`in` is empty")]),
        ("allow", "tools: [a], arguments: { a: { regex: \"(\" } }", &[(37, "`(` is no regular expression")]),
        (
            "allow",
            "tools: [a], arguments: { a: { regex: \"a)|(b\" } }",
            &[(37, "`a)|(b` is no regular expression")],
        ),
        ("allow", "tools: [a], arguments: { a: { within: srv } }", &[(38, "`srv` is no absolute path")]),
        (
            "allow",
            "tools: [a], arguments: { a: { within: /srv/../x } }",
            &[(38, "`/srv/../x` is no absolute path")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { max: .nan } }",
            &[(35, "value `.nan` is not a finite number")],
        ),
        ("allow", "tools: [a], arguments: { a: { max: 1, min: 2 } }", &[(43, "`min` is above `max`")]),
        ("allow", "tools: [a], arguments: { a: { max: x } }", &[(35, "a number belongs here")]),
        (
            "allow",
            "tools: [a], arguments: { a: { max_length: -1 } }",
            &[(42, "a whole number, zero or more, belongs here")],
        ),
        (
            "allow",
            "tools: [a], arguments: { a: { max_length: forty } }",
            &[(42, "a whole number, zero or more")],
        ),
        ("allow", "tools: [a], arguments: { a: { type: text } }", &[(36, "`text` is no JSON type")]),
        ("allow", "tools: [a], arguments: { a: { any: { glob: \"**\" } } }", &[(43, "`**` has `**`")]),
        ("allow", "tools: [a], arguments: { /a~2: {} }", &[(25, "`/a~2` is no JSON Pointer")]),
        ("allow", "tools: [a], arguments: { \"\": {} }", &[(25, "an empty key names no argument")]),
    ];
    let rows = table.iter().map(|(effect, rest, expected)| {
        let beginning = format!("name: r, effect: {effect}, callers: [agent], servers: [docs], ");
        let place = |at: usize| if at == usize::MAX { 5 } else { 7 + beginning.len() + at };
        let errors = expected.iter().map(|(at, message)| format!("15:{} {message}", place(*at))).collect();
        (with_rule(&format!("{beginning}{rest}")), errors)
    });
    check(&rows.collect::<Vec<_>>(), refused);
    let twice = with_rule(
        "name: r, effect: deny, callers: [agent], servers: [docs] }, { name: r, effect: deny, callers: [agent], servers: [docs]",
    );
    check(&[(twice, vec!["15:75 another rule of this policy is called `r`".to_owned()])], refused);
}

#[test]
fn an_endpoint_of_daprs_is_an_external_server() {
    let endpoint = |spec: &str| {
        format!("apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{ name: api }}\nspec: {spec}\n")
    };
    let resources = compile(&endpoint("{ baseUrl: \"https://api.example.com:8443/\" }")).unwrap();
    let server = &resources.servers[0];
    let url = server.external().map(ToString::to_string);
    assert_eq!((server.identity.app_id(), &*server.path), ("api", "/mcp"));
    assert_eq!(url.as_deref(), Some("https://api.example.com:8443"));
    let table: &[(&str, &[&str])] = &[
        ("{}", &["3:19 `baseUrl` is missing"]),
        ("{ baseUrl: api.example.com }", &["4:18 `api.example.com/mcp` is no URL of a server"]),
        ("{ baseUrl: \"https://api.example.com/v1\" }", &["4:18 `https://api.example.com/v1` has a path"]),
        (
            "{ baseUrl: \"https://api.example.com\", headers: [{ name: a, value: b }] }",
            &["4:54 `headers` is designed but not built yet"],
        ),
        (
            "{ baseUrl: \"https://api.example.com\", clientTLS: {} }",
            &["4:56 `clientTLS` is designed but not built yet"],
        ),
        ("{ baseUrl: \"https://127.0.0.1\" }", &["4:18 `127.0.0.1` is no public address"]),
        ("{ url: \"https://api.example.com\" }", &["4:9 unknown key `url`"]),
    ];
    check(&owned(table, endpoint), refused);
    let ours = endpoint("{ baseUrl: \"https://a.example\" }").replace("dapr.io/v1alpha1", "toolgate/v1");
    check(&[(ours, vec!["1:13 no version `toolgate/v1` of `HTTPEndpoint`".to_owned()])], refused);
}

#[test]
fn warnings_do_not_stop() {
    let table: &[(&str, &[&str])] = &[
        (
            "name: r, effect: allow, callers: [agnet], servers: [docs], tools: [a]",
            &["15:41 no Workload is called `agnet`"],
        ),
        (
            "name: r, effect: allow, callers: [agent], servers: [docs, \"x*\"], tools: [a]",
            &["15:65 no Server has the App ID `x*`"],
        ),
        (
            "name: r, effect: allow, callers: [\"*\", spiffe://other.org/ns/a/b], servers: [\"*\"], tools: [a]",
            &[],
        ),
    ];
    for (rule, expected) in table {
        let resources = compile(&with_rule(rule)).unwrap_or_else(|findings| panic!("{rule}: {findings:#?}"));
        let got = shown(&resources.warnings, Severity::Warning);
        assert!(got.len() == expected.len(), "{rule}: {got:?}");
        assert!(
            got.iter().zip(*expected).all(|(got, expected)| got.starts_with(expected)),
            "{rule}: {got:?}"
        );
    }
    let lonely = format!(
        "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}, enforcement: dangerous_observe }}\n"
    );
    let got = shown(&compile(&lonely).unwrap().warnings, Severity::Warning);
    let expected = [
        "3:19 no policy names `s`: every call to it is denied",
        "4:57 what policy would deny on this server passes",
    ];
    assert_eq!(got, expected);
    let exe =
        format!("{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ exe: /no/such/file }} }}\n");
    let resources = compile(&exe).unwrap();
    assert_eq!(shown(&resources.warnings, Severity::Warning).len(), 1);
    assert_eq!(resources.workloads[0].selectors.exe.as_ref().unwrap().file, None);
}

#[test]
fn pins_are_read_and_explained() {
    use toolgate_core::pin::{HiddenCharacters, Mode, Pinning};
    let (deny, allow) = (HiddenCharacters::Deny, HiddenCharacters::Allow);
    let table = [
        ("", Mode::Off, allow, ""),
        (", pins: off", Mode::Off, allow, ""),
        (", pins: warn", Mode::Warn, allow, "what nobody approved passes and is recorded (pins: warn)"),
        (", pins: enforce", Mode::Enforce, deny, "called (pins: enforce), nothing with hidden characters"),
        (", pins: first_use", Mode::FirstUse, deny, "first seen is (pins: first_use), nothing with hidden"),
        (", pins: enforce, hidden_characters: allow", Mode::Enforce, allow, "also with hidden characters"),
    ];
    for (keys, mode, hidden, expected) in table {
        let text = format!(
            "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}{keys} }}\n"
        );
        let resources = compile(&text).unwrap_or_else(|findings| panic!("{keys}: {findings:#?}"));
        assert_eq!(resources.servers[0].pinning, Pinning { mode, hidden }, "{keys}");
        let explained = explain(&AgentConfig::default(), &resources);
        assert!(explained.contains(expected), "{keys}: {explained}");
        assert_eq!(explained.contains("pins"), mode != Mode::Off, "{keys}: {explained}");
    }
}

#[test]
fn a_transport_is_read_with_its_own_path_and_explained() {
    use toolgate_core::decision::Transport;
    let table = [
        ("", Transport::Streamable, "path /mcp;"),
        (", transport: streamable", Transport::Streamable, "path /mcp;"),
        (", transport: sse", Transport::Sse, "path /sse (HTTP with SSE);"),
        (", transport: sse, path: /events", Transport::Sse, "path /events (HTTP with SSE);"),
    ];
    for (keys, transport, expected) in table {
        let text = format!(
            "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}{keys} }}\n"
        );
        let resources = compile(&text).unwrap_or_else(|findings| panic!("{keys}: {findings:#?}"));
        assert_eq!(resources.servers[0].transport, transport, "{keys}");
        let explained = explain(&AgentConfig::default(), &resources);
        assert!(explained.contains(expected), "{keys}: {explained}");
    }
}

/// The warnings of one Workload with these selectors.
fn warned(selectors: &str) -> Vec<Diagnostic> {
    let text = format!("{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ {selectors} }} }}\n");
    compile(&text).unwrap_or_else(|findings| panic!("{selectors}: {findings:#?}")).warnings
}

#[test]
fn interpreters_and_scripts_are_warned_of() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("python3.12"), "\x7fELF").unwrap();
    symlink(at("python3.12"), at("agent")).unwrap();
    std::fs::write(at("tool"), "\x7fELF").unwrap();
    std::fs::write(at("script"), "#! /usr/bin/env python3\nprint()\n").unwrap();
    let (any, narrow) = ("runs whatever it is given", "add the `unit`, `cgroup`, `user` or `container`");
    let digest = "0".repeat(64);
    let table: &[(String, Option<(&str, &str)>)] = &[
        (format!("exe: {}", at("python3.12")), Some((any, narrow))),
        (format!("exe: {}", at("agent")), Some((any, narrow))),
        (format!("exe: {}, exe_sha256: \"{digest}\"", at("agent")), Some((any, narrow))),
        (format!("exe: {}, unit: a.service", at("agent")), None),
        (format!("exe: {}, cgroup: a", at("agent")), None),
        (format!("exe: {}, user: 1", at("agent")), None),
        (format!("exe: {}, container: {{ machine: a }}", at("agent")), None),
        (format!("exe: {}", at("tool")), None),
        (
            format!("exe: {}, user: 1", at("script")),
            Some(("is a script, so no process fits", "write `exe: /usr/bin/env`")),
        ),
    ];
    for (selectors, expected) in table {
        let warnings = warned(selectors);
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{selectors}: {warnings:#?}");
        if let (Some((message, help)), [warning]) = (expected, warnings.as_slice()) {
            assert!(warning.message.contains(message), "{selectors}: {warning}");
            assert!(warning.help.as_ref().is_some_and(|text| text.contains(help)), "{selectors}: {warning}");
            assert_eq!((warning.line, warning.column), (4, 27), "{selectors}: {warning}");
        }
    }
}

#[test]
fn findings_look_like_those_of_rustc() {
    let text = with_rule("name: r, effect: allow, callers: [agent], servers: [dosc], tools: [a]");
    let errors = compile(&text).unwrap_err();
    let expected = "\
error: no Server has the App ID `dosc`
  --> x.yaml:15:59
   |
15 |     { name: r, effect: allow, callers: [agent], servers: [dosc], tools: [a] },
   |                                                           ^^^^
   = help: did you mean `docs`?
";
    assert_eq!(errors[0].to_string(), expected);
}

#[test]
fn a_directory_is_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentConfig::default();
    assert_eq!(load_resources(dir.path(), &agent).unwrap().servers.len(), 0);
    let server = |name: &str, port: u16| {
        format!(
            "{HEAD}Server\nmetadata: {{ name: {name} }}\nspec: {{ local: {{ address: \"127.0.0.1:{port}\" }} }}\n"
        )
    };
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    write("b.yaml", &server("b", 2));
    write("a.yml", &server("a", 1));
    write(".hidden.yaml", "nonsense: [");
    write("README", "nonsense: [");
    let good = load_resources(dir.path(), &agent).unwrap();
    let names: Vec<&str> = good.servers.iter().map(|server| server.identity.app_id()).collect();
    assert_eq!(names, ["a", "b"]);
    write("c.yaml", "nonsense: [");
    assert_eq!(load_resources(dir.path(), &agent).unwrap_err().len(), 1);
    write("c.yaml", "");
    assert!(load_resources(dir.path(), &agent).unwrap().generation > good.generation);
    let missing = load_resources(&dir.path().join("missing"), &agent).unwrap_err();
    assert!(missing[0].to_string().contains("cannot read the directory"), "{}", missing[0]);
    assert!(load_agent(&dir.path().join("missing")).is_err());
    assert_eq!(load_agent(dir.path()), Ok(agent));
}

#[test]
fn changes_are_seen_however_they_are_made() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("resources");
    for name in ["resources", "v1", "v2"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
    }
    let (v1, v2) = (root.path().join("v1"), root.path().join("v2"));
    std::fs::write(v1.join("linked.yaml"), "one").unwrap();
    std::fs::write(v2.join("linked.yaml"), "two").unwrap();
    let link = |target: &Path, name: &str| {
        let temporary = root.path().join("link.tmp");
        std::os::unix::fs::symlink(target, &temporary).unwrap();
        std::fs::rename(&temporary, dir.join(name)).unwrap();
    };
    link(&v1.join("linked.yaml"), "linked.yaml");
    let (changed, changes) = mpsc::channel();
    let watch = watch::watch(&dir, move || changed.send(()).unwrap()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let steps: [(&str, &dyn Fn()); 6] = [
        ("created", &|| write("a.yaml", "one")),
        ("written", &|| write("a.yaml", "two")),
        ("renamed into place", &|| {
            std::fs::write(root.path().join("a.tmp"), "three").unwrap();
            std::fs::rename(root.path().join("a.tmp"), dir.join("a.yaml")).unwrap();
        }),
        ("written behind a link", &|| std::fs::write(v1.join("linked.yaml"), "three").unwrap()),
        ("link swapped", &|| link(&v2.join("linked.yaml"), "linked.yaml")),
        ("removed", &|| std::fs::remove_file(dir.join("a.yaml")).unwrap()),
    ];
    for (name, step) in steps {
        step();
        assert!(changes.recv_timeout(WAIT_MAX).is_ok(), "{name}");
        // One change may come as two where the machine is slow between its parts.
        while changes.try_recv().is_ok() {}
    }
    drop(watch);
    assert!(changes.recv().is_err());
}

/// Whether this process holds a file that has no name any more.
fn is_held(path: &Path) -> bool {
    let gone = format!("{} (deleted)", path.display());
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors.flatten().any(|one| std::fs::read_link(one.path()).is_ok_and(|link| link == Path::new(&gone)))
}

#[test]
fn another_file_never_gets_the_inode_of_a_selected_executable() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("agent");
    std::fs::write(&path, "the selected one").unwrap();
    let text = format!(
        "{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ exe: {} }} }}\n",
        path.display()
    );
    let resources = compile(&text).unwrap();
    let selected = resources.workloads[0].selectors.exe.as_ref().unwrap().file.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(is_held(&path));
    for at in 0..16 {
        let other = dir.path().join(at.to_string());
        std::fs::write(&other, "made by someone else").unwrap();
        assert_ne!(std::fs::metadata(&other).unwrap().ino(), selected.ino);
    }
    drop(resources);
    assert!(!is_held(&path), "no longer than the resources live");
}
