//! TLS that clients speak: denied, passed by its name (SNI), or read (`capture.tls: inspect`), by unmodified clients on Python,
//! Node, rustls and curl, of servers that speak TLS.

mod attacks;
mod keys;
mod reading;
mod reload;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use toolgate_tests::scene::{call, text};
use toolgate_tests::{Agent, Authority, Front, Process, SdkServer, Server, Setup, packages};

/// Whom a client believes, by which variables.
const VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"];

/// Two servers behind TLS: one that tells what reached it, and one on the official SDK.
struct Stage {
    folder: TempDir,
    authority: Authority,
    docs: Server,
    docs_front: Front,
    sdk: SdkServer,
    sdk_front: Front,
}

impl Stage {
    fn set() -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder")?;
        let authority = Authority::new()?;
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).context("cannot keep a certificate")?;
        let (docs, sdk) = (Server::start()?, SdkServer::start()?);
        let docs_front = Front::at(anywhere(), docs.address, &authority, "localhost")?;
        let sdk_front = Front::at(anywhere(), sdk.address, &authority, "localhost")?;
        Ok(Self { folder, authority, docs, docs_front, sdk, sdk_front })
    }

    /// Whom clients of the servers believe.
    fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// `reader` may some of both servers, and so may `plain`; `inspected`: the TLS of the first is read.
    fn resources(&self, opaque: &str, inspected: bool) -> String {
        let server = |name: &str, address: SocketAddr| {
            format!(
                "apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: {name} }}\nspec: {{ local: {{ address: \
                 \"{address}\" }}, opaque: {opaque} }}\n---\n"
            )
        };
        let tls = if inspected { "inspect" } else { "opaque" };
        format!(
            "{}{}apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: reader }}\nspec: {{ tls: {tls} }}\n---\n\
             apiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: p }}\nspec: {{ rules: [{{ name: r, effect: allow, \
             callers: [reader, plain], servers: [docs, sdk], tools: [echo, slow_count] }}] }}\n",
            server("docs", self.docs_front.address),
            server("sdk", self.sdk_front.address)
        )
    }

    /// An agent that reads what `reader` says, and believes whom that would.
    fn inspecting(&self, more: &str) -> Result<Agent> {
        let capture = format!("{{ tls: inspect, tls_roots: {}{more} }}", self.ca().display());
        let resources = self.resources("deny", true);
        Agent::start(Setup { resources: &resources, capture: &capture, ..Setup::default() })
    }
}

fn anywhere() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn url(front: &Front) -> String {
    format!("https://localhost:{}/mcp", front.address.port())
}

/// A client that says one message to a server, and shows its answer.
#[derive(Clone, Copy, Debug)]
enum OneShot {
    Curl,
    /// The servers' front would speak HTTP/2 with it, and they do not.
    CurlHttp1,
    Rustls,
    /// Of Python.
    Requests,
}

/// Posts its second argument to the first.
const REQUESTS: &str = "import requests, sys
answer = requests.post(sys.argv[1], sys.argv[2], headers={'Content-Type': 'application/json'}, timeout=20)
print(answer.status_code, answer.reason, answer.text)";

impl OneShot {
    /// What it shows of a call.
    fn call(self, mut prefix: Command, url: &str, tool: &str) -> Result<String> {
        let body = String::from_utf8(call(1, tool, &json!({ "text": "hello" })))?;
        match self {
            Self::Curl | Self::CurlHttp1 => {
                prefix.args(["curl", "--silent", "--show-error", "--include", "--max-time", "20"]);
                if matches!(self, Self::CurlHttp1) {
                    prefix.arg("--http1.1");
                }
                prefix.args(["--header", "Content-Type: application/json", "--data", &body, url]);
            }
            Self::Requests => {
                prefix.arg(packages("python2/bin/python")?).args(["-c", REQUESTS, url, &body]);
            }
            Self::Rustls => {
                prefix.arg(env!("CARGO_BIN_EXE_tls_client")).args([url, &body]);
            }
        }
        said(&mut prefix)
    }
}

/// All that a command says.
fn said(command: &mut Command) -> Result<String> {
    let mut process = Process::start(command)?;
    process.end()?;
    Ok(process.said())
}

/// A prefix whose environment lets a client believe these.
fn believing(mut prefix: Command, ca: &std::path::Path) -> Command {
    prefix.envs(VARIABLES.map(|name| (name, ca)));
    prefix
}

/// The lines of the audit that are of one caller, each with what is asked of it.
fn told(lines: &[Value], caller: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let of_caller = lines.iter().filter(|line| text(line, "caller/app_id") == caller);
    of_caller.map(|line| fields.iter().map(|field| text(line, field).to_owned()).collect()).collect()
}

/// What a client must see.
fn sees(said: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(said.contains(word), "`{word}` is not in: {said}");
    }
    Ok(())
}
