//! A host of its own, as far as an agent sees one: network, cgroups, BPF file system and `/run/toolgate`.

use std::process::Command;

use anyhow::Result;

use crate::{Agent, Caller, Cgroup, Netns, Process, Setup, cgroup2};

/// Becomes what follows, in a network namespace ($0), a cgroup ($1) that is the root of all cgroups there, and with mounts of
/// its own ($2 is where cgroup2 is).
const ENTER: &str = "netns=$0 cgroup=$1 mount=$2; shift 2; echo $$ > \"$cgroup\"/cgroup.procs &&
exec nsenter --net=\"$netns\" unshare --mount --cgroup --propagation private sh -c '
umount \"$0\" && mount -t cgroup2 none \"$0\" && mount -t bpf none /sys/fs/bpf && mkdir -p /run/toolgate &&
mount -t tmpfs none /run/toolgate && exec \"$@\"' \"$mount\" \"$@\"";
/// Says that it is there, and stays.
const HOLD: [&str; 3] = ["sh", "-c", "echo held && exec cat"];

/// An agent on it. When both are dropped nothing of it is left.
#[derive(Debug)]
pub struct Node {
    /// Its configuration, audit and process are the test's to see; its ports are in its network.
    pub agent: Agent,
    /// Its network.
    pub netns: Netns,
    // Mounts and cgroups live as long as somebody is in them: agents come and go.
    holder: Process,
    cgroup: Cgroup,
}

impl Node {
    /// Starts an agent beside the one that has this test's turn.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start(netns: Netns, setup: Setup<'_>) -> Result<Self> {
        let cgroup = Cgroup::new(&format!("host-{}", netns.name))?;
        let mut holder = Command::new("sh");
        holder.args(["-c", ENTER]).arg(netns.path()).arg(cgroup.path()).arg(cgroup2()?).args(HOLD);
        let holder = Process::start(&mut holder)?;
        holder.line("held")?;
        let words = words(&entered(&cgroup, &holder));
        let behind: Vec<&str> = words.iter().map(String::as_str).collect();
        let agent = Agent::start_beside(Setup { behind: &behind, ..setup })?;
        Ok(Self { agent, netns, holder, cgroup })
    }

    /// A command there; its words are the test's to add.
    #[must_use]
    pub fn command(&self) -> Command {
        entered(&self.cgroup, &self.holder)
    }

    /// `toolgate exec --app-id APP_ID --` there; the test adds the command.
    #[must_use]
    pub fn exec(&self, app_id: &str) -> Command {
        let mut inside = self.command();
        let exec = self.agent.exec(app_id);
        inside.arg(exec.get_program()).args(exec.get_args());
        inside
    }

    /// A captured process there with that App ID, which connects where it is told.
    ///
    /// # Errors
    /// `toolgate exec` fails.
    pub fn caller(&self, app_id: &str) -> Result<Caller> {
        Caller::start(self.exec(app_id))
    }
}

/// What becomes a command where `holder` is.
fn entered(cgroup: &Cgroup, holder: &Process) -> Command {
    let mut inside = crate::netns::in_cgroup(cgroup);
    let target = holder.id().to_string();
    inside.args(["nsenter", "--target", &target, "--mount", "--cgroup", "--net", "--"]);
    inside
}

fn words(command: &Command) -> Vec<String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect()
}
