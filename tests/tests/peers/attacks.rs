//! Who is not who it should be, at either end of the way between two agents.

use std::net::TcpStream;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Connection, free_address};

use crate::hosts::{Hosts, decided};

/// What OpenSSL says of a handshake at the peer port.
fn openssl(hosts: &Hosts, words: &[&str]) -> Result<String> {
    let peer = hosts.peer.to_string();
    let mut command = hosts.callers.netns.command(&["openssl", "s_client", "-connect", &peer]);
    let output = command.args(words).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_port_for_agents_speaks_tls_1_3_with_who_proves_who_it_is() -> Result<()> {
    let hosts = Hosts::set()?;
    let name = toolgate::peer::server_name(&toolgate_core::identity::Identity::new(
        "example.org",
        "default",
        "docs",
    )?);
    let own = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
        ])
        .args(["-subj", "/CN=reader", "-addext", "subjectAltName=URI:spiffe://example.org/ns/default/reader"])
        .args(["-keyout", "/dev/stdout"])
        .stderr(Stdio::null())
        .output()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("own.pem");
    std::fs::write(&file, own.stdout)?;
    let file = file.display().to_string();
    let alpn = ["-servername", &name, "-alpn", "toolgate/1"];
    let cases: [(&str, Vec<&str>, &str); 5] = [
        ("TLS 1.2", [&alpn[..], &["-tls1_2"]].concat(), "protocol version"),
        ("no certificate", [&alpn[..], &["-ign_eof"]].concat(), "certificate required"),
        ("its own certificate", [&alpn[..], &["-ign_eof", "-cert", &file, "-key", &file]].concat(), "alert"),
        (
            "another server",
            vec!["-servername", "docs.example.org", "-alpn", "toolgate/1"],
            "no peer certificate",
        ),
        ("no name", vec!["-noservername", "-alpn", "toolgate/1"], "no peer certificate"),
    ];
    for (case, words, expected) in cases {
        let said = openssl(&hosts, &words)?;
        ensure!(said.contains(expected), "{case}: {said}");
    }
    // Plain HTTP to it is no way either.
    let address = hosts.peer;
    let answered = hosts.callers.netns.within(|| {
        let mut connection = Connection::new(TcpStream::connect(address)?, address)?;
        connection.post(&call(1, "echo", &json!({})))
    });
    ensure!(answered.is_err(), "{answered:?}");
    ensure!(hosts.server.requests_now().is_empty(), "something reached the server");
    hosts.servers.counts("toolgate_connections_refused_total", &["reason=\"peer_unproven\""], 6.0)
}

#[test]
fn a_node_has_no_callers_but_those_that_it_was_registered_for() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_caller, mut connection) = hosts.caller("stranger")?;
    let reply = connection.post(&call(1, "echo", &json!({})))?;
    ensure!(reply.status == 502, "{}", reply.text());
    let line = hosts.callers.agent.audit(1)?.remove(0);
    ensure!(text(&line, "reason") == "peer_unproven", "{line:#}");
    ensure!(
        text(&line, "detail").contains("is registered for `reader`, `writer`, not for `stranger`"),
        "{line:#}"
    );
    ensure!(hosts.server.requests_now().is_empty(), "something reached the server");
    Ok(())
}

/// What says who calls, or is taken for it by some server. In the spellings that servers read as the same, too.
const FORGED: [&str; 9] = [
    "dapr-caller-app-id: reader",
    "dapr_caller_app_id: reader",
    "Dapr-Caller-Namespace: default",
    "X-Toolgate-Caller: reader",
    "x_toolgate_caller: reader",
    "X-Forwarded-Client-Cert: URI=spiffe://example.org/ns/default/reader",
    "X_Forwarded_Client_Cert: URI=spiffe://example.org/ns/default/reader",
    "X-Forwarded-For: 192.0.2.7",
    "Forwarded: for=192.0.2.7;by=reader",
];

#[test]
fn who_calls_is_who_the_kernel_saw_whatever_headers_say() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_caller, mut connection) = hosts.caller("writer")?;
    let forged: String = FORGED.iter().flat_map(|header| [*header, "\r\n"]).collect();
    connection.request("POST", &forged, &call(1, "echo", &json!({})))?;
    ensure!(is_result(&connection.reply()?)?);
    // Only the reader may.
    connection.request("POST", &forged, &call(2, "add", &json!({ "a": 1, "b": 2 })))?;
    let denied = connection.reply()?;
    ensure!(denied.text().contains("policy does not permit this"), "{}", denied.text());
    for line in decided(&hosts.servers, 2)? {
        ensure!(text(&line, "caller/spiffe_id") == "spiffe://example.org/ns/default/writer", "{line:#}");
    }
    let reached = hosts.server.request()?;
    let lower = reached.head.to_lowercase().replace('_', "-");
    for header in FORGED {
        let name = header.split(':').next().unwrap_or_default().to_lowercase().replace('_', "-");
        ensure!(!lower.contains(&format!("\n{name}:")), "{header} reached the server: {}", reached.head);
    }
    ensure!(hosts.server.requests_now().is_empty(), "more than one call reached the server");
    Ok(())
}

#[test]
fn another_authority_of_the_same_name_is_none() -> Result<()> {
    // Its agent has an authority of its own: the same trust domain, the same App ID, another root.
    let hosts = Hosts::set()?;
    let other = free_address()?;
    ensure!(other != hosts.peer);
    let netns = toolgate_tests::Netns::new()?;
    let [here, _] = netns.link()?;
    let _ = here;
    let resources = format!(
        "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
         spec: {{ peer: {{ address: \"{}\", endpoints: [\"{}\"] }} }}\n",
        hosts.address, hosts.peer
    );
    netns.run(&["ip", "route", "add", "default", "via", &here.to_string()])?;
    let setup = toolgate_tests::Setup { resources: &resources, ..toolgate_tests::Setup::default() };
    let node = toolgate_tests::Node::start(netns, setup)?;
    let mut caller = node.caller("reader")?;
    let mut connection = Connection::new(caller.connect(hosts.address)?.stream, hosts.address)?;
    let reply = connection.post(&call(1, "echo", &json!({})))?;
    ensure!(reply.status == 502, "{}", reply.text());
    let line = node.agent.audit(1)?.remove(0);
    ensure!(text(&line, "detail").contains("signed by no root of trust domain"), "{line:#}");
    ensure!(hosts.server.requests_now().is_empty(), "something reached the server");
    Ok(())
}
