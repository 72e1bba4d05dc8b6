//! What the service manager is told, where there is one (`NOTIFY_SOCKET`, sd_notify(3)).

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Everything is attached and served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// This process is the service from now on. Only the one that was can say so (`NotifyAccess=main`).
pub(super) fn main_process_is(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// What is wrong, or all is well: the line that `systemctl status` shows.
pub(super) fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The unit's `WatchdogSec=`: told as long as the agent works.
pub(super) struct Watchdog {
    every: Option<Duration>,
    told: Option<Instant>,
}

impl Watchdog {
    /// As the service manager asks for it; never told where it does not.
    pub(super) fn new() -> Self {
        // Twice in its time would do; four times leaves room for a beat that comes late.
        Self { every: sd_notify::watchdog_enabled().map(|limit| limit / 4), told: None }
    }

    /// The agent works.
    pub(super) fn alive(&mut self) {
        let Some(every) = self.every else { return };
        if self.told.is_none_or(|told| told.elapsed() >= every) {
            tell(&[NotifyState::Watchdog]);
            self.told = Some(Instant::now());
        }
    }
}
