//! The audit's file: what was written stays whole lines, whatever fails between.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::AuditPlan;
use super::writer::AuditError;
use crate::limits::Limit;

/// A file, or a pipe that somebody reads.
pub(super) struct AuditFile {
    file: File,
    dirty_since: Option<Instant>,
    sync: Duration,
    /// How long a pipe may take nothing.
    write_time_max: Duration,
    /// What was written last is not the end of a line.
    is_in_line: bool,
}

impl AuditFile {
    /// Opens it for appending; what was written is on disk after `sync`.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub(super) fn open(plan: &AuditPlan, sync: Duration) -> Result<Self, AuditError> {
        let path = &plan.file;
        let opened = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| {
            // The audit tells who uses what: root's alone. A pipe that nobody reads must hold up neither the start nor,
            // once it is full, the end.
            let mut options = std::fs::OpenOptions::new();
            options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)
        });
        let file = opened.map_err(|cause| AuditError::Open { path: path.clone(), cause })?;
        Ok(Self { file, dirty_since: None, sync, write_time_max: plan.write_time_max, is_in_line: false })
    }

    /// How long the next sync can wait.
    pub(super) fn sync_in(&self) -> Duration {
        let forever = Duration::from_secs(3600);
        self.dirty_since.map_or(forever, |since| self.sync.saturating_sub(since.elapsed()))
    }

    /// Appends `text` and empties it; what was written before an error is not written again.
    pub(super) fn append(&mut self, text: &mut Vec<u8>) -> io::Result<()> {
        while !text.is_empty() {
            let count = match self.file.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait()?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.is_in_line = text.get(count - 1) != Some(&b'\n');
            text.drain(..count);
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        if self.dirty_since.is_some_and(|since| since.elapsed() >= self.sync) {
            // A pipe or /dev/stdout has nothing to sync.
            match self.file.sync_data() {
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => return Err(error),
                Ok(()) | Err(_) => self.dirty_since = None,
            }
        }
        Ok(())
    }

    /// Until the pipe takes more.
    fn wait(&self) -> io::Result<()> {
        let timeout = PollTimeout::try_from(self.write_time_max).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)], timeout)? > 0 {
            return Ok(());
        }
        let what = format!("the pipe took nothing within {:?} ({})", self.write_time_max, Limit::AuditWrite);
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }

    /// Gives up what could not be written, but for the end of a line of which a part is there already.
    pub(super) fn give_up(&self, text: &mut Vec<u8>) {
        let end = text.iter().position(|&byte| byte == b'\n').filter(|_| self.is_in_line);
        text.truncate(end.map_or(0, |end| end + 1));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const SYNC: Duration = Duration::from_millis(1);

    fn plan(file: &Path) -> AuditPlan {
        AuditPlan {
            file: file.to_owned(),
            sync: SYNC,
            write_time_max: Duration::from_millis(10),
            deny_on_failure: true,
            state_directory: "/".into(),
            entries_max: 1,
        }
    }

    #[test]
    fn lines_stay_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = AuditFile::open(&plan(&path), SYNC).unwrap();
        let mut text = b"{}\n{}\n".to_vec();
        file.append(&mut text).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n{}\n");
        file.give_up(&mut text);
        assert_eq!(text, b"");
        // A part of the first line is there.
        file.is_in_line = true;
        text.extend_from_slice(b"rest}\n{}\n");
        file.give_up(&mut text);
        assert_eq!(text, b"rest}\n");
    }

    #[test]
    fn a_slow_reader_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut reader =
            std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let plan = AuditPlan { write_time_max: Duration::from_secs(30), ..plan(&path) };
        let mut file = AuditFile::open(&plan, SYNC).unwrap();
        let written = std::thread::spawn(move || file.append(&mut vec![b'x'; 1 << 20]));
        let (mut taken, mut count) = (vec![0; 1 << 16], 0);
        while count < 1 << 20 && !written.is_finished() {
            count += reader.read(&mut taken).unwrap_or_default();
        }
        written.join().unwrap().unwrap();
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_nothing_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let refused = AuditFile::open(&plan(&path), SYNC).map(drop).unwrap_err().to_string();
        assert!(refused.contains("nobody reads"), "{refused}");
        let open = || std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut reader = open().unwrap();
        let mut file = AuditFile::open(&plan(&path), SYNC).unwrap();
        let mut text = vec![b'x'; 1 << 20];
        let full = file.append(&mut text).unwrap_err();
        assert!(full.to_string().contains("`audit_write_max`"), "{full}");
        let left = text.len();
        let mut taken = vec![0; 1 << 16];
        assert!(reader.read(&mut taken).unwrap() > 0);
        file.append(&mut text).unwrap_err();
        assert!(text.len() < left, "it goes on where it was");
        drop(reader);
        assert_eq!(file.append(&mut text).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // What nobody had read is there still.
        assert!(open().unwrap().read(&mut taken).unwrap() > 0);
        let _reader = open().unwrap();
        text.truncate(10);
        file.append(&mut text).unwrap();
    }
}
