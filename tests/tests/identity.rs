//! Who a caller is by what its executable holds and by its container, on a real kernel: also where it changes after it
//! has connected. And whose listener a local server's is.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use toolgate_tests::scene::{call, is_result, resources, text};
use toolgate_tests::{
    Agent, Caller, Cgroup, Connection, Host, Process, Server, Setup, connector, free_address, toolgate, wait,
};

const CONTAINER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Resources in which `reader` is what `selectors` say.
fn with_reader(server: SocketAddr, selectors: &str) -> String {
    let workload = "apiVersion: toolgate/v1\nkind: Workload\nmetadata: { name: reader }\nspec: { selectors: ";
    format!("{workload}{selectors} }}\n---\n{}", resources(server))
}

/// A server, an agent that captures one cgroup, and a folder of programs.
struct Stage {
    agent: Agent,
    server: Server,
    programs: TempDir,
    cgroup: Cgroup,
}

impl Stage {
    /// `selectors` are those of `reader`, with CGROUP for the captured cgroup and HASH for the SHA-256 of `good`.
    fn set(cgroup: &str, selectors: &str) -> Result<Self> {
        let host = Host::turn()?;
        let cgroup = Cgroup::new(cgroup)?;
        let programs = tempfile::tempdir()?;
        for (name, more) in [("good", &b""[..]), ("bad", b"not what was permitted")] {
            let path = programs.path().join(name);
            fs::copy(connector(), &path)?;
            fs::OpenOptions::new().append(true).open(&path)?.write_all(more)?;
        }
        let server = Server::start()?;
        let capture = format!("{{ cgroups: [\"{}\"] }}", cgroup.name()?);
        let selectors = filled(selectors, &cgroup, programs.path())?;
        let resources = with_reader(server.address, &selectors);
        let agent =
            Agent::start_in(host, Setup { resources: &resources, capture: &capture, ..Setup::default() })?;
        Ok(Self { agent, server, programs, cgroup })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.programs.path().join(name)
    }

    /// Starts a program in a cgroup, before its first socket.
    fn start_in(&self, cgroup: &Cgroup, program: &Path) -> Result<Caller> {
        self.start_by(cgroup, &format!("exec {}", program.display()))
    }

    /// The same by what a shell is told.
    fn start_by(&self, cgroup: &Cgroup, script: &str) -> Result<Caller> {
        let mut shell = Command::new("unshare");
        let enter = format!("echo 0 > {}/cgroup.procs; {script}", cgroup.path().display());
        shell.args(["--mount", "sh", "-ec", &enter]);
        Caller::start(shell)
    }

    fn start(&self, program: &str) -> Result<Caller> {
        self.start_in(&self.cgroup, &self.program(program))
    }

    /// Takes over other selectors of `reader`.
    fn select(&self, selectors: &str) -> Result<()> {
        let before = self.agent.process().lines();
        let selectors = filled(selectors, &self.cgroup, self.programs.path())?;
        self.agent.write_resources(&with_reader(self.server.address, &selectors))?;
        self.agent.process().line_from(before, "configuration reloaded").map(drop)
    }

    /// Whether a caller's call passes.
    fn may(&self, caller: &mut Caller) -> Result<bool> {
        passes(&mut caller.http(self.server.address)?)
    }

    /// Waits for a refusal whose detail has these words, and which says that nobody knows the caller.
    fn refused(&self, words: &str) -> Result<()> {
        let refused = |line: &Value| {
            text(line, "reason") == "unidentified_caller" && text(line, "detail").contains(words)
        };
        self.agent.audit_until(words, |lines| lines.iter().any(refused)).map(drop)
    }
}

fn filled(selectors: &str, cgroup: &Cgroup, programs: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(programs.join("good")).output()?;
    let digest = String::from_utf8_lossy(&output.stdout).split_whitespace().next().map(str::to_owned);
    Ok(selectors.replace("CGROUP", &cgroup.name()?).replace("HASH", &digest.context("no digest")?))
}

