//! The log, as whoever reads the standard error wants it.

use std::fmt;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, fmt as log};
use tracing_subscriber::registry::LookupSpan;

/// Logs to the standard error from here on.
pub(super) fn to_stderr() {
    let filter = EnvFilter::try_from_env("TOOLGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = log().with_env_filter(filter).with_writer(std::io::stderr);
    if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        log.event_format(Journal).init();
    } else {
        // https://no-color.org: present and not empty.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        log.with_ansi(std::io::stderr().is_terminal() && !unwanted).init();
    }
}

/// Whether the standard error is the journal's stream (systemd.exec(5), `$JOURNAL_STREAM`): a service may have
/// redirected it since.
fn is_journal(stream: Option<&str>) -> bool {
    let named = stream.and_then(|stream| stream.split_once(':'));
    let Some((Ok(device), Ok(inode))) = named.map(|(device, inode)| (device.parse(), inode.parse())) else {
        return false;
    };
    fstat(std::io::stderr().as_fd()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// Each line with its priority before it (sd-daemon(3)); the journal has the time by itself.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        let plain = format::format().without_time().with_level(false).with_ansi(false);
        plain.format_event(context, Writer::new(&mut text), event)?;
        let priority = priority(*event.metadata().level());
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7, // a struct with constants, not an enum
    }
}
