//! Every BPF program does not only load and attach, it runs: a kernel may take a program and never call it.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use toolgate_tests::{Process, Scene};

/// What begins the metric of each way through a program.
const METRIC: &str = "toolgate_kernel_events_total{program=\"";

/// Everything that a hook of capture is for, once. Whether it is refused is for other tests.
const CLIENT: &str = r#"
import socket, sys
families = [(socket.AF_INET, "127.0.0.1", int(sys.argv[1])), (socket.AF_INET6, "::1", int(sys.argv[2]))]
def once(what, do):
    try: do()
    except OSError as error: what += " (%s)" % error
    print(what, flush=True)
def connect(family, kind, to):
    with socket.socket(family, kind) as made:
        made.settimeout(5)
        made.connect(to)
        made.getpeername()
def send(family, to):
    with socket.socket(family, socket.SOCK_DGRAM) as made: made.sendto(b"", to)
def bind(family, address):
    with socket.socket(family) as made: made.bind((address, 0))
for family, address, port in families:
    once("tcp to " + address, lambda: connect(family, socket.SOCK_STREAM, (address, port)))
    once("udp to " + address, lambda: connect(family, socket.SOCK_DGRAM, (address, 443)))
    once("datagram to " + address, lambda: send(family, (address, 443)))
    once("bind to " + address, lambda: bind(family, address))
    once("raw " + address, lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
print("done", flush=True)
"#;

/// How often each program ran, by its name.
fn fired(metrics: &str) -> Result<BTreeMap<String, u64>> {
    let mut programs = BTreeMap::new();
    for line in metrics.lines() {
        let Some(line) = line.strip_prefix(METRIC) else { continue };
        let (program, rest) = line.split_once('"').context("a metric without program")?;
        let count: u64 = rest.rsplit_once(' ').context("a metric without value")?.1.parse()?;
        *programs.entry(program.to_owned()).or_default() += count;
    }
    Ok(programs)
}

fn go_everywhere(scene: &Scene, server: SocketAddr) -> Result<()> {
    // By IPv6 elsewhere: the port of a declared server is refused there before a connection is made.
    let other = TcpListener::bind("[::1]:0").context("cannot listen by IPv6")?;
    let mut client = scene.agent.exec("reader");
    client.args(["/usr/bin/python3", "-c", CLIENT]);
    client.args([server, other.local_addr()?].map(|address| address.port().to_string()));
    let mut client = Process::start(&mut client)?;
    client.line("done")?;
    let ended = client.end()?;
    println!("{}", client.said());
    ensure!(ended.success(), "the client ended with {ended}");
    Ok(())
}

#[test]
fn every_program_fires() -> Result<()> {
    let scene = Scene::set()?;
    go_everywhere(&scene, scene.server.address)?;
    let programs = fired(&scene.agent.metrics()?)?;
    ensure!(!programs.is_empty(), "the agent counts nothing of its programs");
    for (program, count) in &programs {
        println!("fired: {program} {count}");
    }
    let silent: Vec<_> = programs.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name).collect();
    ensure!(silent.is_empty(), "loaded and attached, but never run: {silent:?}");
    Ok(())
}
