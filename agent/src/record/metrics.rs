//! What Prometheus scrapes. Counted by the writer thread alone, so that audit and metrics never differ.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
};

use toolgate_core::denial::Reason;

use super::line::{Labels, Shown};
use super::refusals::Refusals;

/// Tools told apart for each target; more count as `other`.
const TOOLS_MAX: usize = 200;
/// Series of `toolgate_requests_total`; what would be one more counts with caller, method and tool `other`.
const SERIES_MAX: usize = 5_000;
/// Seconds. From a hop on loopback to a tool that works for minutes.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// The agent's metrics.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    durations: HistogramVec,
    /// Failed writes of the audit file.
    pub audit_failures: IntCounter,
    /// Messages without a line in the audit: with `audit.on_failure: dangerous_allow`, or at the very end.
    pub audit_lost: IntCounter,
    /// Captured connections that were accepted, by the thread that serves them.
    accepted: IntCounterVec,
    /// The same of other agents.
    accepted_of_agents: IntCounterVec,
    /// Connections that were closed before anything was read, by reason.
    refused: IntCounterVec,
    /// Configurations that were not taken over because of an error in them.
    pub reload_failures: IntCounter,
    /// Connections that were older than their capture, by what became of them.
    older: IntCounterVec,
    /// What the limits refused.
    pub limits: Refusals,
    known: Mutex<Known>,
}

/// What was counted before.
#[derive(Default)]
struct Known {
    /// Where messages of these labels are counted; at most [`SERIES_MAX`], the others are looked up each time. So few that
    /// names chosen to collide cost little.
    counted: HashMap<Labels, Series, RandomState>,
    tools: HashMap<String, HashSet<String>>,
    series: HashSet<[String; 7]>,
}

/// Where a message is counted, and what it is called in the audit.
struct Series {
    requests: IntCounter,
    durations: Histogram,
    shown: Shown,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    ///
    /// # Panics
    /// When a name or label below is no valid one: a fault of this program that every start shows.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the names are constants of this function")]
    pub fn new() -> Self {
        let registry = Registry::new();
        let registered =
            |collector: Box<dyn Collector>| registry.register(collector).expect("registered once");
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels).expect("valid name");
            registered(Box::new(made.clone()));
            made
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help).expect("valid name");
            registered(Box::new(made.clone()));
            made
        };
        let requests = counters(
            "toolgate_requests_total",
            "Messages decided",
            &["direction", "caller", "target", "method", "tool", "decision", "reason"],
        );
        let durations = HistogramVec::new(
            HistogramOpts::new(
                "toolgate_request_duration_seconds",
                "From a message's first byte to its reply's last",
            )
            .buckets(BUCKETS.to_vec()),
            &["target", "method", "decision"],
        )
        .expect("valid name");
        registered(Box::new(durations.clone()));
        let audit_failures =
            counter("toolgate_audit_write_failures_total", "Failed writes of the audit file");
        let audit_lost = counter("toolgate_audit_lost_total", "Messages that the audit file does not hold");
        let reload_failures = counter(
            "toolgate_reload_failures_total",
            "Changed configurations that were refused for an error",
        );
        let accepted = counters("toolgate_connections_total", "Captured connections accepted", &["thread"]);
        let accepted_of_agents = counters(
            "toolgate_agent_connections_total",
            "Connections of other agents accepted, by the thread that serves them",
            &["thread"],
        );
        let refused = counters(
            "toolgate_connections_refused_total",
            "Connections closed, and messages refused, without an audit entry",
            &["reason"],
        );
        let older = counters(
            "toolgate_connections_older",
            "Connections found that were older than their capture",
            &["result"],
        );
        let limits =
            counters("toolgate_limit_refusals_total", "What was refused because of a limit", &["limit"]);
        Self {
            registry,
            requests,
            durations,
            audit_failures,
            audit_lost,
            accepted,
            accepted_of_agents,
            refused,
            reload_failures,
            older,
            limits: Refusals::new(&limits),
            known: Mutex::default(),
        }
    }

    /// The count of connections that a thread has accepted, for it to keep.
    #[must_use]
    pub fn accepted_by(&self, thread: usize) -> IntCounter {
        self.accepted.with_label_values(&[thread.to_string()])
    }

    /// The same of other agents.
    #[must_use]
    pub fn accepted_of_agents_by(&self, thread: usize) -> IntCounter {
        self.accepted_of_agents.with_label_values(&[thread.to_string()])
    }

    /// A connection is closed before anything is read, or a message has no entry that could tell.
    pub fn refused(&self, reason: Reason) {
        self.refused.with_label_values(&[reason.as_str()]).inc();
    }

    /// Connections older than their capture were found: `reported`, `ended`, or `not_ended`.
    pub fn older_found(&self, result: &'static str, count: usize) {
        self.older.with_label_values(&[result]).inc_by(count as u64);
    }

    /// How many connections older than their capture were found, by what became of them.
    #[must_use]
    pub fn older(&self) -> Vec<(String, u64)> {
        let families = self.older.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        let result = |metric: &prometheus::proto::Metric| {
            metric.get_label().first().map(|pair| pair.value().to_owned()).unwrap_or_default()
        };
        series.map(|metric| (result(metric), whole(metric.get_counter().get_value()))).collect()
    }

    /// Counts a message, and tells how its labels are shown.
    pub(super) fn count(&self, labels: &Labels, duration: Duration, shown: impl FnOnce(&Shown)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.counted.get(labels) {
            series.count(duration);
            return shown(&series.shown);
        }
        let series = self.series(labels, &mut known);
        series.count(duration);
        shown(&series.shown);
        if known.counted.len() < SERIES_MAX {
            known.counted.insert(labels.clone(), series);
        }
    }

    fn series(&self, labels: &Labels, known: &mut Known) -> Series {
        let target = labels.target();
        let tool = known.tool(&target, labels.tool());
        let series = known.series([
            labels.direction.as_str().to_owned(),
            labels.caller(),
            target,
            labels.method.to_owned(),
            tool,
            labels.verdict.as_str().to_owned(),
            labels.reason().to_owned(),
        ]);
        let [_, _, target, method, _, decision, _] = &series;
        Series {
            requests: self.requests.with_label_values(&series),
            durations: self.durations.with_label_values(&[target, method, decision]),
            shown: Shown::of(labels),
        }
    }

    /// The text format, version 0.0.4, with `more` behind it.
    #[must_use]
    pub fn text(&self, more: &str) -> String {
        let mut text = TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default();
        text.push_str(more);
        text
    }

    /// Every series of `toolgate_requests_total` with its labels and count.
    #[must_use]
    pub fn requests(&self) -> Vec<serde_json::Value> {
        let families = self.requests.collect();
        let series = families.iter().flat_map(|family| family.get_metric());
        series
            .map(|metric| {
                let labels =
                    metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().into()));
                let mut row: serde_json::Map<String, serde_json::Value> = labels.collect();
                row.insert("count".to_owned(), whole(metric.get_counter().get_value()).into());
                row.into()
            })
            .collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a counter of messages is a whole number far below 2^53"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

