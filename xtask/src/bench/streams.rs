//! Many open event streams with an event each second: what they take, how late events are, and whom a slow reader slows.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use super::contestant::Contestant;
use super::load::{Done, Load, Order};
use super::stage::{Case, Stage};
use super::usage;
use crate::leftovers::Leftovers;
use crate::workspace::say;

const STREAMS: usize = 1_000;
/// Streams whose events come as fast as they are taken, and that nobody reads.
const UNREAD: usize = 10;
/// Each of ten seconds: a minute.
const STEPS: usize = 6;
const STEP_MILLIS: u64 = 10_000;
/// What the agent may add to the 99th percentile.
const ADDED_MS_MAX: f64 = 5.0;

/// One contestant, and its streams.
struct Side<'c> {
    to: &'c Contestant,
    load: Load,
    /// MiB before any was open.
    before: f64,
}

/// Measures, and prints a table. Both sides are heard at once: whatever else the machine does meets both.
pub(super) fn streams(stage: &Stage<'_>, leftovers: &mut Leftovers) -> Result<()> {
    let direct = Contestant::direct(stage.plain);
    let agent = stage.toolgate(None, "", leftovers)?;
    let mut sides = [Side::open(stage, &direct)?, Side::open(stage, &agent)?];
    let mut table = format!(
        "\n| {STREAMS} streams, 60 s | unread beside | events | delay p50 us | p99 us | MiB | KiB a stream |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for unread in [0, UNREAD] {
        say(format_args!("{STREAMS} streams on each side, beside {unread} that nobody reads"));
        for side in &mut sides {
            side.load.obey(&Order::Listen { count: unread, read: false })?;
        }
        let [direct, through] = minute(&mut sides)?;
        for (side, heard) in sides.iter().zip([direct, through]) {
            side.line(unread, heard, &mut table)?;
        }
        let added = (through.p99_ns - direct.p99_ns) / 1e6;
        let met = if added < ADDED_MS_MAX { "met" } else { "missed" };
        say(format_args!("{unread} unread: {added:.2} ms more at p99 (goal: < {ADDED_MS_MAX}): {met}"));
    }
    drop(sides);
    print!("{table}");
    agent.stop()
}

/// What both sides hear in a minute. An event that is lost or out of turn is an error.
fn minute(sides: &mut [Side<'_>; 2]) -> Result<[Done; 2]> {
    let hear = |load: &mut Load| -> Result<Done> {
        for _ in 1..STEPS {
            load.obey(&Order::Hear { millis: STEP_MILLIS })?;
        }
        load.obey(&Order::Hear { millis: STEP_MILLIS })
    };
    let [direct, through] = sides.each_mut().map(|side| &mut side.load);
    std::thread::scope(|scope| {
        let direct = scope.spawn(|| hear(direct));
        let through = hear(through)?;
        let direct = direct.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok([direct, through])
    })
}

impl<'c> Side<'c> {
    fn open(stage: &Stage<'_>, to: &'c Contestant) -> Result<Self> {
        let case = Case { kind: "text", bytes: 300, connections: 0, callers: 1, anew: false };
        let mut load = Load::start(None)?;
        load.obey_text(&Order::Open(stage.open(to, case)).text()?)?;
        let before = usage::resident_mib(&to.processes)?;
        load.obey(&Order::Listen { count: STREAMS, read: true })?;
        Ok(Self { to, load, before })
    }

    fn line(&self, unread: usize, heard: Done, table: &mut String) -> Result<()> {
        let mib = usage::resident_mib(&self.to.processes)?;
        let each = (mib - self.before) * 1024.0 / STREAMS as f64;
        let (p50, p99) = (heard.p50_ns / 1e3, heard.p99_ns / 1e3);
        let (name, events) = (self.to.name, heard.requests);
        // Writing to a String cannot fail.
        let _ =
            writeln!(table, "| {name} | {unread} | {events} | {p50:.0} | {p99:.0} | {mib:.1} | {each:.1} |");
        Ok(())
    }
}
