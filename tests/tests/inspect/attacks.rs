//! What must not be read, believed or taken for something else.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::scene::text;
use toolgate_tests::{Authority, Front, Server, Setup};

use crate::{OneShot, Stage, anywhere, believing, said, sees, told, url};

const FIELDS: &[&str] = &["method", "target", "decision", "reason"];

#[test]
fn a_server_that_its_client_would_refuse_is_refused_in_its_place() -> Result<()> {
    let stage = Stage::set()?;
    let (stranger, server) = (Authority::new()?, stage.docs.address);
    let fronts = [
        ("another name", Front::at(anywhere(), server, &stage.authority, "other.internal")?),
        ("an authority that nobody believes", Front::at(anywhere(), server, &stranger, "localhost")?),
        ("over", Front::expired(anywhere(), server, &stage.authority, "localhost")?),
    ];
    let plain = Server::start()?;
    let addresses =
        fronts.iter().map(|(name, front)| (*name, front.address)).chain([("no TLS", plain.address)]);
    let mut resources = stage.resources("deny", true);
    for (number, (_, address)) in addresses.clone().enumerate() {
        resources += &format!(
            "---\napiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: s{number} }}\nspec: {{ local: {{ address: \
             \"{address}\" }} }}\n"
        );
    }
    let resources = resources.replace("servers: [docs, sdk]", "servers: [docs, sdk, s0, s1, s2, s3]");
    let capture = format!("{{ tls: inspect, tls_roots: {} }}", stage.ca().display());
    let agent =
        toolgate_tests::Agent::start(Setup { resources: &resources, capture: &capture, ..Setup::default() })?;
    for (name, address) in addresses {
        let url = format!("https://localhost:{}/mcp", address.port());
        let said = OneShot::Curl.call(agent.exec("reader"), &url, "echo")?;
        let words = match name {
            // It waits for the rest of what it takes for a request.
            "no TLS" => ["504 Gateway Timeout", "the server did not answer in time"],
            _ => ["502 Bad Gateway", "the server could not prove who it is"],
        };
        sees(&said, &words).context(name)?;
    }
    let lines = agent.audit(4)?;
    let reasons: Vec<_> = lines.iter().map(|line| text(line, "reason")).collect();
    ensure!(
        reasons == ["server_unproven", "server_unproven", "server_unproven", "server_timeout"],
        "{lines:#?}"
    );
    ensure!(
        stage.docs.requests_now().is_empty() && plain.requests_now().is_empty(),
        "it was asked all the same"
    );
    // The same without a Server for them.
    drop(agent);
    let agent = stage.inspecting("")?;
    for (name, front) in &fronts {
        let other = format!("https://localhost:{}/other", front.address.port());
        let said =
            said(agent.exec("reader").args(["curl", "--silent", "--show-error", "--include", &other]))?;
        sees(&said, &["502 Bad Gateway", "the server could not prove who it is"]).context(*name)?;
    }
    ensure!(stage.docs.requests_now().is_empty(), "it was asked all the same");
    Ok(())
}

#[test]
fn who_does_not_opt_in_is_never_read() -> Result<()> {
    let stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    // It would believe the authority of this node.
    let bundle = agent.config().join("inspect/bundle.pem");
    let said =
        OneShot::Curl.call(believing(agent.exec("plain"), &bundle), &url(&stage.docs_front), "echo")?;
    sees(&said, &["curl: (35)"])?;
    let lines = told(&agent.audit(1)?, "plain", FIELDS);
    ensure!(lines == [["connection", "docs", "deny", "opaque"]], "{lines:#?}");
    Ok(())
}

#[test]
fn a_host_that_is_excluded_is_left_alone() -> Result<()> {
    let stage = Stage::set()?;
    let capture =
        format!("{{ tls: inspect, tls_roots: {}, tls_exclude: [localhost] }}", stage.ca().display());
    let resources = stage.resources("allow", true);
    let agent =
        toolgate_tests::Agent::start(Setup { resources: &resources, capture: &capture, ..Setup::default() })?;
    // It sees the server's own certificate.
    let prefix = believing(agent.exec("reader"), &stage.ca());
    let said = OneShot::CurlHttp1.call(prefix, &url(&stage.docs_front), "delete_everything")?;
    sees(&said, &["delete_everything done"])?;
    let lines = told(&agent.audit(1)?, "reader", FIELDS);
    ensure!(lines == [["opaque", "docs", "permit", "permitted"]], "{lines:#?}");
    Ok(())
}

