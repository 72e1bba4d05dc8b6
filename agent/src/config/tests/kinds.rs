//! What the files of resources say wrong, kind by kind.

use super::*;

/// What comes behind the kind.
fn of_kind(text: &str) -> String {
    format!("{HEAD}{text}")
}

#[test]
fn documents_that_are_refused() {
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
}

#[test]
fn workloads_that_are_refused() {
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
    ];
    check(&owned(table, of_kind), refused);
}

#[test]
fn servers_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
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
            "Server\nmetadata: { name: s }\nspec: { external: { url: \"https://a.example/mcp\", endpoints: [\"10.0.0.2:443\", \"srv:b..example\", \"b.example\", \"B.example.:443\", \"b.example:443\"] } }\n",
            &[
                "4:63 `10.0.0.2` is no public address (private)",
                "4:79 `b..example` is no name of a service",
                "4:97 `b.example` is no address with a port",
                "4:128 this is named twice",
            ],
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
    ];
    check(&owned(table, of_kind), refused);
}

#[test]
fn policies_that_are_refused() {
    let table: &[(&str, &[&str])] = &[
        ("Policy\nmetadata: { name: p }\nspec: {}\n", &["0:0 policy `p` has no rules"]),
        ("Policy\nmetadata: { name: p }\nspec: { rules: [] }\n", &["4:16 policy `p` has no rules"]),
        (
            "Policy\nmetadata: { name: p }\nspec: { mode: off, rules: [{}] }\n",
            &["4:15 `off` is no value of `mode`", "4:28 `name` is missing"],
        ),
    ];
    check(&owned(table, of_kind), refused);
}
