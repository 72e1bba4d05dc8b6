//! A million requests through one agent: what leaks shows.

use anyhow::{Context as _, Result};

use super::stage::{CALLERS, Case, Stage};
use super::usage;
use crate::leftovers::Leftovers;
use crate::workspace::say;

const REQUESTS: f64 = 1_000_000.0;
/// Of one step, after which memory and descriptors are looked at.
const MILLIS: u64 = 2_000;
/// Rounds of all cases: each half has whole ones, so that like is compared with like, and by the half all has run once that
/// comes by time (canaries, sweeps, a heap that was trimmed).
const ROUNDS_MIN: usize = 10;
/// A machine of 5,000 requests/s gets there.
const ROUNDS_MAX: usize = 18;

/// Memory and descriptors after so many requests.
struct Point {
    requests: f64,
    mib: f64,
    descriptors: usize,
}

/// Asks, and prints what memory and descriptors did in the second half.
pub(super) fn soak(stage: &mut Stage<'_>, leftovers: &mut Leftovers) -> Result<()> {
    let agent = stage.toolgate(None, "", leftovers)?;
    let process = *agent.processes.first().context("the agent has no process")?;
    let case = |bytes, callers| Case { kind: "text", bytes, connections: 64, callers, anew: false };
    // Small ones most of the time; what is larger, comes as an event, or comes from many callers takes other ways.
    let sse = Case { kind: "sse", ..case(300, 1) };
    let anew = Case { anew: true, ..case(300, 1) };
    let cases = [case(300, 1), case(300, CALLERS), sse, case(300, 1), case(65_536, 1), anew];
    let mut points: Vec<Point> = Vec::new();
    let mut requests = 0.0;
    for round in 1..=ROUNDS_MAX {
        for case in cases {
            requests += stage.sample(&agent, case, MILLIS)?.requests;
            let mib = usage::resident_mib(&agent.processes)?;
            points.push(Point { requests, mib, descriptors: usage::descriptors(process)? });
        }
        if let Some(Point { requests, mib, descriptors }) = points.last() {
            say(format_args!("{requests:.0} requests: {mib:.2} MiB, {descriptors} descriptors"));
        }
        if requests >= REQUESTS && round >= ROUNDS_MIN && round % 2 == 0 {
            break;
        }
    }
    agent.stop()?;
    let (first, second) = points.split_at(points.len() / 2);
    let (half, last) = (first.last().context("no half")?, second.last().context("nothing was asked")?);
    let bytes = (last.mib - half.mib) * 1024.0 * 1024.0 / (last.requests - half.requests);
    // How many connections are kept depends on the case and on chance; one that leaked is open in each of them.
    let fewest = |points: &[Point]| points.iter().map(|point| point.descriptors).min().unwrap_or_default();
    let (before, after) = (fewest(first), fewest(second));
    let met = if bytes < 1.0 && after <= before { "met" } else { "missed" };
    println!(
        "\n{:.0} requests: {:.2} MiB at half, {:.2} MiB at the end, {bytes:.3} bytes a request (goal: < 1); \
         descriptors at least {before} in the first half, {after} in the second: {met}",
        last.requests, half.mib, last.mib
    );
    Ok(())
}
