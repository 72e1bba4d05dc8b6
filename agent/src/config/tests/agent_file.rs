//! What `toolgate.yaml` says wrong, and what it says.

use super::*;

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