impl Series {
    fn count(&self, duration: Duration) {
        self.requests.inc();
        self.durations.observe(duration.as_secs_f64());
    }
}

impl Known {
    /// The label of a tool; empty where the message names none.
    fn tool(&mut self, target: &str, tool: &str) -> String {
        if tool.is_empty() {
            return String::new();
        }
        let known = self.tools.entry(target.to_owned()).or_default();
        if known.len() < TOOLS_MAX || known.contains(tool) {
            known.insert(tool.to_owned());
            return tool.to_owned();
        }
        "other".to_owned()
    }

    fn series(&mut self, mut series: [String; 7]) -> [String; 7] {
        if self.series.contains(&series) {
            return series;
        }
        if self.series.len() >= SERIES_MAX {
            let [_, caller, _, method, tool, _, _] = &mut series;
            for label in [caller, method, tool] {
                "other".clone_into(label);
            }
        }
        self.series.insert(series.clone());
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_and_series_are_bounded() {
        let mut labels = Known::default();
        let tools: HashSet<String> = (0..1_000).map(|n| labels.tool("docs", &format!("tool{n}"))).collect();
        assert_eq!(tools.len(), TOOLS_MAX + 1);
        assert_eq!(labels.tool("docs", "tool0"), "tool0");
        assert_eq!(labels.tool("mail", "new"), "new", "each target has its own");

        let series = |n: usize| {
            ["outbound", &format!("caller{n}"), "t", "m", "", "deny", "no_rule"].map(str::to_owned)
        };
        for n in 0..2 * SERIES_MAX {
            labels.series(series(n));
        }
        assert_eq!(labels.series.len(), SERIES_MAX + 1);
        assert_eq!(labels.series(series(9_999))[1], "other");
    }
}
