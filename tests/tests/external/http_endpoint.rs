//! Dapr's HTTPEndpoint: a server outside that asks who speaks, and gets headers which its callers do not know.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::http::{Reply, header};
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Agent, Connection, Front, Peer, Server, Setup, free_address};

use crate::stage::{NAME, Outside, PUBLIC, exec};

/// What its owner gave for these calls.
const SECRET: &str = "the-owners-own-secret";
const HEADERS: &str = "[{ name: X-Api-Key, value: the-owners-own-secret }, \
                        { name: Authorization, value: Bearer the-owners-own-secret }]";

/// `clientTLS`, with a certificate of these authorities; of none: without one.
fn client_tls(outside: &Outside, shown: Option<[String; 2]>) -> String {
    let text = |pem: &str| format!("{{ value: {pem:?} }}");
    let pair = shown.map(|[certificate, key]| {
        format!(", certificate: {}, privateKey: {}", text(&certificate), text(&key))
    });
    format!("{{ rootCA: {}{} }}", text(&outside.authority.pem), pair.unwrap_or_default())
}

/// An agent with that endpoint, and where calls by App ID come to it.
fn start(outside: &mut Outside, spec: &str, others: &[(&str, &str)]) -> Result<(Agent, SocketAddr)> {
    let door = free_address()?;
    let resources = outside.endpoint(spec, others);
    let agent = outside
        .agent("{ url: \"http://unused.example/mcp\" }", Setup { invoke: Some(door), ..Setup::default() })?;
    let before = agent.process().lines();
    agent.write_resources(&resources)?;
    agent.process().line_from(before, "configuration reloaded")?;
    Ok((agent, door))
}

/// One call by App ID, to that path.
fn ask(connection: &mut Connection, (door, path): (SocketAddr, &str), headers: &str) -> Result<Reply> {
    let body = call(1, "echo", &json!({ "text": "x" }));
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {door}\r\n{headers}Content-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(&[head.as_bytes(), &body].concat())?;
    connection.reply()
}

#[test]
fn its_server_is_shown_the_certificate_and_gets_the_headers_and_nobody_else_does() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(Server::start)?;
    let at = SocketAddr::new(PUBLIC[0].into(), 443);
    let _front = outside.netns.within(|| Front::asking(at, server.address, &outside.authority, NAME))?;
    let other = outside.server(PUBLIC[1], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let shown = outside.authority.client("toolgate")?;
    let spec = format!(
        "{{ baseUrl: \"https://{NAME}/v1/tools\", headers: {HEADERS}, clientTLS: {} }}",
        client_tls(&outside, Some(shown))
    );
    let url = format!("http://{}/mcp", PUBLIC[1]);
    let (agent, door) = start(&mut outside, &spec, &[("other", &url)])?;
    let mut caller = agent.caller("reader")?;
    let mut connection = caller.http(door)?;
    // Of what a caller says under these names nothing arrives, however they are spelled.
    let forged = "X-Api-Key: forged\r\nx_api_key: forged\r\nAuthorization: Bearer forged\r\n";
    let (by_path, by_url) =
        ("/v1.0/invoke/docs/method/mcp?a=b", format!("/v1.0/invoke/https://{NAME}/method/v1/tools/mcp"));
    for (path, headers, arrives) in [
        ("/mcp", format!("dapr-app-id: docs\r\n{forged}"), "/v1/tools/mcp"),
        (by_path, forged.to_owned(), "/v1/tools/mcp?a=b"),
        (&*by_url, forged.to_owned(), "/v1/tools/mcp"),
    ] {
        let reply = ask(&mut connection, (door, path), &headers)?;
        ensure!(is_result(&reply)?, "{path}: {} {:#?}", reply.text(), agent.audit(1)?);
        ensure!(!reply.head.contains(SECRET) && !reply.text().contains(SECRET), "{}", reply.head);
        let head = server.request()?.head;
        ensure!(head.starts_with(&format!("POST {arrives} HTTP/1.1\r\n")), "{head}");
        ensure!(header(&head, "x-api-key") == Some(SECRET), "{head}");
        ensure!(header(&head, "authorization") == Some(&format!("Bearer {SECRET}")), "{head}");
        ensure!(!head.contains("forged") && head.matches(SECRET).count() == 2, "{head}");
        ensure!(header(&head, "host") == Some(NAME), "{head}");
    }
    // Behind its own path alone.
    for path in ["/v1/tools/mcp", "/other"] {
        let reply = ask(&mut connection, (door, path), "dapr-app-id: docs\r\n")?;
        ensure!(reply.status == 403, "{path}: {}", reply.text());
    }
    let mut connection = caller.http(door)?;
    let own = "X-Api-Key: own\r\n";
    let reply = ask(&mut connection, (door, "/mcp"), &format!("dapr-app-id: other\r\n{own}"))?;
    ensure!(is_result(&reply)?, "{}", reply.text());
    let head = other.request()?.head;
    ensure!(header(&head, "x-api-key") == Some("own") && !head.contains(SECRET), "{head}");
    ensure!(server.requests_now().is_empty(), "more reached the server");
    let audit = format!("{:?}", agent.audit(6)?);
    ensure!(!audit.contains(SECRET), "{audit}");
    Ok(())
}