#[test]
fn a_client_that_does_not_believe_this_node_is_told_apart_from_what_fails() -> Result<()> {
    let stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    let pinned = || believing(agent.exec("reader"), &stage.ca());
    let front = url(&stage.docs_front);
    // What the user has set is left, and said.
    let said_by_curl = OneShot::Curl.call(pinned(), &front, "echo")?;
    sees(&said_by_curl, &["curl: (60)", "CURL_CA_BUNDLE stays", "bundle.pem"])?;
    sees(&OneShot::Rustls.call(pinned(), &front, "echo")?, &["UnknownIssuer"])?;
    let fetch = format!("fetch({front:?}).catch((error) => console.log(error.cause.code))");
    sees(&said(pinned().args(["node", "-e", &fetch]))?, &["UNABLE_TO_VERIFY_LEAF_SIGNATURE"])?;
    let old = format!("localhost:{}", stage.docs_front.address.port());
    let old = ["openssl", "s_client", "-connect", &old, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"];
    said(agent.exec("reader").args(old))?;
    let lines = agent.audit(4)?;
    let expected = [["connection", "docs", "deny", "client_pinned"]; 3];
    let told = told(&lines, "reader", FIELDS);
    ensure!(
        told[..3] == expected && told[3] == ["connection", "docs", "deny", "handshake_failed"],
        "{lines:#?}"
    );
    agent.counts("toolgate_requests_total", &["reason=\"client_pinned\""], 3.0)?;
    agent.counts("toolgate_requests_total", &["reason=\"handshake_failed\""], 1.0)?;
    let discovered: Value =
        serde_json::from_str(&said(agent.toolgate("discover").arg("--json"))?).context("not JSON")?;
    let one = &discovered["untrusting"][0];
    let seen = (&one["caller"], &one["host"], &one["connections"]);
    ensure!(seen == (&json!("reader"), &json!("localhost"), &json!(3)), "{discovered:#}");
    sees(&said(&mut agent.toolgate("discover"))?, &["toolgate inspect trust", "capture.tls_exclude"])?;
    sees(&said(&mut agent.toolgate("status"))?, &["1 clients do not believe this node"])?;
    ensure!(stage.docs.requests_now().is_empty());
    Ok(())
}

#[test]
fn what_is_no_http_1_1_within_is_not_passed_unread() -> Result<()> {
    let stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    let port = stage.docs_front.address.port();
    let connect = format!("localhost:{port}");
    let http2 = ["openssl", "s_client", "-connect", &connect, "-alpn", "h2"];
    said(agent.exec("reader").args(http2))?;
    let lines = told(&agent.audit(1)?, "reader", FIELDS);
    ensure!(lines == [["connection", "docs", "deny", "opaque"]], "{lines:#?}");
    // Another name than the server's is told before it is read.
    let resolve = format!("other.internal:{port}:127.0.0.1");
    let other = format!("https://other.internal:{port}/mcp");
    said(agent.exec("reader").args(["curl", "--silent", "--resolve", &resolve, &other]))?;
    let lines = told(&agent.audit(2)?, "reader", FIELDS);
    ensure!(lines[1] == ["connection", "docs", "deny", "host_mismatch"], "{lines:#?}");
    // And so is another Host within.
    let said = said(agent.exec("reader").args([
        "curl",
        "--silent",
        "--include",
        "--header",
        "Host: other.internal",
        "--data",
        "{}",
        &url(&stage.docs_front),
    ]))?;
    sees(&said, &["403 Forbidden", "the Host header does not name this server"])?;
    ensure!(text(&agent.audit(3)?[2], "reason") == "host_mismatch");
    ensure!(stage.docs.requests_now().is_empty());
    Ok(())
}