/// A file that was changed less than a tick of the kernel before a connect may have been changed after it.
fn may_once_settled(stage: &Stage, caller: &mut Caller) -> Result<()> {
    wait::until("a fresh file to be a tick old", || Ok(stage.may(caller)?.then_some(())))
}

fn passes(connection: &mut Connection) -> Result<bool> {
    is_result(&connection.post(&call(1, "echo", &json!({})))?)
}

#[test]
fn the_contents_of_an_executable_name_it() -> Result<()> {
    let stage = Stage::set("hash.slice", "{ cgroup: CGROUP, exe_sha256: HASH }")?;
    assert!(stage.may(&mut stage.start("good")?)?);
    // Another file of the same contents is as good.
    fs::copy(stage.program("good"), stage.program("copy"))?;
    may_once_settled(&stage, &mut stage.start("copy")?)?;
    assert!(!stage.may(&mut stage.start("bad")?)?);
    stage.refused("no Workload fits the process")
}

/// What a caller becomes after it has connected: it is judged by what it was, or not at all.
#[test]
fn what_connected_is_what_is_judged() -> Result<()> {
    let unasked = "{ cgroup: CGROUP/none }";
    let asked = "{ cgroup: CGROUP, exe_sha256: HASH }";
    type Change = fn(&Stage, &mut Caller) -> Result<()>;
    let table: [(&str, &str, Change); 3] = [
        ("good", "runs another file by now than when it connected", |stage, caller| {
            caller.exec(&stage.program("bad"))?;
            caller.connect(stage.server.address).map(drop) // from here on it is the other program
        }),
        ("bad", "runs another file by now than when it connected", |stage, caller| {
            caller.exec(&stage.program("good"))?;
            caller.connect(stage.server.address).map(drop)
        }),
        // The same file, with other contents by now.
        ("bad", "it was changed when the process connected, or since", |stage, caller| {
            caller.exec(&stage.program("good"))?;
            caller.connect(stage.server.address)?;
            let mut bad = fs::OpenOptions::new().write(true).truncate(true).open(stage.program("bad"))?;
            bad.write_all(&fs::read(stage.program("good"))?)?;
            drop(bad);
            caller.exec(&stage.program("bad"))?;
            caller.connect(stage.server.address).map(drop)
        }),
    ];
    for (program, words, change) in table {
        let stage = Stage::set("judged.slice", unasked)?;
        let mut caller = stage.start(program)?;
        let mut connection = caller.http(stage.server.address)?;
        // It is with the agent: an answer has come on it.
        assert!(!passes(&mut connection)?);
        change(&stage, &mut caller).context(words)?;
        stage.select(asked)?;
        assert!(!passes(&mut connection)?, "{words}");
        stage.refused(words)?;
    }
    Ok(())
}

#[test]
fn a_process_that_has_ended_has_no_contents() -> Result<()> {
    let stage = Stage::set("ended.slice", "{ cgroup: CGROUP/none }")?;
    let mut caller = stage.start("good")?;
    let mut connection = caller.http(stage.server.address)?;
    assert!(!passes(&mut connection)?);
    drop(caller);
    stage.select("{ cgroup: CGROUP, exe_sha256: HASH }")?;
    assert!(!passes(&mut connection)?);
    stage.refused("the process has ended")
}

#[test]
fn files_on_overlays_are_told_apart_or_refused() -> Result<()> {
    let stage = Stage::set("overlay.slice", "{ cgroup: CGROUP, exe_sha256: HASH }")?;
    let overlay = |lower: &str, upper: &str| {
        let good = stage.program("good").display().to_string();
        format!(
            "mount -t tmpfs one /mnt; mkdir /mnt/one /mnt/two /mnt/all; mount -t tmpfs two /mnt/two; \
             mkdir -p /mnt/{lower} /mnt/{upper}/up /mnt/{upper}/work; cp {good} /mnt/{lower}/good; \
             mount -t overlay -o lowerdir=/mnt/{lower},upperdir=/mnt/{upper}/up,workdir=/mnt/{upper}/work all /mnt/all; \
             exec /mnt/all/good"
        )
    };
    may_once_settled(&stage, &mut stage.start_by(&stage.cgroup, &overlay("one/low", "one"))?)?;
    assert!(!stage.may(&mut stage.start_by(&stage.cgroup, &overlay("one/low", "two"))?)?, "two file systems");
    stage.refused("shows another device than the kernel records")
}

