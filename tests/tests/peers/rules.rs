//! Another agent, with an SVID that is good, that does not keep to the rules of a shared connection: it is cut off, and costs
//! nobody else anything.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;
use toolgate::peer::lanes::LANES_MAX;
use toolgate_core::lanes::{DATA_BYTES_MAX, Kind, REQUEST_WINDOW_BYTES};
use toolgate_tests::scene::{call, is_result};

use crate::hosts::Hosts;
use crate::impostors::{HOUR, READER, Shown, Signer, connected};

const PROTOCOL: &[u8] = b"toolgate/2";
/// Lanes that are opened and broken off.
const MANY: u32 = 100_000;
/// What the agent may hold more after that: of a debug build, and far below what so many lanes would cost.
const HELD_BYTES_MAX: usize = 64 << 20;

fn frame(lane: u32, kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&lane.to_be_bytes()[..], &[kind.byte()], &length[1..], payload].concat()
}

fn visitor(hosts: &Hosts) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let (signer, now) = (Signer::stolen(&hosts.servers)?, SystemTime::now());
    connected(hosts, Shown::of(READER, &signer, [now - HOUR, now + HOUR])?, PROTOCOL)
}

/// The end of the connection: whatever is read before it.
fn ends(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
            {
                return Err(error).context("the connection goes on");
            }
            Err(_) => return Ok(()), // closed without a word, or reset
        }
    }
}

/// The agent has cut it off, for that; what it said of others begins at `told`, and ends where is told.
fn is_cut_off(
    hosts: &Hosts,
    mut stream: StreamOwned<ClientConnection, TcpStream>,
    why: &str,
    told: usize,
) -> Result<usize> {
    ends(&mut stream)?;
    let (at, line) = hosts.servers.process().line_from(told, "with all its calls")?;
    ensure!(line.contains(why), "{line}");
    Ok(at + 1)
}

#[test]
fn who_breaks_the_rules_is_cut_off_and_others_go_on() -> Result<()> {
    let hosts = Hosts::set()?;
    let open = |lane| frame(lane, Kind::Open, b"");
    let crowd: Vec<u8> = (1..=u32::try_from(LANES_MAX)? + 1).flat_map(open).collect();
    let table = [
        ("no frame", b"POST /mcp HTTP/1.1\r\n\r\n".to_vec(), "a frame of kind"),
        ("bytes on no lane", frame(1, Kind::Data, b"x"), "which was never opened"),
        ("a lane out of turn", open(7), "lane 7 is opened where 1 is the next"),
        (
            "credit beyond the window",
            [open(1), frame(1, Kind::Credit, &[255; 4])].concat(),
            "beyond its window",
        ),
        (
            "too long a frame",
            [open(1), vec![0, 0, 0, 1, 2, 255, 255, 255]].concat(),
            "a Data frame of 16777215 bytes",
        ),
        ("more lanes than are agreed on", crowd, "lanes at once"),
        ("leaving from the wrong end", frame(0, Kind::Leaving, b""), "may not send it"),
    ];
    let (_caller, mut other) = hosts.caller("reader")?;
    let mut told = 0;
    for (id, (case, said, why)) in table.into_iter().enumerate() {
        let mut stream = visitor(&hosts)?;
        // It may be cut off before all is said.
        let _ = stream.write_all(&said);
        told = is_cut_off(&hosts, stream, why, told).context(case)?;
        ensure!(is_result(&other.post(&call(id as u64, "echo", &json!({})))?)?, "{case}");
    }
    Ok(())
}

#[test]
fn who_says_more_than_there_is_credit_for_is_cut_off() -> Result<()> {
    let hosts = Hosts::set()?;
    let mut stream = visitor(&hosts)?;
    let body = call(1, "stream", &json!({}));
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Accept: application/json, text/event-stream\r\n\r\n",
        hosts.address,
        body.len()
    );
    stream.write_all(&frame(1, Kind::Open, b""))?;
    stream.write_all(&frame(1, Kind::Data, &[request.as_bytes(), &body].concat()))?;
    hosts.server.request()?;
    // Nobody reads all of the first before the answer has ended, and the second does not fit behind it.
    let more =
        [REQUEST_WINDOW_BYTES / 2, DATA_BYTES_MAX].map(|count| frame(1, Kind::Data, &vec![b'x'; count]));
    let more = more.concat();
    let _ = stream.write_all(&more);
    is_cut_off(&hosts, stream, "than there was credit for", 0).map(drop)?;
    // What its call says has nobody to go to.
    hosts.server.send_event(&json!({ "jsonrpc": "2.0", "method": "notifications/message",
                                     "params": { "level": "info", "data": 1 } }))?;
    ensure!(hosts.server.left()? == 0, "its call goes on");
    Ok(())
}

fn resident_bytes(process: u32) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<usize>()? * 1024)
}

#[test]
fn who_opens_lanes_without_end_holds_no_more_than_some_and_others_go_on() -> Result<()> {
    let hosts = Hosts::set()?;
    let (_caller, mut other) = hosts.caller("reader")?;
    ensure!(is_result(&other.post(&call(1, "echo", &json!({})))?)?);
    let agent = hosts.servers.process().id();
    let before = resident_bytes(agent)?;
    let mut stream = visitor(&hosts)?;
    let head = b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n";
    for lanes in (1..=MANY).collect::<Vec<_>>().chunks(500) {
        let one = |lane: &u32| {
            [(Kind::Open, &b""[..]), (Kind::Data, head), (Kind::Reset, b"")]
                .map(|(kind, payload)| frame(*lane, kind, payload))
                .concat()
        };
        stream.write_all(&lanes.iter().flat_map(one).collect::<Vec<u8>>())?;
        if lanes[0] % 10_000 == 1 {
            ensure!(is_result(&other.post(&call(2, "echo", &json!({})))?)?);
        }
    }
    // All of them are heard before this one is answered.
    stream.write_all(
        &[frame(MANY + 1, Kind::Open, b""), frame(MANY + 1, Kind::Data, b"no request\r\n\r\n")].concat(),
    )?;
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("400 Bad Request") {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "it was cut off");
        heard.extend_from_slice(&piece[..count]);
    }
    let held = resident_bytes(agent)?.saturating_sub(before);
    ensure!(held < HELD_BYTES_MAX, "{held} bytes more");
    ensure!(
        hosts.server.requests_now().len() <= 1 + usize::try_from(MANY / 10_000)?,
        "what was broken off got there"
    );
    Ok(())
}
