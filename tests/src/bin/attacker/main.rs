//! A process that tries to get around the capture: `attacker ATTEMPT NAME=VALUE...`.
//!
//! It says in one line what came of it: `answered` and the reply, `bound`, `made`, or `refused ERRNO at STEP`; behind it
//! `pid=` and the process that connected. With `start=inside` it first moves into the captured cgroup `inside=`.
//!
//! - `ask`: the words, and what is said
//! - `speak`: the call that every attempt makes once it is connected
//! - `tcp`, `datagram`: ways to connect and to send
//! - `passed`, `processes`: descriptors, cgroups, namespaces, process ids
//! - `ports`: the agent's port
//! - `crowd`: many connections

mod ask;
mod crowd;
mod datagram;
mod passed;
mod ports;
mod processes;
mod speak;
mod tcp;

use anyhow::{Context as _, Result};
use nix::unistd::{Uid, setuid};

use ask::{Ask, At as _, Tried, host_pid, stopped};

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let attempt = words.next().context("which attempt?")?;
    say(attempted(&attempt, Ask::read(words)?));
    Ok(())
}

/// The one line. A helper has nothing to say.
fn say(tried: Tried) {
    let said = tried.unwrap_or_else(|stopped| stopped.line());
    if said.is_empty() {
        return;
    }
    if said.contains(" pid=") {
        println!("{said}");
    } else {
        println!("{said} pid={}", host_pid().unwrap_or_default());
    }
}

fn attempted(attempt: &str, ask: Ask) -> Tried {
    if ask.find("start") == Some("inside") && attempt != "speaks-on" {
        ask.join()?;
    }
    if let Some(user) = ask.find("as") {
        let user = user.parse().map_err(|_| stopped("start", "no user"))?;
        setuid(Uid::from_raw(user)).at("user")?;
    }
    match attempt {
        "tcp" => tcp::plain(&ask),
        "connects" => tcp::connects(&ask),
        "nonblocking" => tcp::nonblocking(&ask),
        "fast-open" => tcp::fast_open(&ask),
        "fast-open-connect" => tcp::fast_open_connect(&ask),
        "ring" => tcp::ring(&ask),
        "again" => tcp::again(&ask),
        "twice" => tcp::twice(&ask),
        "makes" => tcp::other_protocol(&ask),
        "udp-connected" => datagram::connected(&ask),
        "udp-connected-before" => datagram::connected_before(&ask),
        "udp-sent" => datagram::sent(&ask),
        "udp-sent-without-family" => datagram::sent_without_family(&ask),
        "raw" => datagram::raw(&ask),
        "packet" => datagram::packet(&ask),
        "received" => passed::received(&ask),
        "received-connected" => passed::received_connected(&ask),
        "gives-socket" => passed::gives(&ask, false),
        "gives-connected" => passed::gives(&ask, true),
        "handed-on" => passed::handed_on(&ask),
        "speaks-for" => passed::speaks_for(&ask),
        "relayed" => passed::relayed(&ask),
        "relays" => passed::relays(&ask),
        "joins-late" => processes::joins_late(&ask),
        "joins-late-with-ring" => processes::joins_late_with_ring(&ask),
        "leaves-with-socket" => processes::leaves_with_socket(&ask),
        "leaves" => processes::leaves(&ask),
        "below" => processes::below(&ask),
        "becomes-another" => processes::becomes_another(&ask),
        "speaks-on" => processes::speaks_on(&ask),
        "unshared" => processes::unshared(&ask),
        "first-of-its-pids" => processes::first_of_its_pids(&ask),
        "elsewhere" => processes::elsewhere(&ask),
        "socket-from-elsewhere" => processes::socket_from_elsewhere(&ask),
        "socket-to-elsewhere" => processes::socket_to_elsewhere(&ask),
        "leaderless" => processes::leaderless(ask),
        "reuses-pid" => processes::reuses_pid(&ask),
        "under-pid" => processes::under_pid(&ask),
        "connects-inside" => processes::connects_inside(&ask),
        "calls-beside" => processes::calls_beside(&ask),
        "bind" => ports::bind(&ask),
        "impostor" => ports::impostor(&ask),
        "crowd" => crowd::crowd(&ask),
        "load" => crowd::load(&ask),
        other => Err(stopped("start", format!("no attempt `{other}`"))),
    }
}
