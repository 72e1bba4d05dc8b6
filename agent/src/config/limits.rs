//! `limits:` of `toolgate.yaml`: each key is a limit's own name, and none may contradict another.

use std::collections::HashMap;
use std::time::Duration;

use serde_saphyr::Spanned;

use super::diagnostic::Diagnostic;
use super::schema::Pairs;
use super::source::{Source, did_you_mean};
use super::words::{self, Findings};
use crate::limits::{Limit, Limits, Slot, Value};

/// The most that makes sense of any length of time: a year.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The parser's own ends.
const HEAD_BYTES_CEILING: usize = 65_535;
const JSON_DEPTH_CEILING: usize = 128;

/// Where each limit that was given stands.
type Places<'f> = HashMap<Limit, &'f Spanned<String>>;

pub(super) fn read(
    source: &Source,
    file: &Pairs<Spanned<String>>,
    limits: &mut Limits,
    findings: &mut Findings,
) {
    let mut places = Places::new();
    for (key, word) in &file.0 {
        let Some(limit) = Limit::named(&key.value) else {
            let names: Vec<&str> = Limit::SETTABLE.iter().map(|limit| limit.as_str()).collect();
            let fault = source.error(key, format!("unknown key `{}`", key.value));
            findings.push(fault.help(did_you_mean(&key.value, &names)));
            continue;
        };
        let Some(slot) = limits.slot(limit) else { continue };
        if findings.keep(set(source, limit, word, slot)).is_some() {
            places.insert(limit, word);
        }
    }
    ceilings(source, limits, &places, findings);
    relations(source, limits, &places, findings);
}

fn set(source: &Source, limit: Limit, word: &Spanned<String>, slot: Slot<'_>) -> Result<(), Diagnostic> {
    let text = word.value.as_str();
    let fault = |message: String, help: &str| Err(source.error(word, message).help(help));
    let zero = |what: &str| fault(format!("{limit} of {text}: {what}"), "leave it out for its default");
    match slot {
        Slot::Time(place) => match words::read_duration(text) {
            Some(Duration::ZERO) => zero("nothing is there in no time, so everything would be refused"),
            Some(time) if time > TIME_MAX => fault(format!("{limit} is more than a year"), "write less"),
            Some(time) => {
                *place = time;
                Ok(())
            }
            None => fault(format!("`{text}` is no length of time"), words::DURATION_HELP),
        },
        Slot::Size(place) => match words::read_size(text) {
            Some(0) => zero("nothing fits in no bytes, so everything would be refused"),
            Some(bytes) => {
                *place = bytes;
                Ok(())
            }
            None => fault(format!("`{text}` is no number of bytes"), words::SIZE_HELP),
        },
        Slot::Count(place) => match text.parse() {
            Ok(0) => zero("with none at all everything would be refused"),
            Ok(count) => {
                *place = count;
                Ok(())
            }
            Err(_) => fault(format!("`{text}` is no number"), "write a whole number, as in `4096`"),
        },
    }
}

/// What no setting can raise.
fn ceilings(source: &Source, limits: &Limits, places: &Places<'_>, findings: &mut Findings) {
    let ceilings = [
        (Limit::HeadBytes, limits.head_bytes_max, HEAD_BYTES_CEILING, "heads are read up to"),
        (Limit::JsonDepth, limits.json_depth_max, JSON_DEPTH_CEILING, "messages are read down to a depth of"),
    ];
    for (limit, value, ceiling, why) in ceilings {
        if value > ceiling
            && let Some(word) = places.get(&limit)
        {
            let fault = source.error(word, format!("{limit} is {value}, and {why} {ceiling}"));
            findings.push(fault.help(format!("write at most {ceiling}")));
        }
    }
}

