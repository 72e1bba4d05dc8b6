//! Entries of the audit: whose place they take and when it is free again, and what is lost of them.
#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set fails")]

use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use toolgate::capture::{Captured, Cookie, Executable, Recorded};
use toolgate::identify::{Identify, Origin};
use toolgate::limits::{Limit, Limits};
use toolgate::record::{self, AuditPlan, NoSlot, Recorder, Writer};
use toolgate::shares::Shares;

/// Until what must happen has happened.
const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    recorder: Recorder,
    writer: Writer,
    origin: Arc<Origin>,
}

impl Scene {
    fn set(file: &Path, deny_on_failure: bool) -> Self {
        let (recorder, writer) = record::start(&AuditPlan {
            file: file.to_owned(),
            sync: Duration::from_millis(10),
            deny_on_failure,
            state_directory: file.parent().unwrap().join("store"),
            entries_max: 1_024,
            write_time_max: Duration::from_millis(10),
        })
        .unwrap();
        let limits = Limits { audit_entries_per_cgroup_max: 1, ..Limits::default() };
        let identify = Identify::new(Arc::clone(&writer.metrics));
        let origin = Arc::new(identify.origin(captured(), Shares::new(&limits).of(1)));
        Self { recorder, writer, origin }
    }

    /// One more, as soon as there is room for it.
    fn entry(&self) {
        let since = Instant::now();
        while let Err(no_slot) = self.recorder.open(&self.origin, 1).map(drop) {
            assert!(since.elapsed() < PATIENCE, "{no_slot}");
            std::thread::yield_now();
        }
    }
}

fn captured() -> Captured {
    let exe = Executable { dev: 1, ino: 1, exec_id: 1 };
    let process = Recorded {
        tgid: 1,
        start_ns: 1,
        exe,
        cgroup_id: 1,
        captured_id: 1,
        uid: 0,
        netns_cookie: Cookie::default(),
        connected_ns: 1,
    };
    Captured { original: SocketAddr::from(([192, 0, 2, 1], 80)), process }
}

#[test]
fn a_callers_place_is_free_again_when_its_entry_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::set(&folder.path().join("audit.jsonl"), true);
    let open = scene.recorder.open(&scene.origin, 1).unwrap();
    let refused = scene.recorder.open(&scene.origin, 1).map(drop).unwrap_err();
    assert!(
        matches!(refused, NoSlot::Share(full) if full.limit == Limit::AuditEntriesPerCgroup),
        "{refused}"
    );
    drop(open);
    scene.entry();
    scene.writer.finish();
}

/// Where messages may pass without a record: those that were given up do not come later, and no line is a part of one.
#[test]
fn what_a_full_pipe_lost_stays_lost_and_lines_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut reader =
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let scene = Scene::set(&path, false);
    let lost = Arc::clone(&scene.writer.metrics);
    let (since, mut opened) = (Instant::now(), 0);
    while lost.audit_lost.get() == 0 {
        assert!(since.elapsed() < PATIENCE, "{opened} entries, and the pipe is not full");
        // With no place it passes without a record, too.
        drop(scene.recorder.open(&scene.origin, 1).unwrap());
        opened += 1;
    }
    let mut text = Vec::new();
    let _would_block = reader.read_to_end(&mut text);
    scene.entry();
    scene.writer.finish();
    let _would_block = reader.read_to_end(&mut text);
    let lines: Vec<&[u8]> = text.split_inclusive(|&byte| byte == b'\n').collect();
    for line in &lines {
        serde_json::from_slice::<Value>(line)
            .unwrap_or_else(|error| panic!("{error}: {}", line.escape_ascii()));
    }
    assert!(
        lines.len() <= opened,
        "{} lines of {opened} entries and one more: nothing was lost",
        lines.len()
    );
}
