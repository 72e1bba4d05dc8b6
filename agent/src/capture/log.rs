//! What the programs log, on the rare ways through them, comes out of the agent's own log.

use std::pin::Pin;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

/// Carries the programs' log on for as long as it is polled, on any tokio runtime with I/O.
///
/// It writes to the logger that the `log` crate has when [`super::Kernel::attach`] is called, which
/// `tracing_subscriber`'s `init` makes tracing.
pub type LogTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A task that has not begun; none where the programs were built without a log.
pub(super) fn task(ebpf: &mut Ebpf) -> Option<LogTask> {
    let logger = EbpfLogger::init(ebpf)
        .inspect_err(|error| tracing::warn!(%error, "no log of the BPF programs"))
        .ok()?;
    Some(Box::pin(async move {
        // SAFETY: the logger owns its ring buffer's descriptor, says the same one each time, and keeps
        // it open until it is dropped, after the registration.
        let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = match logger {
            Ok(logger) => logger,
            Err(error) => return tracing::warn!(%error, "no log of the BPF programs"),
        };
        loop {
            match logger.readable_mut().await {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => return tracing::warn!(%error, "the log of the BPF programs has ended"),
            }
        }
    }))
}