#[test]
fn a_server_that_asks_for_a_certificate_says_what_is_wrong_with_it() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(Server::start)?;
    let at = SocketAddr::new(PUBLIC[0].into(), 443);
    let _front = outside.netns.within(|| Front::asking(at, server.address, &outside.authority, NAME))?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let foreign = toolgate_tests::Authority::new()?.client("toolgate")?;
    let tls = [client_tls(&outside, None), client_tls(&outside, Some(foreign))];
    let spec = |tls: &str| format!("{{ baseUrl: \"https://{NAME}\", headers: {HEADERS}, clientTLS: {tls} }}");
    let (agent, door) = start(&mut outside, &spec(&tls[0]), &[])?;
    // The other one is of an authority of the same name.
    for (at, alert) in ["CertificateRequired", "DecryptError"].into_iter().enumerate() {
        if at > 0 {
            let before = agent.process().lines();
            agent.write_resources(&outside.endpoint(&spec(&tls[at]), &[]))?;
            agent.process().line_from(before, "configuration reloaded")?;
        }
        let mut caller = agent.caller("reader")?;
        let reply = ask(&mut caller.http(door)?, (door, "/mcp"), "dapr-app-id: docs\r\n")?;
        ensure!(reply.status == 502, "{}", reply.text());
        let line = agent.audit(at + 1)?.pop().context("no audit line")?;
        let detail = text(&line, "detail");
        ensure!(text(&line, "reason") == "certificate_refused", "{line:#}");
        ensure!(detail.contains(alert) && detail.contains("`certificate_file`"), "{line:#}");
    }
    ensure!(server.requests_now().is_empty(), "something reached the server");
    Ok(())
}

#[test]
fn a_redirect_leads_its_headers_nowhere() -> Result<()> {
    let mut outside = Outside::new()?;
    let server = outside.netns.within(Peer::start)?;
    let at = SocketAddr::new(PUBLIC[0].into(), 443);
    let _front = outside.netns.within(|| Front::asking(at, server.address, &outside.authority, NAME))?;
    let elsewhere = outside.server(PUBLIC[1], 80)?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let shown = outside.authority.client("toolgate")?;
    let spec = format!(
        "{{ baseUrl: \"https://{NAME}\", headers: {HEADERS}, clientTLS: {} }}",
        client_tls(&outside, Some(shown))
    );
    // It may be called too, so that a client could get there.
    let url = format!("http://{}/mcp", PUBLIC[1]);
    let (agent, door) = start(&mut outside, &spec, &[("elsewhere", &url)])?;
    let mut curl = exec(&agent, "reader");
    curl.args(["curl", "--silent", "--show-error", "--location-trusted", "--max-time", "20"]);
    curl.args(["--header", "dapr-app-id: docs", "--header", "Content-Type: application/json"]);
    curl.args(["--header", "Accept: application/json, text/event-stream"]);
    curl.arg("--data-binary").arg(String::from_utf8(call(1, "echo", &json!({})))?);
    let client = curl.arg(format!("http://{door}/mcp")).stdout(Stdio::piped()).spawn();
    let client = client.context("cannot start curl")?;
    let mut asked = server.accept()?;
    let head = asked.through("\r\n\r\n")?;
    ensure!(header(&head, "x-api-key") == Some(SECRET), "{head}");
    let redirect = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n");
    asked.send(redirect.as_bytes())?;
    let said = client.wait_with_output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let went: Vec<String> = elsewhere.requests_now().into_iter().map(|request| request.head).collect();
    ensure!(went.iter().all(|head| !head.contains(SECRET)), "{went:?}");
    ensure!(went.is_empty() && said.contains("the server's answer is invalid"), "{said} {went:?}");
    Ok(())
}
