//! What the rounds come to: ratios, medians, and the goals of one hop.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::rounds::Row;
use super::stage::{Case, Sample};
use crate::workspace::run_quietly;

/// One row against another of the same case, round by round; the median of it.
fn ratio(row: &Row, base: &Row, of: impl Fn(&Sample) -> f64) -> f64 {
    median(
        row.samples.iter().zip(&base.samples).map(|(one, other)| of(one) / of(other).max(f64::MIN_POSITIVE)),
    )
}

fn middle(row: &Row, of: impl Fn(&Sample) -> f64) -> f64 {
    median(row.samples.iter().map(of))
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count => (values[(count - 1) / 2] + values[count / 2]) / 2.0,
    }
}

fn of<'r>(rows: &'r [Row], contestant: &str, case: &Case) -> Option<&'r Row> {
    rows.iter().find(|row| row.contestant == contestant && row.case == *case)
}

/// How much the slowest round of `direct` took more than the fastest.
fn drift(rows: &[Row]) -> f64 {
    let drifts = rows.iter().filter(|row| row.contestant == "direct").map(|row| {
        let all = || row.samples.iter().map(|sample| sample.p50_us);
        (all().fold(0.0, f64::max) / all().fold(f64::MAX, f64::min) - 1.0) * 100.0
    });
    drifts.fold(0.0, f64::max)
}

/// As the tables have it.
pub(super) fn name(case: &Case) -> String {
    let size =
        if case.bytes < 1024 { format!("{} B", case.bytes) } else { format!("{} KiB", case.bytes / 1024) };
    let kind = if case.anew { "a connection each" } else { case.kind };
    let callers = if case.callers > 1 { format!(", {} callers", case.callers) } else { String::new() };
    format!("{kind} {size} / {}{callers}", case.connections)
}

/// When and where it was measured.
pub(super) fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let models: Vec<&str> = cpus.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
    let date = run_quietly(Command::new("date").args(["--utc", "+%F"])).map(|output| output.stdout);
    format!(
        "{}, {} x {}, Linux {}, load average {} (5 minutes).\n",
        String::from_utf8_lossy(&date.unwrap_or_default()).trim(),
        models.len(),
        models.first().copied().unwrap_or("unknown CPU"),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').nth(1).unwrap_or_default(),
    )
}

/// Both tables.
pub(super) fn markdown(rows: &[Row]) -> String {
    let rounds = rows.first().map_or(0, |row| row.samples.len());
    let mut text = format!(
        "\n{}\nRatios to `direct` of the same round, medians of {rounds} rounds; p50 of `direct` drifted by up to {:.0} %.\n\n\
         | case / connections | contestant | p50 x | p99 x | rps x | p50 us | rps | CPU us/request | MiB idle | MiB load |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        machine(),
        drift(rows)
    );
    for row in rows {
        let Some(direct) = of(rows, "direct", &row.case) else { continue };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {:.1} | {:.1} | {:.1} |",
            name(&row.case),
            row.contestant,
            ratio(row, direct, |s| s.p50_us),
            ratio(row, direct, |s| s.p99_us),
            ratio(row, direct, |s| s.per_second),
            middle(row, |s| s.p50_us),
            middle(row, |s| s.per_second),
            middle(row, |s| s.cpu_us),
            row.idle_mib,
            middle(row, |s| s.load_mib),
        );
    }
    text + &goals(rows)
}

/// One goal: what, how it came out, its limit, and whether it may be no more than that.
struct Goal {
    what: String,
    value: f64,
    limit: f64,
    at_most: bool,
}

impl Goal {
    fn is_met(&self) -> bool {
        if self.at_most { self.value <= self.limit } else { self.value >= self.limit }
    }
}

/// The gates of one hop: against nginx of the same round; no more than so much over `direct`.
fn goals(rows: &[Row]) -> String {
    let mut goals = Vec::new();
    for row in rows.iter().filter(|row| row.contestant == "toolgate") {
        let case = &row.case;
        let name = name(case);
        if let Some(direct) = of(rows, "direct", case).filter(|_| case.anew) {
            if case.connections == 1 {
                let more = |(one, other): (&Sample, &Sample)| one.p50_us - other.p50_us;
                let value = median(row.samples.iter().zip(&direct.samples).map(more));
                goals.push(Goal {
                    what: format!("{name}: us more than direct, p50"),
                    value,
                    limit: 60.0,
                    at_most: true,
                });
            } else {
                let value = middle(row, |s| s.per_second);
                goals.push(Goal {
                    what: format!("{name}: connections/s"),
                    value,
                    limit: 10_000.0,
                    at_most: false,
                });
            }
        }
        let Some(nginx) = of(rows, "nginx", case).filter(|_| case.kind == "text" && !case.anew) else {
            continue;
        };
        let mut gate = |what: &str, value: f64, at_most: bool| {
            goals.push(Goal { what: format!("{name}: {what} x nginx"), value, limit: 1.0, at_most });
        };
        match (case.connections, case.bytes < 1024, case.callers) {
            (1, true, _) => {
                gate("p50", ratio(row, nginx, |s| s.p50_us), true);
                gate("p99", ratio(row, nginx, |s| s.p99_us), true);
            }
            (_, true, _) => gate("rps", ratio(row, nginx, |s| s.per_second), false),
            (2.., false, 1) => {
                gate("p50", ratio(row, nginx, |s| s.p50_us), true);
                gate("rps", ratio(row, nginx, |s| s.per_second), false);
            }
            (_, false, _) => continue,
        }
        gate("CPU", ratio(row, nginx, |s| s.cpu_us), true);
    }
    if let Some(row) = rows.iter().find(|row| row.contestant == "toolgate") {
        let what = "memory of the idle agent, MiB".to_owned();
        goals.push(Goal { what, value: row.idle_mib, limit: 12.0, at_most: true });
    }
    let mut text = "\n| goal | measured | gate | |\n| --- | --- | --- | --- |\n".to_owned();
    for goal in &goals {
        let (sign, met) =
            (if goal.at_most { "<=" } else { ">=" }, if goal.is_met() { "met" } else { "missed" });
        let _ = writeln!(text, "| {} | {:.2} | {sign} {} | {met} |", goal.what, goal.value, goal.limit);
    }
    text
}

/// An array, an object for each row.
pub(super) fn json(rows: &[Row]) -> Result<String> {
    let all: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let direct = of(rows, "direct", &row.case)?;
            Some(json!({
                "contestant": row.contestant,
                "kind": if row.case.anew { "connect" } else { row.case.kind },
                "bytes": row.case.bytes,
                "connections": row.case.connections,
                "callers": row.case.callers,
                "p50_ratio": ratio(row, direct, |s| s.p50_us),
                "p99_ratio": ratio(row, direct, |s| s.p99_us),
                "rps_ratio": ratio(row, direct, |s| s.per_second),
                "cpu_us_per_request": middle(row, |s| s.cpu_us),
                "rss_idle_mib": row.idle_mib,
                "rss_load_mib": middle(row, |s| s.load_mib),
                "rounds": row.samples.len(),
            }))
        })
        .collect();
    serde_json::to_string_pretty(&all).context("the results are no JSON")
}
