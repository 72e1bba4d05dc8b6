//! Which server a request is for, what of it gets there, and what is said of others.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::http::header;
use toolgate_tests::scene::{call, is_result, text};
use toolgate_tests::{Connection, Server, Setup};

use crate::rig::{Stage, ask, is_dapr_error};

/// `dapr-app-id:docs`
const BASIC: &str = "Authorization: Basic ZGFwci1hcHAtaWQ6ZG9jcw==\r\n";

#[test]
fn each_form_names_the_server_and_leaves_nothing_of_itself() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let (_caller, mut connection) = stage.caller("reader")?;
    let localhost = format!("dapr-app-id: docs\r\nHost: localhost:{}\r\n", stage.door.port());
    let bearer = "Authorization: Bearer own\r\n";
    let forms = [
        ("/mcp", "dapr-app-id: docs\r\n", "/mcp", None),
        ("/mcp?x=1", "Dapr-App-Id: docs.default\r\n", "/mcp?x=1", None),
        ("/mcp", &localhost, "/mcp", None),
        ("/mcp", BASIC, "/mcp", None),
        ("/v1.0/invoke/docs/method/mcp", "", "/mcp", None),
        ("/v1.0/invoke/docs.default/method/mcp?x=1", "", "/mcp?x=1", None),
        ("/v1.0/invoke/docs/method/mcp", bearer, "/mcp", Some("Bearer own")),
    ];
    let body = call(1, "echo", &json!({ "text": "x" }));
    for (target, headers, arrives, authorization) in forms {
        let reply = ask(&mut connection, stage.door, ("POST", target), headers, &body)?;
        ensure!(is_result(&reply)?, "{target} {headers}: {}", reply.text());
        let request = stage.scene.server.request()?;
        let line = request.head.lines().next();
        ensure!(line == Some(&format!("POST {arrives} HTTP/1.1")), "{}", request.head);
        ensure!(
            header(&request.head, "host") == Some(&stage.scene.server.address.to_string()),
            "{}",
            request.head
        );
        ensure!(header(&request.head, "authorization") == authorization, "{}", request.head);
        ensure!(!request.head.to_lowercase().contains("dapr"), "{}", request.head);
        ensure!(request.body == body);
    }
    let lines = stage.scene.agent.audit(forms.len())?;
    for line in &lines {
        let found = ["caller/app_id", "target", "method", "tool", "decision"].map(|key| text(line, key));
        assert_eq!(found, ["reader", "docs", "tools/call", "echo", "permit"], "{line:#}");
    }
    Ok(())
}

/// One request on a connection of its own, which is closed after most of them.
fn said(stage: &Stage, (method, target): (&str, &str), headers: &str, status: u16, part: &str) -> Result<()> {
    let (_caller, mut connection) = stage.caller("reader")?;
    let body = if method == "POST" { call(1, "echo", &json!({})) } else { Vec::new() };
    is_dapr_error(&ask(&mut connection, stage.door, (method, target), headers, &body)?, status, part)
}

#[test]
fn what_is_no_call_of_mcp_is_answered_as_dapr_would() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let docs = "dapr-app-id: docs\r\n";
    let undeclared = "this MCP server is not declared here";
    for (request, headers, status, part) in [
        (("POST", "/mcp"), "", 404, "no App ID is named"),
        (("POST", "/v1.0/invoke/docs/mcp"), "", 404, "no App ID is named"),
        (("GET", "/v1.0/state/store/key"), "", 404, "no App ID is named"),
        (("POST", "/mcp"), "dapr-app-id: nobody\r\n", 404, undeclared),
        (("POST", "/mcp"), "dapr-app-id: docs.other\r\n", 404, undeclared),
        (("POST", "/mcp"), "dapr-app-id: docs.default.x\r\n", 404, undeclared),
        (("POST", "/mcp"), "dapr-app-id: http://127.0.0.1:1\r\n", 403, undeclared),
        (("POST", "/v1.0/invoke/http://127.0.0.1:1/method/mcp"), "", 403, undeclared),
        (("POST", "/v1.0/invoke/https%3A%2F%2Fexample.com/method/mcp"), "", 403, undeclared),
        (("POST", "/admin"), docs, 403, "this path is not served"),
        (("PUT", "/v1.0/invoke/docs/method/orders"), "", 403, "this path is not served"),
        (("DELETE", "/v1.0/invoke/docs/method/"), "", 403, "this path is not served"),
        (("GET", "/.well-known/oauth-protected-resource"), docs, 404, "this path is not served"),
        (("POST", "/mcp/../admin"), docs, 400, "malformed"),
        (("POST", "/v1.0/invoke/docs/method/..%2fadmin"), "", 400, "malformed"),
        (("POST", "/v1.0/invoke/docs/method//mcp"), "", 400, "malformed"),
        (("POST", "/mcp"), "dapr-app-id: docs\r\ndapr-app-id: other\r\n", 400, "malformed"),
        (("GET", "http://docs/mcp"), docs, 400, "malformed"),
    ] {
        said(&stage, request, headers, status, part)?;
    }
    let (_caller, mut connection) = stage.caller("reader")?;
    let reply = ask(&mut connection, stage.door, ("POST", "/mcp"), docs, &call(9, "echo", &json!({})))?;
    ensure!(is_result(&reply)?);
    assert_eq!(stage.scene.server.requests_now().len(), 1, "something else reached the server");
    Ok(())
}

