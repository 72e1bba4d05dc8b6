//! Settings that make no sense, and a host that has nothing left: told, bounded, and over when it is over.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{Agent, Connection, Host, Peer, PortRange, Scene, Setup, wait};

/// Each with what the agent says when it refuses to start.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "limits: { head_time_max: 0s }",
        &["`head_time_max` of 0s: nothing is there in no time", "toolgate.yaml:1:26"],
    ),
    ("limits: { first_byte_max: 0ms }", &["`first_byte_max` of 0ms", "toolgate.yaml:1:27"]),
    ("limits: { drain_time_max: 0s }", &["`drain_time_max` of 0s", "toolgate.yaml:1:27"]),
    ("limits: { connections_max: 0 }", &["`connections_max` of 0: with none at all"]),
    ("limits: { body_bytes_max: 10MB }", &["`10MB` is no number of bytes", "`4MiB`"]),
    (
        "limits: { body_bytes_max: 1GiB }",
        &["`body_bytes_max` is 1073741824, more than", "`memory_per_cgroup_bytes_max`"],
    ),
    ("limits: { head_bytes_max: 1MiB }", &["`head_bytes_max` is 1048576, and heads are read up to 65535"]),
    ("limits: { request_time_max: 1s }", &["unknown key `request_time_max`"]),
    ("audit: { sync: 0s }", &["`0s` is no length of time", "toolgate.yaml:1:16"]),
];

#[test]
fn settings_that_make_no_sense_are_refused_with_their_place() -> Result<()> {
    let _turn = Host::turn()?;
    for (settings, words) in REFUSED {
        let ended = Agent::refused(&format!("{settings}\n"), "")?;
        ensure!(!ended.status.success(), "{settings}: it ended well");
        for word in *words {
            ensure!(ended.said.contains(word), "{settings}: no `{word}` in:\n{}", ended.said);
        }
    }
    Ok(())
}

#[test]
fn what_the_machine_does_not_allow_is_told_at_the_start() -> Result<()> {
    let limits = "{ connections_max: 100000000, memory_bytes_max: 100000GiB }";
    let scene = Scene::with_setup(Setup { limits, ..Setup::default() })?;
    scene
        .agent
        .process()
        .line("`connections_max` of 100000000 needs 200000512 descriptors, and RLIMIT_NOFILE is")?;
    scene.agent.process().line("`memory_bytes_max` of 107374182400000 is more than half of")?;
    let (_caller, mut connection) = scene.reader()?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
    Ok(())
}

/// All ephemeral ports are held, so that the agent can dial nobody.
#[test]
fn without_a_port_to_dial_from_it_says_so_and_recovers() -> Result<()> {
    const FIRST: u16 = 61_100;
    const LAST: u16 = 61_163;
    let peer = Peer::start()?;
    let agent = Agent::start(Setup { resources: &resources(peer.address), ..Setup::default() })?;
    let mut client = agent.caller("reader")?.http(peer.address)?;
    let range = PortRange::set(&format!("{FIRST} {LAST}"))?;
    let held: Vec<TcpListener> =
        (FIRST..=LAST).filter_map(|port| TcpListener::bind(("0.0.0.0", port)).ok()).collect();
    let reply = client.post(&call(1, "echo", &json!({})))?;
    ensure!(reply.status == 503, "{}{}", reply.head, reply.text());
    ensure!(reply.header("retry-after").is_some(), "{}", reply.head);
    drop((held, range));
    let line = agent.audit(1)?.pop().context("no audit line")?;
    ensure!(text(&line, "reason") == "overload", "{line}");
    ensure!(text(&line, "detail").contains("`net.ipv4.ip_local_port_range`"), "{line}");

    client.request("POST", "", &call(2, "echo", &json!({})))?;
    let mut server = peer.accept()?;
    server.through("\r\n\r\n")?;
    server.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
    assert_eq!(client.reply()?.status, 404);
    Ok(())
}