/// What one limit lets pass, another must not always refuse.
fn relations(source: &Source, limits: &Limits, places: &Places<'_>, findings: &mut Findings) {
    let share = Limits::large(limits.memory_per_cgroup_bytes_max);
    let large = "three quarters of `memory_per_cgroup_bytes_max`";
    let memory = Limit::MemoryPerCgroupBytes;
    let within = [
        (Limit::TargetBytes, 1, Limit::HeadBytes, limits.head_bytes_max, "`head_bytes_max`"),
        (Limit::BodyBytes, 1, memory, share, large),
        (Limit::EventBytes, 1, memory, share, large),
        // What is shown of a list is a copy.
        (Limit::ReplyBytes, 2, memory, share, large),
        (memory, 1, Limit::MemoryBytes, limits.memory_bytes_max, "`memory_bytes_max`"),
        (Limit::ConnectionsPerCgroup, 1, Limit::Connections, limits.connections_max, "`connections_max`"),
        (Limit::StreamsPerCgroup, 1, Limit::Streams, limits.streams_max, "`streams_max`"),
        (
            Limit::AuditEntriesPerCgroup,
            1,
            Limit::AuditEntries,
            limits.audit_entries_max,
            "`audit_entries_max`",
        ),
        // A stream holds an entry as long as it is open.
        (
            Limit::StreamsPerCgroup,
            2,
            Limit::AuditEntriesPerCgroup,
            limits.audit_entries_per_cgroup_max,
            "`audit_entries_per_cgroup_max`, which requests need, too",
        ),
    ];
    for (limit, times, other, max, named) in within {
        let Some(Value::Size(value) | Value::Count(value)) = limits.get(limit) else { continue };
        let Some(word) = places.get(&limit).or_else(|| places.get(&other)) else { continue };
        let needs = value.saturating_mul(times);
        if needs > max {
            let twice = if times == 2 { "twice " } else { "" };
            let fault =
                source.error(word, format!("{twice}{limit} is {needs}, more than the {max} of {named}"));
            findings.push(fault.help("lower the one or raise the other"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema::AgentFile;
    use super::*;

    fn read_text(text: &str) -> (Limits, Vec<String>) {
        let source = Source { file: "x.yaml".into(), text: text.to_owned(), mode: 0o600 };
        let file: AgentFile = source.parse(text).unwrap();
        let (mut limits, mut findings) = (Limits::default(), Findings::default());
        read(&source, &file.limits.unwrap().value, &mut limits, &mut findings);
        let shown = |one: &Diagnostic| format!("{}:{} {}", one.line, one.column, one.message);
        (limits, findings.all.iter().map(shown).collect())
    }

    #[test]
    fn limits_that_are_read() {
        let (limits, wrong) = read_text(
            "limits: { body_bytes_max: 1MiB, head_time_max: 500ms, session_idle_max: 2h, connections_max: 10000,\n\
             reply_bytes_max: 4096, memory_bytes_max: 1GiB }\n",
        );
        assert!(wrong.is_empty(), "{wrong:?}");
        let expected = Limits {
            body_bytes_max: 1 << 20,
            head_time_max: Duration::from_millis(500),
            session_idle_max: Duration::from_secs(7200),
            connections_max: 10_000,
            reply_bytes_max: 4096,
            memory_bytes_max: 1 << 30,
            ..Limits::default()
        };
        assert_eq!(limits, expected);
    }

    #[test]
    fn limits_that_are_refused() {
        let table: &[(&str, &[&str])] = &[
            ("body_byte_max: 1", &["1:11 unknown key `body_byte_max`"]),
            ("headers_max: 1", &["1:11 unknown key `headers_max`"]),
            ("head_time_max: 0s", &["1:26 `head_time_max` of 0s: nothing is there in no time"]),
            ("connect_time_max: 0ms", &["1:29 `connect_time_max` of 0ms: nothing is there in no time"]),
            ("head_time_max: 10", &["1:26 `10` is no length of time"]),
            ("head_time_max: 9000h", &["1:26 `head_time_max` is more than a year"]),
            ("head_time_max: 99999999999999999999s", &["1:26 `99999999999999999999s` is no length of time"]),
            ("body_bytes_max: 0", &["1:27 `body_bytes_max` of 0: nothing fits in no bytes"]),
            ("body_bytes_max: 4MB", &["1:27 `4MB` is no number of bytes"]),
            ("body_bytes_max: -1", &["1:27 `-1` is no number of bytes"]),
            ("body_bytes_max: 99999999999GiB", &["1:27 `99999999999GiB` is no number of bytes"]),
            ("connections_max: 0", &["1:28 `connections_max` of 0: with none at all"]),
            ("connections_max: many", &["1:28 `many` is no number"]),
            ("head_bytes_max: 64KiB", &["1:27 `head_bytes_max` is 65536, and heads are read up to 65535"]),
            ("json_depth_max: 129", &["1:27 `json_depth_max` is 129, and messages are read down"]),
            (
                "body_bytes_max: 1GiB",
                &["1:27 `body_bytes_max` is 1073741824, more than the 50331648 of three quarters of"],
            ),
            (
                "memory_per_cgroup_bytes_max: 4MiB",
                &[
                    "1:40 `body_bytes_max` is 4194304, more than the 3145728 of three quarters of",
                    "1:40 `event_bytes_max` is 4194304, more than the 3145728 of three quarters of",
                    "1:40 twice `reply_bytes_max` is 33554432, more than the 3145728",
                ],
            ),
            (
                "memory_per_cgroup_bytes_max: 1GiB",
                &["1:40 `memory_per_cgroup_bytes_max` is 1073741824, more than the 268435456 of"],
            ),
            (
                "head_bytes_max: 4KiB",
                &["1:27 `target_bytes_max` is 8192, more than the 4096 of `head_bytes_max`"],
            ),
            (
                "connections_max: 100",
                &["1:28 `connections_per_cgroup_max` is 8192, more than the 100 of `connections_max`"],
            ),
            ("streams_max: 8", &["1:24 `streams_per_cgroup_max` is 1024, more than the 8 of `streams_max`"]),
            (
                "streams_per_cgroup_max: 9000, streams_max: 9000",
                &[
                    "1:35 twice `streams_per_cgroup_max` is 18000, more than the 16384 of `audit_entries_per_cgroup_max`",
                ],
            ),
            (
                "audit_entries_max: 10",
                &["1:30 `audit_entries_per_cgroup_max` is 16384, more than the 10 of `audit_entries_max`"],
            ),
        ];
        for (text, expected) in table {
            let (_, wrong) = read_text(&format!("limits: {{ {text} }}\n"));
            let fits = wrong.len() == expected.len()
                && wrong.iter().zip(*expected).all(|(got, want)| got.starts_with(want));
            assert!(fits, "{text}: {wrong:#?}");
        }
    }

    #[test]
    fn the_defaults_contradict_nothing() {
        let all: Vec<String> = Limit::SETTABLE
            .iter()
            .map(|limit| match Limits::default().get(*limit) {
                Some(Value::Time(time)) => format!("  {}: {}ms\n", limit.as_str(), time.as_millis()),
                Some(value) => format!("  {}: {value}\n", limit.as_str()),
                None => String::new(),
            })
            .collect();
        let (limits, wrong) = read_text(&format!("limits:\n{}", all.concat()));
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(limits, Limits::default());
    }
}
