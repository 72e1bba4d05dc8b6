//! The agent beside an earlier one: what a change costs. Only one runs on a host at a time, so they take turns.

use std::path::Path;

use anyhow::Result;

use super::report::{median, name};
use super::rounds::Plan;
use super::stage::{Case, Sample, Stage};
use super::{Wanted, report};
use crate::leftovers::Leftovers;
use crate::workspace::say;

/// How much dearer than the earlier one is no more than noise.
const TOLERANCE: f64 = 1.03;

/// Of a sample.
type Figure = fn(&Sample) -> f64;

/// What is compared: its name in the table, and what of a sample is the less the better.
const FIGURES: [(&str, Figure); 4] = [
    ("p50", |sample| sample.p50_us),
    ("p99", |sample| sample.p99_us),
    ("us/request", |sample| 1e6 / sample.per_second.max(f64::MIN_POSITIVE)),
    ("CPU", |sample| sample.cpu_us),
];

/// Measures both in each case of each round, and prints how they compare.
pub(super) fn compare(
    stage: &mut Stage<'_>,
    before: &Path,
    wanted: &Wanted,
    leftovers: &mut Leftovers,
) -> Result<()> {
    let plan = Plan::of(wanted);
    let mut pairs: Vec<(Case, Vec<[Sample; 2]>)> =
        plan.cases.iter().map(|case| (*case, Vec::new())).collect();
    for round in 0..plan.rounds {
        say(format_args!("round {} of {}", round + 1, plan.rounds));
        for (case, samples) in &mut pairs {
            let mut measure = |binary| one(stage, binary, *case, plan.millis, leftovers);
            // Each goes first as often as the other.
            samples.push(if round % 2 == 0 {
                let earlier = measure(Some(before))?;
                [earlier, measure(None)?]
            } else {
                let later = measure(None)?;
                [measure(Some(before))?, later]
            });
        }
    }
    print!("{}", markdown(before, &pairs));
    Ok(())
}

fn one(
    stage: &mut Stage<'_>,
    binary: Option<&Path>,
    case: Case,
    millis: u64,
    leftovers: &mut Leftovers,
) -> Result<Sample> {
    let agent = stage.toolgate(binary, "", leftovers)?;
    let sample = stage.sample(&agent, case, millis)?;
    agent.stop()?;
    Ok(sample)
}

fn markdown(before: &Path, pairs: &[(Case, Vec<[Sample; 2]>)]) -> String {
    let rounds = pairs.first().map_or(0, |(_, samples)| samples.len());
    let mut text = format!(
        "\n{}\nThis agent in ratios to `{}`, {rounds} pairs for each case, one after the other: median (quartiles). At most {TOLERANCE} is met.\n\n\
         | case / connections |{} |\n| --- |{}\n",
        report::machine(),
        before.display(),
        FIGURES.map(|(name, _)| format!(" {name} x | |")).concat().trim_end_matches('|'),
        " --- |".repeat(2 * FIGURES.len()),
    );
    for (case, samples) in pairs {
        text += &format!("| {} |", name(case));
        for (_, of) in FIGURES {
            let mut ratios: Vec<f64> = samples.iter().map(|[before, after]| of(after) / of(before)).collect();
            ratios.sort_by(f64::total_cmp);
            let quartile =
                |part: usize| ratios.get((ratios.len() - 1) * part / 4).copied().unwrap_or(f64::NAN);
            let middle = median(ratios.iter().copied());
            let met = if middle <= TOLERANCE { "met" } else { "missed" };
            text += &format!(" {middle:.3} ({:.2}-{:.2}) | {met} |", quartile(1), quartile(3));
        }
        text.push('\n');
    }
    text
}