#[test]
fn an_external_server_is_called_by_its_app_id_and_by_its_url() -> Result<()> {
    let outside = Server::start()?;
    let url = format!("http://{}", outside.address);
    let resources = format!(
        "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: outside }}\nspec: {{ external: {{ url: \"{url}/mcp\", allow_private: true }} }}\n---\n\
         apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{ name: api }}\nspec: {{ baseUrl: \"http://api.invalid:81\" }}\n---\n\
         apiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: outside }}\nspec: {{ rules: [{{ name: all, effect: allow, callers: [reader], servers: [outside, api], tools: [echo] }}] }}\n"
    );
    let stage = Stage::set(Setup::default())?;
    let before = stage.scene.agent.process().lines();
    stage.scene.agent.write_resources(&resources)?;
    stage.scene.agent.process().line_from(before, "configuration reloaded")?;
    let (_caller, mut connection) = stage.caller("reader")?;
    let body = call(1, "echo", &json!({}));
    let by_url = format!("/v1.0/invoke/{url}/method/mcp");
    let app = format!("dapr-app-id: {url}\r\n");
    for (target, headers) in [("/mcp", "dapr-app-id: outside\r\n"), (&*by_url, ""), ("/mcp", &*app)] {
        let reply = ask(&mut connection, stage.door, ("POST", target), headers, &body)?;
        ensure!(is_result(&reply)?, "{target} {headers}: {}", reply.text());
        let request = outside.request()?;
        ensure!(request.head.starts_with("POST /mcp HTTP/1.1"), "{}", request.head);
        ensure!(header(&request.head, "host") == Some(&outside.address.to_string()), "{}", request.head);
    }
    let denied = call(2, "delete_everything", &json!({}));
    let reply = ask(&mut connection, stage.door, ("POST", &by_url), "", &denied)?;
    ensure!(reply.message()?["result"]["isError"] == true, "{}", reply.text());
    // Another scheme, and another port, are others.
    for app in [url.replace("http:", "https:"), "http://127.0.0.1:1".to_owned()] {
        said(&stage, ("POST", "/mcp"), &format!("dapr-app-id: {app}\r\n"), 403, "not declared here")?;
    }
    for app in ["api", "http://api.invalid:81"] {
        let reply =
            ask(&mut connection, stage.door, ("POST", "/mcp"), &format!("dapr-app-id: {app}\r\n"), &body)?;
        ensure!(reply.status == 502 && reply.message()?["id"] == 1, "{}", reply.text());
    }
    ensure!(outside.requests_now().is_empty());
    let lines = stage.scene.agent.audit(8)?;
    let targets: Vec<_> = lines.iter().map(|line| text(line, "target")).collect();
    assert_eq!(
        targets,
        ["outside", "outside", "outside", "outside", "undeclared", "undeclared", "api", "api"]
    );
    Ok(())
}