/// A connection waits for its own executable to be read, and no other does.
#[test]
fn a_large_executable_holds_nobody_else_up() -> Result<()> {
    const BYTES: u64 = 512 << 20;
    let stage = Stage::set("large.slice", "{ cgroup: CGROUP/large, exe_sha256: HASH }")?;
    let large = stage.cgroup.below("large")?;
    let mut callers = (0..8).map(|_| stage.start("bad")).collect::<Result<Vec<_>>>()?;
    let mut small =
        callers.iter_mut().map(|one| one.http(stage.server.address)).collect::<Result<Vec<_>>>()?;
    for connection in &mut small {
        passes(connection)?; // on all threads, and warm
    }
    fs::OpenOptions::new().write(true).open(stage.program("good"))?.set_len(BYTES)?;
    stage.select("{ cgroup: CGROUP/large, exe_sha256: HASH }")?;
    let mut caller = stage.start_in(&large, &stage.program("good"))?;
    let connected = caller.connect(stage.server.address)?.stream;
    let mut connection = Connection::new(connected.try_clone()?, stage.server.address)?;
    connection.request("POST", "", &call(1, "echo", &json!({})))?;
    for connection in &mut small {
        passes(connection)?;
    }
    connected.set_nonblocking(true)?;
    let nothing = connected.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock), "all others were answered before");
    connected.set_nonblocking(false)?;
    assert!(is_result(&connection.reply()?)?);
    drop(caller);
    Ok(())
}

#[test]
fn containers_are_told_by_cgroups_that_only_root_makes() -> Result<()> {
    let id = format!("{{ container: {{ id: {} }} }}", &CONTAINER[..12]);
    let stage = Stage::set("box.slice", &id)?;
    let scope = stage.cgroup.below(&format!("libpod-{CONTAINER}.scope"))?;
    let inside = scope.below("container")?;
    let watcher = stage.cgroup.below(&format!("libpod-conmon-{CONTAINER}.scope"))?;
    let good = stage.program("good");
    assert!(stage.may(&mut stage.start_in(&inside, &good)?)?);
    assert!(!stage.may(&mut stage.start_in(&watcher, &good)?)?, "what watches it is not in it");

    // A cgroup that was handed to a user, who gives a name to one below it.
    let delegated = stage.cgroup.below("app.service")?;
    std::os::unix::fs::chown(delegated.path(), Some(65534), None)?;
    let forged = delegated.path().join(format!("libpod-{CONTAINER}.scope"));
    let made = Command::new("mkdir").arg(&forged).uid(65534).status()?;
    ensure!(made.success(), "the user could not make `{}`", forged.display());
    let forged = Cgroup::made_by_another(forged);
    assert!(!stage.may(&mut stage.start_in(&forged, &good)?)?, "the user chose its name");
    // Who names the user takes the user's word.
    stage.select(&id.replace("{ container", "{ user: 0, container"))?;
    assert!(stage.may(&mut stage.start_in(&forged, &good)?)?);

    // No runtime knows this container.
    stage.select("{ container: { image: python } }")?;
    assert!(!stage.may(&mut stage.start_in(&inside, &good)?)?);
    stage.refused("whether `container.image` of Workload `reader` fits the process cannot be told")?;
    drop((forged, delegated, inside));
    Ok(())
}

/// An image of podman's, with nothing in it; what runs is mounted.
struct Image(String);

