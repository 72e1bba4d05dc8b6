//! What the rounds come to: ratios, medians, and the goals.

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
pub(super) fn markdown(rows: &[Row], gates: &Gates) -> String {
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
    text + &goals(rows, gates)
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

/// The limits of what is measured against nginx of the same round, on the same way; the rest is about one hop alone.
pub(super) struct Gates {
    hops: u32,
    small_p50: f64,
    small_p99: Option<f64>,
    small_rate: f64,
    large_p50: f64,
    large_rate: Option<f64>,
    cpu: f64,
    is_alone: bool,
}

impl Gates {
    /// Of an agent that has both ends.
    pub(super) const ONE_HOP: Self = Self {
        hops: 1,
        small_p50: 1.0,
        small_p99: Some(1.0),
        small_rate: 1.0,
        large_p50: 1.0,
        large_rate: Some(1.0),
        cpu: 1.0,
        is_alone: true,
    };
    /// Of two with mutual TLS between them, both of which decide.
    pub(super) const TWO_HOPS: Self = Self {
        hops: 2,
        small_p50: 0.9,
        small_p99: None,
        small_rate: 1.15,
        large_p50: 0.85,
        large_rate: None,
        cpu: 0.85,
        is_alone: false,
    };

    /// What a row of ours is held to beside nginx's.
    fn beside_nginx(&self, row: &Row, nginx: &Row, goals: &mut Vec<Goal>) {
        let name = name(&row.case);
        let mut gate = |what: &str, value: f64, limit: Option<f64>, at_most: bool| {
            let what = format!("{name}: {what} x nginx");
            goals.extend(limit.map(|limit| Goal { what, value, limit, at_most }));
        };
        let p50 = ratio(row, nginx, |s| s.p50_us);
        let rate = ratio(row, nginx, |s| s.per_second);
        match (row.case.connections, row.case.bytes < 1024, row.case.callers) {
            (1, true, _) => {
                gate("p50", p50, Some(self.small_p50), true);
                gate("p99", ratio(row, nginx, |s| s.p99_us), self.small_p99, true);
            }
            (_, true, _) => gate("rps", rate, Some(self.small_rate), false),
            (2.., false, 1) => {
                gate("p50", p50, Some(self.large_p50), true);
                gate("rps", rate, self.large_rate, false);
            }
            (_, false, _) => return,
        }
        gate("CPU", ratio(row, nginx, |s| s.cpu_us), Some(self.cpu), true);
    }
}

fn goals(rows: &[Row], gates: &Gates) -> String {
    let mut goals = Vec::new();
    for row in rows.iter().filter(|row| row.contestant == "toolgate") {
        let case = &row.case;
        if let Some(direct) = of(rows, "direct", case).filter(|_| case.anew && gates.is_alone) {
            goals.push(of_new_connections(row, direct));
        }
        if let Some(nginx) = of(rows, "nginx", case).filter(|_| case.kind == "text" && !case.anew) {
            gates.beside_nginx(row, nginx, &mut goals);
        }
    }
    if let Some(row) = rows.iter().find(|row| row.contestant == "toolgate" && gates.is_alone) {
        let what = "memory of the idle agent, MiB".to_owned();
        goals.push(Goal { what, value: row.idle_mib, limit: 12.0, at_most: true });
        let what = "memory after a minute without calls, MiB".to_owned();
        goals.extend(row.rested_mib.map(|value| Goal { what, value, limit: 12.0, at_most: true }));
    }
    let mut text = "\n| goal | measured | gate | |\n| --- | --- | --- | --- |\n".to_owned();
    for goal in &goals {
        let (sign, met) =
            (if goal.at_most { "<=" } else { ">=" }, if goal.is_met() { "met" } else { "missed" });
        let _ = writeln!(text, "| {} | {:.2} | {sign} {} | {met} |", goal.what, goal.value, goal.limit);
    }
    text
}

/// What a connection costs more than a direct one, and how many there may be.
fn of_new_connections(row: &Row, direct: &Row) -> Goal {
    let name = name(&row.case);
    if row.case.connections == 1 {
        let more = |(one, other): (&Sample, &Sample)| one.p50_us - other.p50_us;
        let value = median(row.samples.iter().zip(&direct.samples).map(more));
        Goal { what: format!("{name}: us more than direct, p50"), value, limit: 60.0, at_most: true }
    } else {
        let value = middle(row, |s| s.per_second);
        Goal { what: format!("{name}: connections/s"), value, limit: 10_000.0, at_most: false }
    }
}

/// An array, an object for each row.
pub(super) fn json(rows: &[Row], gates: &Gates) -> Result<String> {
    let all: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let direct = of(rows, "direct", &row.case)?;
            Some(json!({
                "contestant": row.contestant,
                "hops": if row.contestant == "direct" { 0 } else { gates.hops },
                "kind": if row.case.anew { "connect" } else { row.case.kind },
                "bytes": row.case.bytes,
                "connections": row.case.connections,
                "callers": row.case.callers,
                "p50_ratio": ratio(row, direct, |s| s.p50_us),
                "p99_ratio": ratio(row, direct, |s| s.p99_us),
                "rps_ratio": ratio(row, direct, |s| s.per_second),
                "cpu_us_per_request": middle(row, |s| s.cpu_us),
                "rss_idle_mib": row.idle_mib,
                "rss_rested_mib": row.rested_mib,
                "rss_load_mib": middle(row, |s| s.load_mib),
                "rounds": row.samples.len(),
            }))
        })
        .collect();
    serde_json::to_string_pretty(&all).context("the results are no JSON")
}
