//! Unmodified clients that point at a sidecar: the official SDKs, from one host to another too, and Dapr's own.

#[path = "../peers/hosts.rs"]
#[expect(dead_code, reason = "what the tests of peers use of it beside this")]
mod hosts;

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, SdkClient, SdkServer, Setup, fixture, free_address, packages};

use crate::rig::Stage;
use hosts::{Hosts, Wishes, decided};

/// What both SDKs are asked to do.
fn works(client: &mut SdkClient, server: &mut SdkServer) -> Result<()> {
    assert_eq!(client.tools()?, ["echo", "add", "read_file", "slow_count"], "what its caller may");
    client.call("add", &json!({ "a": 1, "b": 2 }))?;
    assert_eq!(client.answer("result")?, "3");
    client.call("add", &json!({ "a": 1, "b": 2000 }))?;
    let denied = client.answer("error")?;
    ensure!(denied.as_str().is_some_and(|text| text.contains("these arguments")), "{denied}");
    client.call("slow_count", &json!({ "steps": 2 }))?;
    for step in 1..=2 {
        // Each is seen before the server is let go on to the next.
        assert_eq!(client.answer("progress")?.as_f64(), Some(f64::from(step)));
        server.release()?;
    }
    assert_eq!(client.answer("result")?, "counted to 2");
    Ok(())
}

fn with_headers(mut command: Command, headers: &Value) -> Command {
    command.env("HEADERS", headers.to_string());
    command
}

#[test]
fn official_clients_on_one_host_call_a_server_on_the_other_by_app_id() -> Result<()> {
    let start = |here| SdkServer::at(here).map(|server| (server.address, server));
    let mut hosts = Hosts::with(start, Wishes::default())?;
    let app = json!({ "dapr-app-id": "docs" });
    let (whole, sidecar) = ("http://127.0.0.1:3500/v1.0/invoke/docs/method/mcp", "http://localhost:3500/mcp");
    let basic = "http://dapr-app-id:docs@127.0.0.1:3500/mcp";
    let exec = || hosts.callers.exec("reader");
    let clients = [
        SdkClient::start(with_headers(exec(), &app), sidecar),
        SdkClient::start(exec(), whole),
        SdkClient::start(exec(), basic),
        SdkClient::typescript(with_headers(exec(), &app), sidecar),
        SdkClient::typescript(exec(), whole),
    ];
    for (number, client) in clients.into_iter().enumerate() {
        let mut client = client.with_context(|| format!("client {number}"))?;
        works(&mut client, &mut hosts.server).with_context(|| format!("client {number}"))?;
    }
    for line in decided(&hosts.servers, 5)? {
        assert_eq!(text(&line, "caller/spiffe_id"), "spiffe://example.org/ns/default/reader", "{line:#}");
    }
    Ok(())
}

#[test]
fn http_with_sse_works_by_header() -> Result<()> {
    let mut server = SdkServer::legacy()?;
    let (door, app) = (free_address()?, json!({ "dapr-app-id": "docs" }));
    let resources = toolgate_tests::scene::resources(server.address);
    let resources = resources.replace("path: /mcp", "path: /sse\n  transport: sse");
    let agent = Agent::start(Setup { resources: &resources, invoke: Some(door), ..Setup::default() })?;
    let url = format!("http://{door}/sse");
    for mut client in [
        SdkClient::legacy(with_headers(agent.exec("reader"), &app), &url)?,
        SdkClient::legacy_typescript(with_headers(agent.exec("reader"), &app), &url)?,
    ] {
        works(&mut client, &mut server)?;
    }
    Ok(())
}

/// What `dapr_client.py` says, a line for each step.
fn dapr(mut command: Command, door: SocketAddr, app_id: &str) -> Result<Vec<String>> {
    command.arg(packages("dapr/bin/python")?).arg(fixture("dapr_client.py")).arg(app_id);
    command.env("DAPR_HTTP_PORT", door.port().to_string()).env("DAPR_HEALTH_TIMEOUT", "5");
    // Someone else's.
    command.env("DAPR_API_TOKEN", "a-token-of-another-sidecar");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(said.lines().map(str::to_owned).collect())
}

#[test]
fn daprs_own_client_invokes_a_method() -> Result<()> {
    let stage = Stage::set(Setup::default())?;
    let exec = |app_id| stage.scene.agent.exec(app_id);
    let answered = dapr(exec("reader"), stage.door, "docs")?;
    ensure!(
        answered.iter().any(|line| line.starts_with("answered ") && line.contains("\"result\"")),
        "{answered:?}"
    );
    let arrived = stage.scene.server.request()?.head.to_lowercase();
    ensure!(!arrived.contains("\ndapr-") && !arrived.contains("another-sidecar"), "{arrived}");
    let denied = dapr(exec("stranger"), stage.door, "docs")?;
    ensure!(denied.iter().any(|line| line.contains("policy does not permit")), "{denied:?}");
    let unknown = dapr(exec("reader"), stage.door, "nobody")?;
    ensure!(
        unknown.iter().any(|line| line.starts_with("failed ") && line.contains("not declared here")),
        "{unknown:?}"
    );
    ensure!(stage.scene.server.requests_now().is_empty());
    Ok(())
}