impl Image {
    fn make() -> Result<Self> {
        let root = tempfile::tempdir()?;
        for folder in ["usr", "tmp", "proc", "dev", "sys", "etc"] {
            fs::create_dir(root.path().join(folder))?;
        }
        for folder in ["bin", "lib", "lib64", "sbin"] {
            std::os::unix::fs::symlink(format!("usr/{folder}"), root.path().join(folder))?;
        }
        let image = Self(format!("localhost/toolgate-test-{}:1", std::process::id()));
        let pack = format!("tar -C {} -c . | podman import --quiet - {}", root.path().display(), image.0);
        let made = Command::new("sh").args(["-ec", &pack]).output().context("cannot start podman")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Ok(image)
    }

    /// A connector in a container; its channel is passed in, as podman keeps the standard input to itself.
    fn run(&self, name: &str) -> Result<Caller> {
        let Self(image) = self;
        let program = connector();
        let folder = program.parent().context("a program without folder")?.display();
        let podman = format!(
            "exec podman --runtime=/usr/sbin/runc --cgroup-manager=cgroupfs run --rm --name={name} --preserve-fds=1 \
             --network=host --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 --volume=/usr:/usr:ro \
             --volume={folder}:{folder}:ro {image} sh -c 'exec \"$0\" <&3' \"$0\" 3<&0 </dev/null"
        );
        let mut shell = Command::new("sh");
        shell.args(["-ec", &podman]);
        Caller::start(shell)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _reported_by_podman = Command::new("podman").args(["rmi", "--force", &self.0]).output();
    }
}

/// Needs `apt-get install podman runc`.
#[test]
fn an_image_is_told_by_podmans_own_state() -> Result<()> {
    /// Where podman makes cgroups by itself (`--cgroup-manager=cgroupfs`).
    const PARENT: &str = "libpod_parent";
    let host = Host::turn()?;
    let image = Image::make()?;
    fs::create_dir_all(toolgate_tests::cgroup2()?.join(PARENT))?;
    let server = Server::start()?;
    let capture = format!("{{ cgroups: [\"{PARENT}/*\"] }}");
    let selected = |image: &str| format!("{{ container: {{ image: \"{image}\" }} }}");
    let resources = with_reader(server.address, &selected(&image.0));
    let agent =
        Agent::start_in(host, Setup { resources: &resources, capture: &capture, ..Setup::default() })?;
    let mut caller = image.run(&format!("toolgate-test-{}", std::process::id()))?;
    let permitted = passes(&mut caller.http(server.address)?)?;
    ensure!(permitted, "{:#?}", agent.audit(1)?);

    // Another tag, another image.
    let before = agent.process().lines();
    agent.write_resources(&with_reader(server.address, &selected(&image.0.replace(":1", ":2"))))?;
    agent.process().line_from(before, "configuration reloaded")?;
    assert!(!passes(&mut caller.http(server.address)?)?);
    Ok(())
}

/// `toolgate check` on a server whose process is that of a cgroup.
struct Checked {
    folder: TempDir,
    address: SocketAddr,
    cgroup: Cgroup,
}

