//! Connections that wait in the agent's listeners while it hands over, or tries to.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use toolgate::netns::CANARY;
use toolgate_tests::{PATIENCE, Process, Stopped, pinned, wait};

use crate::places::{Places, agent_after, answer, inotify_instances};

/// Connections that the agent has not accepted: its threads that accept stand still, and all others go on.
struct Waiting {
    stopped: Option<Stopped>,
    streams: Vec<TcpStream>,
}

impl Waiting {
    /// From both places, at every listener.
    fn at(places: &mut Places) -> Result<Self> {
        let process = places.agent.process();
        let from = process.lines();
        let stopped = Stopped::threads(process.id(), |name| {
            name.strip_prefix("toolgate-").is_some_and(|number| number.parse::<u8>().is_ok())
        })?;
        // It beats no more, and would be lost: its connections are to wait, however long that takes.
        process.line_from(from, "makes no progress")?;
        pinned::beat_for_ever()?;
        let mut streams = Vec::new();
        for caller in [&mut places.home, &mut places.inside] {
            // Listeners take turns.
            for _ in 0..2 * stopped.count() {
                let stream = caller.connect(CANARY)?.stream;
                stream.set_read_timeout(Some(PATIENCE))?;
                streams.push(stream);
            }
        }
        Ok(Self { stopped: Some(stopped), streams })
    }

    /// Neither answered nor broken off.
    fn are_unanswered(&self) -> Result<()> {
        for (number, stream) in self.streams.iter().enumerate() {
            stream.set_nonblocking(true)?;
            let found = stream.peek(&mut [0]).map_err(|error| error.kind());
            ensure!(found == Err(ErrorKind::WouldBlock), "connection {number}: {found:?}");
            stream.set_nonblocking(false)?;
        }
        Ok(())
    }

    fn are_answered(&mut self) -> Result<()> {
        for (number, stream) in self.streams.iter_mut().enumerate() {
            answer(stream).with_context(|| format!("connection {number}"))?;
        }
        Ok(())
    }
}

#[test]
fn connections_that_wait_for_one_agent_are_served_by_the_next() -> Result<()> {
    let mut places = Places::set()?;
    let mut waiting = Waiting::at(&mut places)?;
    waiting.are_unanswered()?;
    places.agent.upgrade(&[])?;
    // The one before still stands still.
    waiting.are_answered()?;
    waiting.stopped = None;
    assert!(places.agent.stop_after_signal()?.success(), "it ends by itself");
    places.are_served()
}

#[test]
fn a_next_agent_that_fails_takes_no_connection_that_waits() -> Result<()> {
    let mut places = Places::set()?;
    let unsigned = agent_after(&places, "trap '' XFSZ\nulimit -f 0")?;
    for (name, is_starved, words) in [
        ("before it says that it is attached", true, "max_user_instances"),
        ("with the word", false, "agent.lock"),
    ] {
        let mut waiting = Waiting::at(&mut places)?;
        let used = if is_starved { inotify_instances() } else { Vec::new() };
        let failed = places.agent.upgrade(&["--binary", &unsigned]).err().context("it took over")?;
        drop(used);
        ensure!(format!("{failed:#}").contains(words), "{name}: {failed:#}");
        // It has ended.
        waiting.are_unanswered().context(name)?;
        waiting.stopped = None;
        waiting.are_answered().context(name)?;
        wait::until("captured connects not to be refused", || Ok(places.home.connect(CANARY).ok()))?;
        places.are_served().context(name)?;
    }
    Ok(())
}

#[test]
fn who_comes_while_a_next_agent_waits_for_the_word_is_served_though_it_never_gets_it() -> Result<()> {
    let mut places = Places::set()?;
    let begin = places.agent.config().join("begin");
    mkfifo(&begin, Mode::S_IRWXU)?;
    // By both ends, so that nobody waits for the other to open it.
    let mut word = fs::File::options().read(true).write(true).open(&begin)?;
    let next = agent_after(&places, &format!("echo begun >&2\nread _ < {}", begin.display()))?;
    let mut upgrade = places.agent.toolgate("upgrade");
    let mut upgrade = Process::start(upgrade.args(["--binary", &next]))?;
    places.agent.process().line("begun")?;
    // It cannot give the word.
    let main = Stopped::threads(places.agent.process().id(), |name| name == "toolgate")?;
    writeln!(word)?;
    // The next one's words: its programs are attached, its listeners are in place soon.
    places.agent.process().line("took over from an agent")?;
    wait::until("the next agent to give up", || {
        for caller in [&mut places.home, &mut places.inside] {
            let mut stream = caller.connect(CANARY)?.stream;
            stream.set_read_timeout(Some(PATIENCE))?;
            answer(&mut stream)?;
        }
        Ok(places.agent.process().said().contains("the two agents cannot talk").then_some(()))
    })?;
    drop(main);
    ensure!(!upgrade.end()?.success(), "{}", upgrade.said());
    places.are_served()
}
