//! Ways to a server on another host that do not lead through both agents.

use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{Connection, free_address};

use crate::hosts::Hosts;

/// What OpenSSL says of a handshake at the peer port.
fn openssl(hosts: &Hosts, words: &[&str]) -> Result<String> {
    let peer = hosts.peer.to_string();
    let mut command = hosts.callers.netns.command(&["openssl", "s_client", "-connect", &peer]);
    let output = command.args(words).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_port_for_agents_speaks_tls_1_3_with_who_proves_who_it_is() -> Result<()> {
    let hosts = Hosts::set("", "")?;
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
fn from_another_host_there_is_no_way_around_the_agents() -> Result<()> {
    let hosts = Hosts::set("", "")?;
    let server = hosts.address;
    // Who is not captured there, and who has its own ideas of where the server is.
    let mapped = format!("[::ffff:{}]:{}", server.ip(), server.port()).parse::<SocketAddr>()?;
    for to in [server, mapped] {
        let outcome =
            hosts.callers.netns.within(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2))?));
        ensure!(outcome.is_err(), "{to} is reached from outside");
    }
    // A caller whose App ID the node was not registered for has no SVID to show.
    let mut stranger = hosts.callers.caller("stranger")?;
    let mut connection = Connection::new(stranger.connect(server)?.stream, server)?;
    let reply = connection.post(&call(1, "echo", &json!({})))?;
    ensure!(reply.status == 502, "{}", reply.text());
    let line = hosts.callers.agent.audit(1)?.remove(0);
    ensure!(text(&line, "reason") == "peer_unproven", "{line:#}");
    // One that it was registered for cannot say that it is another.
    let (_caller, mut connection) = hosts.caller("writer")?;
    let body = call(2, "add", &json!({ "a": 1, "b": 2 }));
    let forged = "dapr-caller-app-id: reader\r\nX-Toolgate-Caller: reader\r\n\
                  X-Forwarded-Client-Cert: URI=spiffe://example.org/ns/default/reader\r\n";
    connection.request("POST", forged, &body)?;
    let reply = connection.reply()?;
    ensure!(reply.text().contains("policy does not permit this"), "{}", reply.text());
    ensure!(hosts.server.requests_now().is_empty(), "something reached the server");
    Ok(())
}

#[test]
fn another_authority_of_the_same_name_is_none() -> Result<()> {
    // Its agent has an authority of its own: the same trust domain, the same App ID, another root.
    let hosts = Hosts::set("", "")?;
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