/// A file system in memory, as small as a test wants it; gone when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mounted(at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(at).status();
        ensure!(status.context("cannot start `mount`")?.success(), "cannot mount a tmpfs");
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _told_by_who_removes_the_folder = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn an_audit_that_cannot_be_opened_keeps_the_agent_from_starting() -> Result<()> {
    let _turn = Host::turn()?;
    let folder = tempfile::tempdir()?;
    let disk = Disk::mounted(&folder.path().join("disk"), "size=64k,ro")?;
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU)?;
    let store = folder.path().join("store");
    for (file, words) in [
        (disk.0.join("audit.jsonl"), "Read-only file system"),
        (pipe, "nobody reads that pipe"),
        (folder.path().to_owned(), "Is a directory"),
    ] {
        let (file, store) = (file.display(), store.display());
        let settings = format!("audit: {{ file: {file} }}\nstore: {{ embedded: {store} }}\n");
        let said = Agent::refused(&settings, "")?.said;
        ensure!(said.contains(words) && said.contains(&format!("cannot open audit file `{file}`")), "{said}");
    }
    Ok(())
}

/// Calls until the status is that, as the first of them pass before anybody knows.
fn until_status(connect: &mut impl FnMut() -> Result<Connection>, status: u16) -> Result<()> {
    wait::until(&format!("status {status}"), || {
        let reply = connect()?.post(&call(1, "echo", &json!({})))?;
        ensure!(matches!(reply.status, 200 | 503), "{}{}", reply.head, reply.text());
        ensure!((reply.status == 503) == reply.header("retry-after").is_some(), "{}", reply.head);
        Ok((reply.status == status).then_some(()))
    })
}

#[test]
fn a_full_disk_denies_until_there_is_room_and_leaves_whole_lines() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = Disk::mounted(&folder.path().join("disk"), "size=256k")?;
    let file = disk.0.join("audit.jsonl");
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; 128 * 1024])?;
    let audit = format!("{{ file: {}, sync: 1ms }}", file.display());
    let scene = Scene::with_setup(Setup { audit: &audit, ..Setup::default() })?;
    let mut caller = scene.caller("reader")?;
    let mut connect = || caller.http(scene.server.address);
    until_status(&mut connect, 503)?;
    let denied = scene.agent.metric("toolgate_connections_refused_total", &["audit_unavailable"])?;
    ensure!(denied > 0.0, "the denial is counted");
    scene.agent.process().line("cannot write the audit file")?;
    fs::remove_file(&filler)?;
    until_status(&mut connect, 200)?;
    scene.agent.process().line("the audit file can be written again")?;
    // The next line is behind all that could not be written then.
    let before = fs::read_to_string(&file)?.lines().count();
    ensure!(is_result(&connect()?.post(&call(1, "echo", &json!({})))?)?, "it has recovered");
    let lines = wait::until("a line more", || {
        let lines = fs::read_to_string(&file)?;
        Ok((lines.lines().count() > before && lines.ends_with('\n')).then_some(lines))
    })?;
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("no whole line: `{line}`"))?;
    }
    drop(scene);
    drop(disk);
    Ok(())
}

fn reader(pipe: &Path) -> Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(pipe).context("cannot read the pipe")
}

#[test]
fn a_pipe_that_is_closed_or_full_denies_until_it_is_read_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU)?;
    let audit = format!("{{ file: {} }}", pipe.display());
    let first = reader(&pipe)?;
    let limits = "{ audit_write_max: 100ms }";
    let mut scene = Scene::with_setup(Setup { audit: &audit, limits, ..Setup::default() })?;
    let mut caller = scene.caller("reader")?;
    let server: SocketAddr = scene.server.address;
    let mut connect = || caller.http(server);
    until_status(&mut connect, 200)?;
    drop(first);
    until_status(&mut connect, 503)?;
    let mut second = reader(&pipe)?;
    until_status(&mut connect, 200)?;
    // It is there, and takes nothing more.
    until_status(&mut connect, 503)?;
    scene.agent.process().line("`audit_write_max`")?;
    let label = ["limit=\"audit_write_max\""];
    ensure!(scene.agent.metric("toolgate_limit_refusals_total", &label)? > 0.0, "it is counted");
    let mut taken = vec![0; 1 << 20];
    wait::until("an empty pipe", || Ok(second.read(&mut taken).is_err().then_some(())))?;
    until_status(&mut connect, 200)?;
    // Full again, it keeps nobody from ending.
    until_status(&mut connect, 503)?;
    ensure!(scene.agent.stop()?.success(), "{}", scene.agent.process().said());
    Ok(())
}
