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
use toolgate::shares::{Sharer, Shares};

/// Until what must happen has happened.
const PATIENCE: Duration = Duration::from_secs(30);

struct Scene {
    recorder: Recorder,
    writer: Writer,
    origin: Arc<Origin>,
}

impl Scene {
    fn set(file: &Path, deny_on_failure: bool, entries_max: usize) -> Self {
        let (recorder, writer) = record::start(&AuditPlan {
            file: file.to_owned(),
            sync: Duration::from_millis(10),
            deny_on_failure,
            state_directory: file.parent().unwrap().join("store"),
            entries_max,
            write_time_max: Duration::from_millis(200),
        })
        .unwrap();
        let limits = Limits { audit_entries_per_cgroup_max: entries_max, ..Limits::default() };
        let identify = Identify::new(Arc::clone(&writer.metrics));
        let origin = Arc::new(identify.origin(captured(), Shares::new(&limits).of(&Sharer::Cgroup(1))));
        Self { recorder, writer, origin }
    }

    /// One more, as soon as there is room for it; what passes without a record has no id.
    fn entry(&self) {
        let since = Instant::now();
        let opened = || self.recorder.open(&self.origin, 1).is_ok_and(|entry| !entry.request_id().is_empty());
        while !opened() {
            assert!(since.elapsed() < PATIENCE, "there is no room for another");
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
    let scene = Scene::set(&folder.path().join("audit.jsonl"), true, 1);
    let open = scene.recorder.open(&scene.origin, 1).unwrap();
    let refused = scene.recorder.open(&scene.origin, 1).map(drop).unwrap_err();
    assert!(
        matches!(&refused, NoSlot::Share(full) if full.limit == Limit::AuditEntriesPerCgroup),
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
    let scene = Scene::set(&path, false, 1_024);
    let since = Instant::now();
    while scene.writer.metrics.audit_failures.get() == 0 {
        assert!(since.elapsed() < PATIENCE, "the pipe is not full");
        scene.entry();
    }
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        // An error is that nothing is there yet.
        while reader.read_to_end(&mut text).is_err() {
            std::thread::yield_now();
        }
        text
    });
    scene.entry();
    scene.writer.finish();
    let text = reading.join().unwrap();
    let ids: Vec<u64> = text.split_inclusive(|&byte| byte == b'\n').map(request_id).collect();
    let (first, last) = (*ids.first().unwrap(), *ids.last().unwrap());
    assert!(u64::try_from(ids.len()).unwrap() <= last - first, "{} lines from {first} to {last}", ids.len());
}

/// Of a line that must be whole. They are counted up.
fn request_id(line: &[u8]) -> u64 {
    let line: Value =
        serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {}", line.escape_ascii()));
    u64::from_str_radix(line["request_id"].as_str().unwrap(), 16).unwrap()
}
