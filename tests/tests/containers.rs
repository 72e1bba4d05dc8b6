//! Containers of the usual runtimes, each in namespaces of its own. Needs `apt-get install systemd-container podman runc`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use tempfile::TempDir;
use toolgate_tests::scene::{call, resources};
use toolgate_tests::{Agent, Host, Netns, Process, Server, Setup, cgroup2};

/// A root directory whose `/usr` is to be the host's.
fn root() -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    for name in ["dev", "etc", "proc", "run", "sys", "tmp", "usr", "var"] {
        fs::create_dir(root.path().join(name))?;
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        symlink(Path::new("usr").join(name), root.path().join(name))?;
    }
    fs::copy("/etc/os-release", root.path().join("etc/os-release"))?;
    Ok(root)
}

/// What a container runs: it asks for a tool, as soon as it is let through, and shows the answer.
fn asking_for(tool: &str, server: SocketAddr) -> String {
    let body = String::from_utf8_lossy(&call(1, tool, &json!({}))).into_owned();
    let (ip, port, bytes) = (server.ip(), server.port(), body.len());
    format!(
        "until {{ exec 3<>/dev/tcp/{ip}/{port}; }} 2>/dev/null; do sleep 0.05; done
printf 'POST /mcp HTTP/1.1\\r\\nHost: {server}\\r\\nConnection: close\\r\\nContent-Type: application/json\\r\\n' >&3
printf 'Accept: application/json, text/event-stream\\r\\nContent-Length: {bytes}\\r\\n\\r\\n%s' '{body}' >&3
cat <&3
echo
echo the end"
    )
}

/// Runs it for a permitted tool and for a denied one.
fn is_governed(server: SocketAddr, container: impl Fn(&str) -> Command) -> Result<()> {
    for (tool, expected) in [("echo", "\"result\""), ("delete_everything", "\"isError\":true")] {
        let mut process = Process::start(&mut container(&asking_for(tool, server)))?;
        process.line("the end").with_context(|| format!("`{tool}`"))?;
        let said = process.said();
        assert!(said.contains(expected), "`{tool}` is answered by:\n{said}");
        let denied = said.contains("isError\":true");
        assert_eq!(denied, tool != "echo", "`{tool}` is answered by:\n{said}");
        process.end().context("the container does not end")?;
    }
    Ok(())
}

#[test]
fn a_container_of_systemd_nspawn_is_governed() -> Result<()> {
    let host = Host::turn()?;
    let (root, netns) = (root()?, Netns::new()?);
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let agent = Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    is_governed(server.address, |script| {
        let mut nspawn = agent.exec("reader");
        nspawn.args(["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"]);
        nspawn.args(["--console=pipe", "--bind-ro=/usr", "--directory"]).arg(root.path());
        nspawn.args(["/usr/bin/bash", "-c", script]);
        nspawn
    })?;
    // nspawn made cgroups of its own below the caller's.
    drop(agent);
    assert!(!cgroup2()?.join("toolgate.exec").exists(), "cgroups are left");
    Ok(())
}

#[test]
fn a_container_of_podman_is_governed() -> Result<()> {
    /// Where podman makes cgroups by itself (`--cgroup-manager=cgroupfs`).
    const PARENT: &str = "libpod_parent";
    let host = Host::turn()?;
    let (root, netns) = (root()?, Netns::new()?);
    let [outside, _] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    fs::create_dir_all(cgroup2()?.join(PARENT))?;
    let capture = format!("{{ cgroups: [\"{PARENT}/*\"] }}");
    let workload = format!(
        "---
apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: reader }}
spec:
  selectors: {{ cgroup: \"{PARENT}/*\" }}
"
    );
    let all = format!("{}{workload}", resources(server.address));
    let agent = Agent::start_in(host, Setup { resources: &all, capture: &capture, ..Setup::default() })?;
    is_governed(server.address, |script| {
        let mut podman = Command::new("podman");
        podman.args([
            "--runtime=/usr/sbin/runc",
            "--cgroup-manager=cgroupfs",
            "run",
            "--rm",
            "--network=none",
        ]);
        podman.args([
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            "--volume=/usr:/usr:ro",
            "--rootfs",
        ]);
        podman.arg(root.path()).args(["/usr/bin/bash", "-c", script]);
        podman
    })?;
    drop(agent);
    Ok(())
}
