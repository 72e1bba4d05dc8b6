//! The authority's key is in the agent's memory and nowhere else, goes to the next agent, and ends with the last one.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toolgate_tests::{Agent, Setup};

use crate::{OneShot, Stage, VARIABLES, believing, said, sees, url};

/// What stands before the public key in a private one of P-256 (RFC 5958, RFC 5915), the secret before it.
const BEFORE_PUBLIC: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
const POINT_BYTES: usize = 65;
const SECRET_BYTES: usize = 32;

/// The public key of a certificate of P-256.
fn point(pem: &str) -> Result<Vec<u8>> {
    let der = said(std::process::Command::new("openssl").args(["x509", "-noout", "-pubkey", "-in", pem]))?;
    let lines: String = der.lines().filter(|line| !line.starts_with('-')).collect();
    let der = unbase64(&lines)?;
    let begins = der.len().checked_sub(POINT_BYTES).context("no key of P-256")?;
    ensure!(der[begins] == 4, "no point that is written whole");
    Ok(der[begins..].to_vec())
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    let digit = |c: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|d| *d == c)
    };
    let mut bytes = Vec::new();
    for four in text.trim().trim_end_matches('=').as_bytes().chunks(4) {
        let mut number = 0;
        for c in four {
            number = number << 6 | digit(*c).context("not base64")?;
        }
        number <<= 6 * (4 - four.len());
        bytes.extend_from_slice(&number.to_be_bytes()[5..5 + four.len() - 1]);
    }
    Ok(bytes)
}

/// The secret that belongs to a public key, as the memory of a process has it.
fn secret(pid: u32, point: &[u8]) -> Result<Option<Vec<u8>>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).context("no maps")?;
    let memory = File::open(format!("/proc/{pid}/mem")).context("no memory")?;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (begin, end) =
            line.split_once(' ').and_then(|(range, _)| range.split_once('-')).context("no range")?;
        let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - begin)?];
        if memory.read_exact_at(&mut bytes, begin).is_err() {
            continue; // guard pages
        }
        let wanted = [&BEFORE_PUBLIC[..], point].concat();
        let found = bytes.windows(wanted.len()).position(|window| window == wanted);
        if let Some(at) = found.filter(|at| *at >= SECRET_BYTES) {
            return Ok(Some(bytes[at - SECRET_BYTES..at].to_vec()));
        }
    }
    Ok(None)
}

/// The files below a folder that have these bytes, as they are or in base64 of PEM.
fn holding(folder: &Path, secret: &[u8]) -> Result<Vec<String>> {
    let mut holding = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            holding.extend(self::holding(&entry.path(), secret)?);
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path())?;
            let text = String::from_utf8_lossy(&bytes);
            let is_key =
                bytes.windows(secret.len()).any(|window| window == secret) || text.contains("PRIVATE KEY");
            if is_key {
                holding.push(entry.path().display().to_string());
            }
        }
    }
    Ok(holding)
}

#[test]
fn the_authoritys_key_is_on_no_disk_and_goes_to_the_next_agent_alone() -> Result<()> {
    let stage = Stage::set()?;
    let mut agent = stage.inspecting("")?;
    let of_folder = agent.config().join("inspect");
    let (authority, bundle) = (of_folder.join("authority.pem"), of_folder.join("bundle.pem"));
    let before = std::fs::read_to_string(&authority)?;
    // What a client knows that has started now.
    let known = stage.folder.path().join("known.pem");
    std::fs::copy(&bundle, &known)?;
    let call = |agent: &Agent| {
        OneShot::Curl.call(believing(agent.exec("reader"), &known), &url(&stage.docs_front), "echo")
    };
    sees(&call(&agent)?, &["echo done"])?;
    let point = point(&authority.display().to_string())?;
    let secret = secret(agent.process().id(), &point)?.context("it is not in the agent's memory either")?;
    for folder in [agent.config(), Path::new("/run/toolgate")] {
        let found = holding(folder, &secret)?;
        ensure!(found.is_empty(), "the key is in {found:?}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.process().id()))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap_or_default();
    ensure!(core.split_whitespace().nth(4) == Some("0"), "a core dump would have it: {core}");
    // The next agent goes on with it, and clients go on as they are.
    agent.upgrade(&[])?;
    ensure!(std::fs::read_to_string(&authority)? == before, "another authority");
    sees(&call(&agent)?, &["echo done"])?;
    ensure!(holding(agent.config(), &secret)?.is_empty());
    // One that is started anew has another: clients are to be started anew, too.
    agent.stop_successor()?;
    agent.start_again()?;
    ensure!(std::fs::read_to_string(&authority)? != before, "the same authority");
    sees(&call(&agent)?, &["curl: (60)"])?;
    let said = OneShot::Curl.call(agent.exec("reader"), &url(&stage.docs_front), "echo")?;
    sees(&said, &["echo done"])
}

#[test]
fn a_unit_gets_the_variables_once() -> Result<()> {
    let stage = Stage::set()?;
    let agent = stage.inspecting("")?;
    let units = tempfile::tempdir()?;
    let trust = |more: &[&str]| {
        let mut command = toolgate_tests::toolgate();
        command.args(["inspect", "trust", "--config"]).arg(agent.config()).args(more);
        said(&mut command)
    };
    let folder = units.path().display().to_string();
    let unit = ["--unit", "research-agent", "--directory", &folder];
    sees(&trust(&unit)?, &["wrote", "90-toolgate-inspect.conf", "daemon-reload"])?;
    sees(&trust(&unit)?, &["says it already"])?;
    let path = units.path().join("research-agent.service.d/90-toolgate-inspect.conf");
    let drop_in = std::fs::read_to_string(path)?;
    let bundle = agent.config().join("inspect/bundle.pem");
    for name in VARIABLES {
        sees(&drop_in, &[&format!("Environment=\"{name}={}\"", bundle.display())])?;
    }
    sees(&trust(&["--json"])?, &["\"fingerprint\"", "\"variables\""])?;
    drop(agent);
    // Where nobody's TLS is read there is nothing to trust.
    let agent = Agent::start(Setup { resources: &stage.resources("deny", false), ..Setup::default() })?;
    ensure!(!agent.config().join("inspect").exists(), "it was made all the same");
    let mut command = toolgate_tests::toolgate();
    command.args(["inspect", "trust", "--config"]).arg(agent.config());
    sees(&said(&mut command)?, &["reads nobody's TLS"])
}
