//! What every kernel came to, as a table.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::report::{Outcome, Report};

/// The step that makes every BPF program run.
pub(super) const FIRED: &str = "fires";
/// The step that shows an unmodified client.
pub(super) const DEMO: &str = "demo";

/// Redirection, guards, loss and adoption, a program or map at a time.
pub(super) const CAPTURE: &str = "capture";
/// Every way around them, with and without an agent.
pub(super) const AROUND: &str = "around";
/// Hosts that are no good for capture: as a mount namespace shows them, as they start, and locked down.
pub(super) const PREFLIGHT: &str = "preflight";
pub(super) const HOSTS: &str = "hosts";
pub(super) const LOCKDOWN: &str = "lockdown";
/// Steps of the wall clock.
pub(super) const CLOCK: &str = "clock";

/// What a cell says of steps that were not asked for.
const NONE: &str = "-";
/// Columns, and the steps that each adds up.
const COLUMNS: [(&str, &[&str]); 6] = [
    ("programs fired", &[FIRED]),
    ("demo calls", &[DEMO]),
    ("`capture`", &[CAPTURE]),
    ("ways around", &[AROUND]),
    ("unfit hosts", &[PREFLIGHT, HOSTS, LOCKDOWN]),
    ("clock steps", &[CLOCK]),
];

/// All kernels.
#[derive(Default)]
pub(super) struct Matrix {
    rows: Vec<Row>,
}

/// One kernel.
pub(super) struct Row {
    release: String,
    /// How long it took until everything was mounted.
    booted: Option<Duration>,
    steps: Vec<(String, Outcome, Duration)>,
    /// Its last report has come.
    ended: bool,
    /// Why it did not.
    broken: Option<String>,
    /// How long all of it took.
    took: Duration,
}

impl Row {
    pub(super) fn new(release: &str) -> Self {
        Self {
            release: release.to_owned(),
            booted: None,
            steps: Vec::new(),
            ended: false,
            broken: None,
            took: Duration::ZERO,
        }
    }

    /// A machine starts, of perhaps several.
    pub(super) fn starts(&mut self) {
        self.ended = false;
    }

    /// Whether its last report has come.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether it ended in another way than it should.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// All machines of this kernel took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.took = time;
    }

    /// Takes in a report that came `after` the last one, and says in words what it was.
    pub(super) fn take(&mut self, report: Report, after: Duration) -> String {
        let seconds = after.as_secs_f32();
        match report {
            Report::Booted => {
                let _the_first_is_shown = self.booted.get_or_insert(after);
                format!("{}: booted in {seconds:.0} s", self.release)
            }
            Report::Step { name, outcome } => {
                let said = format!("{}: {name}: {} in {seconds:.0} s", self.release, counts(&outcome));
                self.steps.push((name, outcome, after));
                said
            }
            Report::End => {
                self.ended = true;
                format!("{}: all steps have ended", self.release)
            }
        }
    }

    /// It ended in another way than it should.
    pub(super) fn broke(&mut self, why: &str) {
        self.broken = Some(why.to_owned());
    }

    /// A cell: the steps that `which` names, added up.
    fn cell(&self, which: impl Fn(&str) -> bool) -> String {
        let mut sum = Outcome::default();
        let mut time = Duration::ZERO;
        for (_, outcome, took) in self.steps.iter().filter(|(name, ..)| which(name)) {
            sum.passed.extend_from_slice(&outcome.passed);
            sum.failed.extend_from_slice(&outcome.failed);
            time += *took;
        }
        if time == Duration::ZERO {
            return NONE.to_owned();
        }
        format!("{}, {:.0} s", counts(&sum), time.as_secs_f32())
    }

    fn cells(&self) -> Vec<String> {
        let boot = match self.booted {
            Some(took) if self.broken.is_none() => format!("ok, {:.0} s", took.as_secs_f32()),
            Some(took) => format!("BROKE OFF after {:.0} s", took.as_secs_f32()),
            None => "FAILED".to_owned(),
        };
        let named = COLUMNS.iter().map(|(_, steps)| self.cell(|name| steps.contains(&name)));
        let other = self.cell(|name| !COLUMNS.iter().any(|(_, steps)| steps.contains(&name)));
        let whole = format!("{:.0} s", self.took.as_secs_f32());
        [self.release.clone(), boot].into_iter().chain(named).chain([other, whole]).collect()
    }

    fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, outcome, _) in &self.steps {
            failures
                .extend(outcome.failed.iter().map(|failed| format!("{}: {name}: {failed}", self.release)));
        }
        failures.extend(self.broken.iter().map(|why| format!("{}: {why}", self.release)));
        failures
    }
}

/// `19 ok`, or `18 ok, 1 FAILED`.
fn counts(outcome: &Outcome) -> String {
    match outcome.failed.len() {
        0 => format!("{} ok", outcome.passed.len()),
        failed => format!("{} ok, {failed} FAILED", outcome.passed.len()),
    }
}

impl Matrix {
    pub(super) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// An error that names all that is red.
    pub(super) fn verdict(&self) -> Result<()> {
        let failures: Vec<_> = self.rows.iter().flat_map(Row::failures).collect();
        if !failures.is_empty() {
            bail!("not on every kernel:\n  {}", failures.join("\n  "));
        }
        Ok(())
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = COLUMNS.iter().map(|(heading, _)| *heading);
        let heading = ["kernel", "boot"].into_iter().chain(named).chain(["other tests", "in all"]);
        let mut rows = vec![heading.map(str::to_owned).collect::<Vec<_>>()];
        rows.extend(self.rows.iter().map(Row::cells));
        // What nobody asked for has no column.
        let shown: Vec<_> =
            (0..rows[0].len()).filter(|&column| rows.iter().skip(1).any(|row| row[column] != NONE)).collect();
        for (number, row) in rows.iter().enumerate() {
            for &column in &shown {
                let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
                write!(f, "| {:width$} ", row[column])?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                writeln!(f, "{}", "| --- ".repeat(shown.len()) + "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Matrix, Row};
    use crate::vm::report::{Outcome, Report};

    fn row(failed: &[&str]) -> Row {
        let mut row = Row::new("6.1");
        row.take(Report::Booted, Duration::from_secs(7));
        let failed = failed.iter().map(|&name| name.to_owned()).collect();
        let outcome = Outcome { passed: vec!["a".to_owned(), "b".to_owned()], failed };
        row.take(Report::Step { name: "capture".to_owned(), outcome }, Duration::from_secs(3));
        row
    }

    #[test]
    fn green_is_green_and_red_is_named() {
        let mut matrix = Matrix::default();
        let mut green = row(&[]);
        green.take(Report::End, Duration::ZERO);
        green.took(Duration::from_secs(11));
        matrix.add(green);
        assert!(matrix.verdict().is_ok());
        let table = matrix.to_string();
        assert_eq!(table.lines().last(), Some("| 6.1    | ok, 7 s | 2 ok, 3 s | 11 s   |"), "{table}");

        matrix.add(row(&["c"]));
        let mut broken = row(&[]);
        broken.broke("the virtual machine hangs");
        matrix.add(broken);
        let red = matrix.verdict().expect_err("two are red").to_string();
        assert!(red.contains("6.1: capture: c") && red.contains("hangs"), "{red}");
        assert!(matrix.to_string().contains("2 ok, 1 FAILED, 3 s"));
        assert!(matrix.to_string().contains("BROKE OFF after 7 s"));
    }
}