#[test]
fn a_denial_and_a_server_that_is_down_are_told_as_mcp() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let (_caller, mut connection) = stage.caller("reader")?;
    let target = ("POST", "/v1.0/invoke/docs/method/mcp");
    let denied = call(1, "delete_everything", &json!({}));
    let reply = ask(&mut connection, stage.door, target, "", &denied)?;
    ensure!(reply.status == 200 && reply.message()?["result"]["isError"] == true, "{}", reply.text());
    let broken = ask(&mut connection, stage.door, target, "", b"{")?;
    ensure!(broken.status == 400 && broken.message()?["error"]["code"] == -32700, "{}", broken.text());
    // Nobody listens there any more.
    let gone = "apiVersion: toolgate/v1\nkind: Server\nmetadata: { name: docs }\nspec: { local: { address: \"127.0.0.1:1\" } }\n---\n\
                apiVersion: toolgate/v1\nkind: Policy\nmetadata: { name: docs }\nspec: { rules: [{ name: all, effect: allow, callers: [reader], servers: [docs], tools: [\"*\"] }] }\n";
    let before = stage.scene.agent.process().lines();
    stage.scene.agent.write_resources(gone)?;
    stage.scene.agent.process().line_from(before, "configuration reloaded")?;
    let (_caller, mut connection) = stage.caller("reader")?;
    let reply = ask(&mut connection, stage.door, target, "", &call(7, "echo", &json!({})))?;
    ensure!(reply.status == 502 && reply.message()?["id"] == 7, "{}", reply.text());
    Ok(())
}

#[test]
fn what_a_sidecar_is_asked_about_itself_is_answered_and_not_recorded() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let (_caller, mut connection) = stage.caller("reader")?;
    let get = |connection: &mut Connection, target| {
        ask(connection, stage.door, ("GET", target), "dapr-app-id: docs\r\n", b"")
    };
    for target in ["/v1.0/healthz", "/v1.0/healthz/outbound", "/v1.0/healthz?appid=reader"] {
        let reply = get(&mut connection, target)?;
        ensure!(reply.status == 204 && reply.body.is_empty(), "{target}: {} {}", reply.status, reply.text());
        ensure!(reply.header("content-length").is_none(), "{}", reply.head);
    }
    let other = get(&mut connection, "/v1.0/healthz?appid=writer")?;
    ensure!(other.status == 500 && other.text().contains("ERR_HEALTH_APPID_NOT_MATCH"), "{}", other.text());
    let metadata = get(&mut connection, "/v1.0/metadata")?;
    let said: Value = serde_json::from_slice(&metadata.body)?;
    ensure!(said["id"] == "reader" && said["extended"]["namespace"] == "default", "{said}");
    // Of all that, the call alone leaves a line.
    let reply = ask(
        &mut connection,
        stage.door,
        ("POST", "/mcp"),
        "dapr-app-id: docs\r\n",
        &call(1, "echo", &json!({})),
    )?;
    ensure!(is_result(&reply)?);
    assert_eq!(stage.scene.agent.audit(1)?.len(), 1);
    Ok(())
}

#[test]
fn a_server_has_the_same_sessions_by_its_app_id_and_by_its_address() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let (mut caller, mut connection) = stage.caller("reader")?;
    let app = "dapr-app-id: docs\r\n";
    let begun =
        ask(&mut connection, stage.door, ("POST", "/mcp"), app, &toolgate_tests::scene::initialize())?;
    let session = begun.header("mcp-session-id").map(|id| format!("Mcp-Session-Id: {id}\r\n"));
    let session = session.unwrap_or_default();
    let mut direct = caller.http(stage.scene.server.address)?;
    direct.request("POST", &session, &call(1, "echo", &json!({})))?;
    ensure!(is_result(&direct.reply()?)?);
    // A stream by App ID gets its events as they come.
    connection.send(
        format!(
            "GET /mcp HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n{app}{session}\r\n",
            stage.door
        )
        .as_bytes(),
    )?;
    ensure!(connection.head()?.status == 200);
    for number in 1..=3 {
        stage.scene.server.send_event(
            &json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": { "n": number } }),
        )?;
        let event = connection.event()?.unwrap_or_default();
        ensure!(event.contains(&format!("\"n\":{number}")), "{event}");
    }
    let (_caller, mut other) = stage.caller("writer")?;
    let stolen = ask(
        &mut other,
        stage.door,
        ("POST", "/mcp"),
        &format!("{app}{session}"),
        &call(2, "echo", &json!({})),
    )?;
    ensure!(stolen.status == 404, "{}", stolen.text());
    Ok(())
}
