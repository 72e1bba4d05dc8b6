//! How cost grows with what is configured and what is open: it should not.

use std::fmt::Write as _;

use anyhow::Result;

use super::contestant::Contestant;
use super::load::{Load, Order};
use super::resources::workload;
use super::stage::{Case, Stage};
use super::usage;
use crate::leftovers::Leftovers;
use crate::workspace::say;

const RULES: [usize; 3] = [1, 100, 10_000];
const WORKLOADS: [usize; 3] = [1, 100, 1_000];
const OPEN: [usize; 3] = [1, 1_000, 10_000];
/// Descriptors that a process needs besides.
const OTHERS: u64 = 1_000;
/// Rules of one Policy.
const RULES_A_POLICY: usize = 100;

const MILLIS: u64 = 1_000;
const ROUNDS: usize = 3;

/// Measures, and prints a table.
pub(super) fn growth(stage: &mut Stage<'_>, descriptors: u64, leftovers: &mut Leftovers) -> Result<()> {
    let mut table = "\n| what | count | p50 us, 300 B / 1 | rps, 300 B / 64 | CPU us/request | MiB | KiB for each more |\n\
                     | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for (what, counts, text) in
        [("rules", RULES, rules as fn(usize) -> String), ("workloads", WORKLOADS, workloads)]
    {
        let mut before = None;
        for count in counts {
            say(format_args!("{count} {what}"));
            let agent = stage.toolgate(None, &text(count), leftovers)?;
            line(stage, &agent, (what, count), &mut before, &mut table)?;
            agent.stop()?;
        }
    }
    for (what, streams) in [("open SSE streams", true), ("idle connections", false)] {
        let agent = stage.toolgate(None, "", leftovers)?;
        let mut before = None;
        let mut holder = Load::start(None)?;
        // Each has two descriptors in the agent.
        let most = usize::try_from(descriptors.saturating_sub(OTHERS) / 2).unwrap_or(usize::MAX);
        for count in OPEN.map(|count| count.min(most)) {
            say(format_args!("{count} {what}"));
            hold(stage, &agent, &mut holder, count, streams)?;
            line(stage, &agent, (what, count), &mut before, &mut table)?;
        }
        drop(holder);
        agent.stop()?;
    }
    print!("{table}");
    Ok(())
}

fn hold(stage: &Stage<'_>, agent: &Contestant, holder: &mut Load, count: usize, streams: bool) -> Result<()> {
    let case = Case { kind: "text", bytes: 300, connections: 0, callers: 1, anew: false };
    holder.obey_text(&Order::Open(stage.open(agent, case)).text()?)?;
    holder.obey(&Order::Hold { count, streams })?;
    Ok(())
}

/// One line of the table; memory before and after what was added, while nothing is asked.
fn line(
    stage: &mut Stage<'_>,
    agent: &Contestant,
    (what, count): (&str, usize),
    before: &mut Option<(f64, f64)>,
    table: &mut String,
) -> Result<()> {
    let mib = usage::resident_mib(&agent.processes)?;
    let count_now = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let each = before.map_or(0.0, |(count, mib_before)| (mib - mib_before) * 1024.0 / (count_now - count));
    *before = Some((count_now, mib));
    let one = Case { kind: "text", bytes: 300, connections: 1, callers: 1, anew: false };
    let many = Case { connections: 64, ..one };
    let (mut p50, mut rate, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        p50.push(stage.sample(agent, one, MILLIS)?.p50_us);
        let sample = stage.sample(agent, many, MILLIS)?;
        rate.push(sample.per_second);
        cpu.push(sample.cpu_us);
    }
    let middle = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[ROUNDS / 2]
    };
    let (p50, rate, cpu) = (middle(p50), middle(rate), middle(cpu));
    // Writing to a String cannot fail.
    let _ = writeln!(table, "| {what} | {count} | {p50:.1} | {rate:.0} | {cpu:.1} | {mib:.1} | {each:.2} |");
    Ok(())
}

/// Rules about other callers and tools, which none of the requests is about.
fn rules(count: usize) -> String {
    let mut text = String::new();
    for number in 0..count {
        if number % RULES_A_POLICY == 0 {
            let _ = write!(
                text,
                "---\napiVersion: toolgate/v1\nkind: Policy\nmetadata: {{ name: more-{} }}\nspec:\n  rules:\n",
                number / RULES_A_POLICY
            );
        }
        let _ = writeln!(
            text,
            "  - {{ name: r{number}, effect: allow, callers: [other-{}], servers: [upstream], tools: [tool-{number}], \
             arguments: {{ path: {{ within: /srv/{number} }} }} }}",
            number % 500
        );
    }
    text
}

fn workloads(count: usize) -> String {
    (0..count).map(|number| workload(&format!("other-{number}"), &format!("other.slice/c{number}"))).collect()
}
