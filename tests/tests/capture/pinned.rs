//! What is where on the bpf file system, and what is left of a start that fails.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toolgate::capture::{CaptureError, Kernel, Loss, Plan, Settings};
use toolgate_tests::{Cgroup, Host, pinned};

use crate::client::Client;
use crate::rig::{
    NOBODY, NOWHERE, Rig, declared_of, destination, here, listeners, pin_folder, pins, plain_server,
};

fn attach() -> Result<Kernel, CaptureError> {
    let heartbeat_age_max = Duration::from_secs(3600);
    Kernel::attach(&Settings { port: 1, agent_loss: Loss::Closed, heartbeat_age_max })
}

#[test]
fn an_orderly_end_leaves_no_pin() -> Result<()> {
    let cgroup = Cgroup::new("detach")?;
    let (_server, address) = plain_server()?;
    let mut rig = Rig::capturing(&cgroup)?;
    let own = pins()?;
    assert_eq!(own.len(), 1);
    for path in [pin_folder()?, own.first().context("no pins")?.join("links")] {
        assert_eq!(fs::metadata(&path)?.mode() & 0o777, 0o700, "{}", path.display());
    }
    let mut client = Client::inside(&cgroup)?;
    client.must(&format!("tcp {NOWHERE}"))?;
    rig.kernel.take().context("detached")?.detach()?;
    ensure!(!pin_folder()?.exists());
    let accepted = rig.next()?;
    assert_eq!(accepted.original, "192.0.2.7:8000".parse()?, "what was captured goes on");
    assert_eq!(client.must(&format!("tcp {address}"))?, address.replace(' ', ":"));
    Ok(())
}

#[test]
fn an_error_leaves_nothing_behind() -> Result<()> {
    let _turn = Host::turn()?;
    let (v4, v6, _) = listeners(1)?;
    drop(attach()?);
    ensure!(!pin_folder()?.exists(), "a start that went no further");

    let kernel = attach()?;
    let home = here(&kernel)?;
    let none = kernel.serve(home, true, &[], &[]).expect_err("it served without a listener");
    assert!(matches!(none, CaptureError::Listeners { count: 0, .. }), "{none}");
    kernel.serve(home, true, &v4, &v6)?;
    let exclude =
        (0..=16_384).map(|port| destination(&format!("192.0.2.1/32 {port}"))).collect::<Result<_>>()?;
    let full = kernel.update(&Plan { exclude, ..Plan::default() }).expect_err("too many destinations");
    assert!(matches!(full, CaptureError::TooMany { .. }), "{full}");
    drop(kernel);
    ensure!(!pin_folder()?.exists(), "a plan that is too large");
    Ok(())
}

/// What is new is in the maps before what is old goes: both must fit, or half of a plan would be left.
#[test]
fn a_plan_without_room_beside_the_old_one_changes_nothing() -> Result<()> {
    let cgroup = Cgroup::new("no-room")?;
    let mut rig = Rig::start(Plan {
        cgroups: vec![declared_of(&cgroup)?],
        capture: vec![destination("192.0.2.7/32 8000")?],
        ..Plan::default()
    })?;
    let mut client = Client::inside(&cgroup)?;
    client.must(&format!("tcp {NOWHERE}"))?;
    rig.next()?;
    let many = |net: &str| -> Result<Vec<_>> {
        (1..=8_200).map(|port| destination(&format!("{net} {port}"))).collect()
    };
    let (one, other) = (many("198.51.100.1/32")?, many("198.51.100.2/32")?);
    rig.update(|plan| plan.capture.extend(one))?;
    let (before, home, own) = (entries()?, rig.home, destination("192.0.2.7/32 8000")?);
    // Each fits alone.
    let refused = rig.update(|plan| {
        plan.capture = other;
        plan.exclude = vec![own];
        plan.guarded = vec![(home, 8_000)];
    });
    let refused = refused.err().context("16,401 fit into 16,384")?;
    ensure!(format!("{refused:#}").contains("no room for 8200"), "{refused:#}");
    assert_eq!(entries()?, before);
    client.must(&format!("tcp {NOWHERE}"))?;
    rig.next().map(drop)
}

/// Entries of the maps that a plan fills.
fn entries() -> Result<[usize; 3]> {
    Ok([
        pinned::entries::<8, 4>("CAPTURED")?,
        pinned::entries::<16, 4>("GUARDED")?,
        pinned::entries::<256, 4>("NAMES")?,
    ])
}

/// The mount is open to all on many hosts: whoever owned the directory could detach.
#[test]
fn a_directory_of_somebody_elses_is_refused() -> Result<()> {
    /// Removes it, whoever has it.
    struct Folder(std::path::PathBuf);
    impl Drop for Folder {
        fn drop(&mut self) {
            let _gone = fs::remove_dir(&self.0);
        }
    }
    let _turn = Host::turn()?;
    let folder = Folder(pin_folder()?);
    let check = |mode: u32, owner: u32| -> Result<()> {
        fs::create_dir(&folder.0)?;
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(mode))?;
        chown(&folder.0, Some(owner), None)?;
        let refused = attach().err().with_context(|| format!("attached, mode {mode:o}, user {owner}"))?;
        assert!(matches!(refused, CaptureError::ForeignPins { .. }), "{refused}");
        Ok(fs::remove_dir(&folder.0)?)
    };
    check(0o700, NOBODY)?;
    check(0o777, 0)?;
    Ok(())
}