impl Checked {
    fn new(cgroup: &str) -> Result<Self> {
        let checked =
            Self { folder: tempfile::tempdir()?, address: free_address()?, cgroup: Cgroup::new(cgroup)? };
        fs::create_dir(checked.folder.path().join("resources"))?;
        let (name, address) = (checked.cgroup.name()?, checked.address);
        let resources = format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: docs }}\n\
             spec: {{ selectors: {{ cgroup: {name} }} }}\n---\n\
             apiVersion: toolgate/v1\nkind: Server\nmetadata: {{ name: docs }}\n\
             spec: {{ local: {{ address: \"{address}\", workload: docs }} }}\n"
        );
        fs::write(checked.folder.path().join("resources/all.yaml"), resources)?;
        Ok(checked)
    }

    /// Whether `check` is content, and what it says.
    fn check(&self) -> Result<(bool, String)> {
        let output = toolgate().arg("check").arg("--config").arg(self.folder.path()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Starts `command` within the cgroup.
    fn start(&self, command: &str, stdin: Stdio) -> Result<Process> {
        let enter = format!("echo 0 > {}/cgroup.procs; exec {command}", self.cgroup.path().display());
        let mut shell = Command::new("sh");
        Process::start_with_stdin(shell.args(["-ec", &enter]).stdin(stdin))
    }
}

#[test]
fn check_names_who_listens_for_another() -> Result<()> {
    let checked = Checked::new("docs.slice")?;
    let (fine, said) = checked.check()?;
    assert!(fine, "nobody listens yet: {said}");

    // The listener is this test's, wherever that runs.
    let listener = TcpListener::bind(checked.address)?;
    let (fine, said) = checked.check()?;
    assert!(!fine, "{said}");
    let own = format!(
        "the listener at {} is not of Workload `docs`: process {} (",
        checked.address,
        std::process::id()
    );
    for words in [&own[..], "all.yaml:9:", "stop what listens there"] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }

    // Handed over, as socket activation does: the process is the workload's, the listener stays the maker's.
    let stdin = Stdio::from(OwnedFd::from(listener));
    let mut heir = checked.start("sleep 600", stdin)?;
    wait::until("the heir to have its cgroup", || {
        let procs = fs::read_to_string(checked.cgroup.path().join("cgroup.procs"))?;
        let comm = fs::read_to_string(format!("/proc/{}/comm", heir.id()))?;
        Ok((procs.contains(&heir.id().to_string()) && comm == "sleep\n").then_some(()))
    })?;
    let (fine, said) = checked.check()?;
    assert!(!fine && said.contains("(sleep)") && said.contains("and it was made in"), "{said}");
    heir.signal(nix::sys::signal::Signal::SIGKILL)?;
    heir.end()?;

    // One that binds by itself, in its own cgroup.
    let port = checked.address.port();
    let server = checked.start(&format!("python3 -m http.server --bind 127.0.0.1 {port}"), Stdio::null())?;
    wait::until("the server", || Ok(TcpStream::connect(checked.address).is_ok().then_some(())))?;
    let (fine, said) = checked.check()?;
    assert!(fine, "{said}");
    drop(server);
    Ok(())
}

#[test]
fn the_agent_warns_of_who_listens_for_another() -> Result<()> {
    let server = Server::start()?;
    let workload = "---\napiVersion: toolgate/v1\nkind: Workload\nmetadata: { name: docs }\n\
                    spec: { selectors: { cgroup: none.slice } }\n";
    let local = format!("address: \"{}\"", server.address);
    let named = resources(server.address).replace(&local, &format!("{local}, workload: docs"));
    let agent = Agent::start(Setup { resources: &(named + workload), ..Setup::default() })?;
    let warning = format!(
        "the listener at {} is not of Workload `docs`: process {} (",
        server.address,
        std::process::id()
    );
    agent.process().line(&warning).map(drop)
}

#[test]
fn check_warns_of_interpreters_and_scripts() -> Result<()> {
    let checked = Checked::new("warned.slice")?;
    let script = checked.folder.path().join("agent");
    fs::write(&script, "#!/usr/bin/env python3\n")?;
    let workload = |name: &str, selectors: String| {
        format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: {name} }}\nspec: {{ selectors: {{ {selectors} }} }}\n---\n"
        )
    };
    let shell = workload("shell", "exe: /bin/sh".to_owned());
    let script = workload("script", format!("exe: {}, user: 7", script.display()));
    let narrow = workload("narrow", "exe: /bin/bash, user: 7777".to_owned());
    fs::write(checked.folder.path().join("resources/all.yaml"), [shell, script, narrow].concat())?;
    let (fine, said) = checked.check()?;
    assert!(fine, "warnings stop nobody: {said}");
    for words in [
        "`/bin/sh` runs whatever it is given",
        "all.yaml:4:27",
        "is a script, so no process fits",
        "all.yaml:9:27",
    ] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    assert_eq!(said.matches("warning:").count(), 2, "{said}");
    Ok(())
}
