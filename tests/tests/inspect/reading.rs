//! What becomes of each client: denied, allowed by name, read.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::{Agent, Front, SdkClient, Setup};

use crate::{OneShot, Stage, believing, said, sees, told, url};

/// Starts a client on an SDK.
type Start = fn(Command, &str) -> Result<SdkClient>;

const SDKS: [(&str, Start); 2] = [("Python", SdkClient::start), ("TypeScript", SdkClient::typescript)];
const ONE_SHOTS: [OneShot; 3] = [OneShot::Curl, OneShot::Rustls, OneShot::Requests];
const FIELDS: &[&str] = &["method", "target", "tool", "decision", "reason", "inspected"];

#[test]
fn tls_to_a_declared_server_is_denied_unread() -> Result<()> {
    let stage = Stage::set()?;
    let agent = Agent::start(Setup { resources: &stage.resources("deny", false), ..Setup::default() })?;
    let prefix = || believing(agent.exec("reader"), &stage.ca());
    for (name, start) in SDKS {
        ensure!(start(prefix(), &url(&stage.sdk_front)).is_err(), "{name} got a session");
    }
    for client in ONE_SHOTS {
        let said = client.call(prefix(), &url(&stage.docs_front), "echo")?;
        ensure!(!said.contains("echo done"), "{client:?}: {said}");
    }
    let lines = agent.audit(5)?;
    ensure!(
        told(&lines, "reader", FIELDS).iter().all(|line| line[3..] == ["deny", "opaque", ""]),
        "{lines:#?}"
    );
    ensure!(stage.docs.requests_now().is_empty() && stage.sdk.messages()?.is_empty());
    Ok(())
}

#[test]
fn tls_is_allowed_by_its_name_and_what_is_called_in_it_is_not_seen() -> Result<()> {
    let stage = Stage::set()?;
    let agent = Agent::start(Setup { resources: &stage.resources("allow", false), ..Setup::default() })?;
    let prefix = || believing(agent.exec("reader"), &stage.ca());
    for (name, start) in SDKS {
        let mut client = start(prefix(), &url(&stage.sdk_front)).context(name)?;
        ensure!(client.tools()?.contains(&"read_file".to_owned()), "{name}: its list is filtered");
        client.call("read_file", &json!({ "path": "/x" }))?;
        ensure!(client.answer("result")? == "content of /x", "{name}");
    }
    for client in [OneShot::CurlHttp1, OneShot::Rustls, OneShot::Requests] {
        let said = client.call(prefix(), &url(&stage.docs_front), "delete_everything")?;
        sees(&said, &["200 OK", "delete_everything done"]).with_context(|| format!("{client:?}"))?;
    }
    // Another name than the server's own.
    let port = stage.docs_front.address.port();
    let said = said(prefix().args([
        "curl",
        "--silent",
        "--show-error",
        "--insecure",
        "--resolve",
        &format!("other.internal:{port}:127.0.0.1"),
        &format!("https://other.internal:{port}/mcp"),
    ]))?;
    sees(&said, &["curl: (35)"])?;
    let lines = agent.audit_until("a denial", |lines| {
        told(lines, "reader", FIELDS).iter().any(|line| line[4] == "host_mismatch")
    })?;
    ensure!(
        told(&lines, "reader", FIELDS).iter().all(|line| line[0] == "opaque" || line[4] == "host_mismatch"),
        "{lines:#?}"
    );
    Ok(())
}

