//! The rounds: every contestant in every case, one after another, again and again.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Wanted;
use super::contestant::Contestant;
use super::lineup::lineup;
use super::report::{self, Gates};
use super::stage::{CALLERS, Case, Sample, Stage};
use crate::leftovers::Leftovers;
use crate::process::not_interrupted;
use crate::workspace::say;

const SMALL: usize = 300;
const LARGE: usize = 64 * 1024;
/// Connections at once where it is not one.
const MANY: usize = 64;
/// How long nothing is asked before the memory of who rests is read.
const REST_SECONDS: u64 = 60;

/// How often and how long.
pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) millis: u64,
    pub(super) cases: Vec<Case>,
}

impl Plan {
    pub(super) fn of(wanted: &Wanted) -> Self {
        let case = |kind, bytes, connections| Case { kind, bytes, connections, callers: 1, anew: false };
        let by_all = |case: Case| Case { callers: CALLERS, ..case };
        let anew = |connections| Case { anew: true, ..case("text", SMALL, connections) };
        let mut cases = vec![
            case("text", SMALL, 1),
            case("text", SMALL, MANY),
            case("text", LARGE, MANY),
            by_all(case("text", SMALL, MANY)),
            case("sse", SMALL, MANY),
            anew(1),
            anew(MANY),
        ];
        let (rounds, millis) = if wanted.quick { (3, 400) } else { (9, 700) };
        if !wanted.quick {
            cases.extend([
                case("text", LARGE, 1),
                by_all(case("text", LARGE, MANY)),
                case("structured", LARGE, MANY),
                case("sse", SMALL, 1),
                case("sse", LARGE, MANY),
            ]);
        }
        if let Some(part) = &wanted.case {
            cases.retain(|case| report::name(case).contains(part.as_str()));
        }
        Self { rounds, millis, cases }
    }
}

/// All samples of one contestant in one case, one a round.
pub(super) struct Row {
    pub(super) contestant: &'static str,
    pub(super) case: Case,
    pub(super) idle_mib: f64,
    pub(super) rested_mib: Option<f64>,
    pub(super) samples: Vec<Sample>,
}

/// Leaves them alone: memory is not what it was when they were ready.
fn rest() -> Result<()> {
    say(format_args!("nothing is asked for {REST_SECONDS} s"));
    for _ in 0..REST_SECONDS {
        not_interrupted()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Starts the contestants, measures, and tells.
pub(super) fn rounds(stage: &mut Stage<'_>, wanted: &Wanted, leftovers: &mut Leftovers) -> Result<()> {
    let mut contestants: Vec<Contestant> = lineup(stage, wanted, leftovers)?;
    if !wanted.quick {
        rest()?;
        contestants.iter_mut().try_for_each(Contestant::rested)?;
    }
    let gates = if wanted.two_hops { Gates::TWO_HOPS } else { Gates::ONE_HOP };
    let plan = Plan::of(wanted);
    let mut rows: Vec<Row> = Vec::new();
    for &case in &plan.cases {
        rows.extend(contestants.iter().map(|contestant| Row {
            contestant: contestant.name,
            case,
            idle_mib: contestant.idle_mib,
            rested_mib: contestant.rested_mib,
            samples: Vec::new(),
        }));
    }
    for round in 0..plan.rounds {
        say(format_args!("round {} of {}", round + 1, plan.rounds));
        for (index, &case) in plan.cases.iter().enumerate() {
            // Each goes first as often as the others: what came before leaves its traces in caches and memory.
            for turn in 0..contestants.len() {
                let number = (turn + round) % contestants.len();
                let sample = stage.sample(&contestants[number], case, plan.millis)?;
                rows[index * contestants.len() + number].samples.push(sample);
            }
        }
    }
    for contestant in contestants.into_iter().rev() {
        contestant.stop()?;
    }
    print!("{}", report::markdown(&rows, &gates));
    if let Some(file) = &wanted.json {
        std::fs::write(file, report::json(&rows, &gates)?)
            .with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}
