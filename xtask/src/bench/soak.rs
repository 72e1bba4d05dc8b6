//! A million requests through one agent: what leaks shows.

use anyhow::{Context as _, Result};

use super::stage::{CALLERS, Case, Stage};
use super::usage;
use crate::leftovers::Leftovers;
use crate::workspace::say;

const REQUESTS: f64 = 1_000_000.0;
/// Of one step, after which memory and descriptors are looked at.
const MILLIS: u64 = 2_000;
/// Steps at most: a machine of 5,000 requests/s gets there.
const STEPS_MAX: usize = 100;

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
    for (step, case) in (0..STEPS_MAX).zip(cases.into_iter().cycle()) {
        let sample = stage.sample(&agent, case, MILLIS)?;
        requests += sample.requests;
        let descriptors = usage::descriptors(process)?;
        points.push(Point { requests, mib: usage::resident_mib(&agent.processes)?, descriptors });
        if step % cases.len() == 0 {
            say(format_args!(
                "{requests:.0} requests: {:.2} MiB, {descriptors} descriptors",
                sample.load_mib
            ));
        }
        if requests >= REQUESTS {
            break;
        }
    }
    agent.stop()?;
    let last = points.last().context("nothing was asked")?;
    let half = points.iter().find(|point| point.requests >= last.requests / 2.0).context("no half")?;
    let bytes = (last.mib - half.mib) * 1024.0 * 1024.0 / (last.requests - half.requests);
    // How many connections to the server are kept after a case depends on the case: what they come to at most, tells.
    let most = |points: &[Point]| points.iter().map(|point| point.descriptors).max().unwrap_or_default();
    let (first, second) = points.split_at(points.partition_point(|point| point.requests < half.requests));
    let (before, after) = (most(first), most(second));
    let met = if bytes < 1.0 && after <= before { "met" } else { "missed" };
    println!(
        "\n{:.0} requests: {:.2} MiB at half, {:.2} MiB at the end, {bytes:.3} bytes a request (goal: < 1); \
         descriptors at most {before} in the first half, {after} in the second: {met}",
        last.requests, half.mib, last.mib
    );
    Ok(())
}