#[test]
fn tls_that_is_read_is_decided_tool_by_tool() -> Result<()> {
    let mut stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    for (name, start) in SDKS {
        let mut client = start(agent.exec("reader"), &url(&stage.sdk_front)).context(name)?;
        ensure!(client.tools()? == ["echo", "slow_count"], "{name}: its list is not filtered");
        client.call("echo", &json!({ "text": "hello" }))?;
        ensure!(client.answer("result")? == "hello", "{name}");
        client.call("read_file", &json!({ "path": "/x" }))?;
        let error = client.answer("error")?;
        ensure!(error.as_str().is_some_and(|words| words.contains("policy does not permit this")), "{error}");
        // Each event comes before the server is let go on.
        client.call("slow_count", &json!({ "steps": 3 }))?;
        for step in 1..=3 {
            ensure!(client.answer("progress")?.as_f64() == Some(f64::from(step)), "{name}: {step}");
            stage.sdk.release()?;
        }
        ensure!(client.answer("result")? == "counted to 3", "{name}");
    }
    ensure!(!stage.sdk.calls()?.contains(&"read_file".to_owned()));
    for client in ONE_SHOTS {
        let of = |tool| client.call(agent.exec("reader"), &url(&stage.docs_front), tool);
        sees(&of("echo")?, &["200 OK", "echo done"]).with_context(|| format!("{client:?}"))?;
        sees(&of("delete_everything")?, &["200 OK", "policy does not permit this"])
            .with_context(|| format!("{client:?}"))?;
    }
    ensure!(stage.docs.requests_now().len() == ONE_SHOTS.len(), "what was denied reached the server");
    let lines = agent.audit_until("all calls", |lines| {
        told(lines, "reader", &["tool"]).iter().filter(|line| *line[0] == *"delete_everything").count()
            == ONE_SHOTS.len()
    })?;
    let lines = told(&lines, "reader", FIELDS);
    for (expected, clients) in [
        (["tools/call", "sdk", "echo", "permit", "permitted", "localhost"], SDKS.len()),
        (["tools/call", "sdk", "read_file", "deny", "no_rule", "localhost"], SDKS.len()),
        (["tools/call", "docs", "delete_everything", "deny", "no_rule", "localhost"], ONE_SHOTS.len()),
    ] {
        let count = lines.iter().filter(|line| **line == expected).count();
        ensure!(count == clients, "{count} of {expected:?} in {lines:#?}");
    }
    Ok(())
}

#[test]
fn to_nobody_declared_what_is_read_is_decided_and_other_than_mcp_passes() -> Result<()> {
    let stage = Stage::set()?;
    let shadow = Front::at(crate::anywhere(), stage.sdk.address, &stage.authority, "localhost")?;
    let agent = stage.inspecting("")?;
    let said = OneShot::Curl.call(agent.exec("reader"), &url(&shadow), "echo")?;
    sees(&said, &["403 Forbidden", "this MCP server is not declared here"])?;
    let other = format!("https://localhost:{}/nothing", shadow.address.port());
    let said = crate::said(agent.exec("reader").args(["curl", "--silent", "--include", &other]))?;
    sees(&said, &["404", "Not Found"])?;
    let lines = told(&agent.audit(2)?, "reader", FIELDS);
    let expected = [
        ["tools/call", "undeclared", "echo", "deny", "undeclared", "localhost"],
        ["http", "undeclared", "", "permit", "permitted", "localhost"],
    ];
    ensure!(lines == expected, "{lines:#?}");
    ensure!(stage.sdk.messages()?.is_empty());
    // Whose TLS is not read goes on as it is.
    let prefix = believing(agent.exec("plain"), &stage.ca());
    let said = OneShot::CurlHttp1.call(prefix, &url(&shadow), "echo")?;
    sees(&said, &["Not Acceptable: Client must accept"])?;
    let lines = told(&agent.audit(3)?, "plain", FIELDS);
    ensure!(lines == [["connection", "undeclared", "", "permit", "permitted", ""]], "{lines:#?}");
    Ok(())
}

#[test]
fn what_is_read_of_an_external_server_is_decided_and_goes_on_to_who_proves_to_be_it() -> Result<()> {
    let stage = Stage::set()?;
    let front = Front::at(crate::anywhere(), stage.docs.address, &stage.authority, "127.0.0.1")?;
    let resources = stage.resources("deny", true).replace("servers: [docs, sdk]", "servers: [ext]")
        + &format!(
            "---\napiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: ext }}\nspec: {{ external: {{ url: \
             \"https://{}/mcp\", allow_private: true, ca_file: {} }} }}\n",
            front.address,
            stage.ca().display()
        );
    let agent =
        Agent::start(Setup { resources: &resources, capture: "{ tls: inspect }", ..Setup::default() })?;
    let url = format!("https://{}/mcp", front.address);
    let of = |tool| OneShot::Curl.call(agent.exec("reader"), &url, tool);
    sees(&of("echo")?, &["200 OK", "echo done"])?;
    sees(&of("delete_everything")?, &["200 OK", "policy does not permit this"])?;
    ensure!(stage.docs.requests_now().len() == 1, "what was denied reached the server");
    // The other server's name leads nowhere but to it.
    let sdk = format!("Host: localhost:{}", stage.sdk_front.address.port());
    let curl = ["curl", "--silent", "--include", "--header", &sdk, "--data", "{}", &url];
    sees(&said(agent.exec("reader").args(curl))?, &["403 Forbidden"])?;
    let lines = told(&agent.audit(3)?, "reader", FIELDS);
    let expected = [
        ["tools/call", "ext", "echo", "permit", "permitted", "127.0.0.1"],
        ["tools/call", "ext", "delete_everything", "deny", "no_rule", "127.0.0.1"],
    ];
    ensure!(lines[..2] == expected && lines[2][3] == "deny", "{lines:#?}");
    ensure!(stage.docs.requests_now().is_empty() && stage.sdk.messages()?.is_empty());
    Ok(())
}

/// A proxy that opens tunnels to ports of this host.
fn proxy() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind(crate::anywhere()).context("no free port")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _one_left = tunnel(client);
            });
        }
    });
    Ok(address)
}

fn tunnel(mut client: TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?;
    let port = head.split(' ').nth(1).and_then(|to| to.rsplit_once(':')).context("no CONNECT")?.1;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port.parse()?))?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let sending = std::thread::spawn(move || {
        let _one_left = std::io::copy(&mut from_client, &mut to_server);
        let _one_left = to_server.shutdown(Shutdown::Write);
    });
    std::io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Write)?;
    let _it_panicked = sending.join();
    Ok(())
}

#[test]
fn tls_in_a_tunnel_through_a_proxy_is_read_as_outside() -> Result<()> {
    let stage = Stage::set()?;
    let shadow = Front::at(crate::anywhere(), stage.docs.address, &stage.authority, "localhost")?;
    let proxy = format!("http://{}", proxy()?);
    let agent = stage.inspecting("")?;
    let by_proxy = || {
        let mut prefix = agent.exec("reader");
        prefix.args(["env", &format!("HTTPS_PROXY={proxy}")]);
        prefix
    };
    let said = OneShot::Curl.call(by_proxy(), &url(&shadow), "echo")?;
    sees(&said, &["200 Connection established", "403 Forbidden", "this MCP server is not declared here"])?;
    let other = format!("https://localhost:{}/other", shadow.address.port());
    let said = crate::said(by_proxy().args(["curl", "--silent", "--include", "--request", "PUT", &other]))?;
    sees(&said, &["200 Connection established", "HTTP/1.1"])?;
    ensure!(stage.docs.request()?.head.starts_with("PUT /other"), "it goes on through the tunnel");
    let lines = told(&agent.audit(4)?, "reader", FIELDS);
    let expected = [
        ["connect", "undeclared", "", "permit", "permitted", ""],
        ["tools/call", "undeclared", "echo", "deny", "undeclared", "localhost"],
        ["connect", "undeclared", "", "permit", "permitted", ""],
    ];
    ensure!(lines[..3] == expected && lines[3][0] == "http" && lines[3][5] == "localhost", "{lines:#?}");
    Ok(())
}
