//! Where it is tried: servers, cgroups, a namespace, and an agent or none.

use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use toolgate_ebpf_common::{CONNECTIONS_MAX, CONNECTIONS_PER_CGROUP_MAX, Record};
use toolgate_tests::scene::text;
use toolgate_tests::{
    Agent, Cgroup, Host, Netns, PidMax, Process, Setup, Vrf, Witness, free_address, pinned, port_range,
    refusal, wait,
};

use super::ways::Outcome::{self, Captured, Done, Nobody, Reached, Refused};
use super::ways::{ATTACKER, BESIDE, Given, REFUSED, UNKNOWN, Way};

/// QUIC's port.
const HTTPS: u16 = 443;
/// Process ids where there are few: the kernel gives none below 300 twice. The machine goes on with them for a second.
const PIDS: u32 = 1_024;
/// When a record was made that no sweep takes for a left one.
const NEVER_OLD: u64 = u64::MAX;

/// Which guards are on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// None: there is no agent, and what leads to the server must lead there.
    Off,
    /// The declared server is captured.
    Declared,
    /// Every destination is.
    All,
}

/// What all ways share.
pub(crate) struct Stage {
    mode: Mode,
    /// The declared server, and one that nobody declared.
    server: Witness,
    open: Witness,
    /// Without an agent: who answers at its port.
    stand_in: Option<Witness>,
    /// The agent's port; without an agent, a free one.
    agent_port: u16,
    spare_port: u16,
    /// The namespace that the attacker may enter, and the host's addresses on the link to it.
    netns: Netns,
    near: IpAddr,
    near6: IpAddr,
    /// `None`: this kernel has none.
    vrf: Option<Vrf>,
    inside: Cgroup,
    beside: Cgroup,
    outside: Cgroup,
    /// Records that mean nothing, in a full map.
    filled_with: u64,
    /// Guarded ports that were taken away, and the flags of the cgroup that was.
    taken: Vec<[u8; 16]>,
    flags: [u8; 4],
    few_pids: Option<PidMax>,
    /// Last: the turn ends with it.
    agent: Option<Agent>,
    /// The agent has it, if there is one.
    _turn: Option<Host>,
}

impl Stage {
    pub(crate) fn set(mode: Mode) -> Result<Self> {
        let mut turn = Some(Host::turn()?);
        let (server, open) = (Witness::start()?, Witness::start()?);
        server.hear_datagrams(HTTPS)?;
        server.hear_udp_lite()?;
        let netns = Netns::new()?;
        let ([near, _], [near6, _]) = (netns.link()?, netns.link6()?);
        let vrf = Vrf::new()?;
        let inside = Cgroup::new("around-inside")?;
        let beside = Cgroup::new("around-beside")?;
        let outside = Cgroup::new("around-outside")?;
        let destinations = if mode == Mode::All { "all" } else { "declared" };
        let cgroups = format!("\"{}\", \"{}\"", inside.name()?, beside.name()?);
        let capture = format!("{{ destinations: {destinations}, cgroups: [{cgroups}] }}");
        let resources = resources(&server, &inside, &beside)?;
        let setup = Setup { resources: &resources, capture: &capture, ..Setup::default() };
        let (agent, stand_in) = match mode {
            Mode::Off => (None, Some(Witness::start()?)),
            Mode::Declared | Mode::All => {
                (Some(Agent::start_in(turn.take().context("no turn")?, setup)?), None)
            }
        };
        let agent_port = match (&agent, &stand_in) {
            (Some(agent), _) => agent.outbound.port(),
            (None, Some(stand_in)) => stand_in.port,
            (None, None) => bail!("nobody has the agent's port"),
        };
        let spare_port = if agent.is_some() { agent_port } else { free_address()?.port() };
        Ok(Self {
            mode,
            agent,
            server,
            open,
            stand_in,
            agent_port,
            spare_port,
            netns,
            near,
            near6,
            vrf,
            inside,
            beside,
            outside,
            filled_with: 0,
            taken: Vec::new(),
            flags: [0; 4],
            few_pids: None,
            _turn: turn,
        })
    }

    /// What the server has to say of this attempt, and of no other.
    pub(crate) fn tool(&self, way: &Way) -> String {
        format!("{:?} {}", self.mode, way.name).replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    }

    pub(crate) fn expected(&self, way: &Way) -> Result<Outcome> {
        if let Some(missing) = self.missing(way.how)? {
            return Ok(missing);
        }
        Ok(match self.mode {
            Mode::Declared => way.declared,
            Mode::All => way.all,
            Mode::Off if way.how.contains("bind ") => Done("bound"),
            Mode::Off if way.how.starts_with("makes ") => Done("made"),
            Mode::Off if way.how.contains("to=127.0.0.1:0") => REFUSED,
            Mode::Off => Reached,
        })
    }

    /// What a kernel says that does not have at all what the words name: nothing is to be shown there.
    fn missing(&self, how: &str) -> Result<Option<Outcome>> {
        let listed = fs::read_to_string("/proc/net/protocols").context("no list of protocols")?;
        let has = |name: &str| listed.lines().any(|line| line.starts_with(&format!("{name} ")));
        let needs: [(&str, bool, Outcome); 5] = [
            ("protocol=132", has("SCTP"), UNKNOWN),
            ("protocol=33", has("DCCP"), Refused(&["ESOCKTNOSUPPORT"])),
            ("protocol=262", has("MPTCP"), UNKNOWN),
            ("{vrf}", self.vrf.is_some(), Refused(&["ENODEV"])),
            ("unbound=1", port_range::is_settable()?, Refused(&["ENOPROTOOPT"])),
        ];
        let missing = needs.iter().find(|(word, there, _)| how.contains(word) && !there);
        Ok(missing.map(|&(_, _, says)| says))
    }

    pub(crate) fn check(&mut self, way: &Way) -> Result<()> {
        // What is done to the agent or its maps needs one.
        let is_given = way.given == Given::FewPids || self.mode != Mode::Off;
        if !is_given || way.given == Given::Nothing {
            return self.try_it(way, self.expected(way)?, &self.tool(way));
        }
        self.give(way.given)?;
        let tried = self.expected(way).and_then(|expected| self.try_it(way, expected, &self.tool(way)));
        self.take_back(way.given)?;
        tried?;
        // The same way with what was given taken away.
        if way.how.starts_with("tcp start=inside") && way.how.ends_with("{port}") {
            let who = if way.how.contains("{beside}") { BESIDE } else { ATTACKER };
            return self.try_it(way, Captured(who), &format!("{}-after", self.tool(way)));
        }
        Ok(())
    }

    fn give(&mut self, given: Given) -> Result<()> {
        if matches!(given, Given::GuardGone | Given::CaptureGone) {
            // It would put back what is taken away, some time.
            self.agent.as_ref().context("no agent")?.process().signal(Signal::SIGSTOP)?;
        }
        match given {
            Given::Nothing => Ok(()),
            Given::ConnectionsFull => {
                let record = Record { connected_ns: NEVER_OLD, ..Record::default() };
                // SAFETY: a record has no padding, and every byte of it is initialised.
                let record = unsafe { std::mem::transmute::<Record, [u8; size_of::<Record>()]>(record) };
                self.filled_with = pinned::fill::<32, 96>("CONNECTIONS", record)?;
                let full = u64::from(CONNECTIONS_MAX);
                ensure!(self.filled_with == full, "{} records fill it", self.filled_with);
                Ok(())
            }
            Given::QuotaUsed => {
                let mut pending = pinned::map::<8, 8>("PENDING")?;
                let used = u64::from(CONNECTIONS_PER_CGROUP_MAX);
                pending.insert(self.inside.id()?.to_ne_bytes(), used.to_ne_bytes(), 0)?;
                Ok(())
            }
            Given::AgentDead => {
                self.dialled()?;
                self.agent.as_mut().context("no agent")?.kill()
            }
            Given::GuardGone => {
                let mut guarded = pinned::map::<16, 4>("GUARDED")?;
                for key in guarded.keys().collect::<Result<Vec<_>, _>>()? {
                    guarded.remove(&key)?;
                    self.taken.push(key);
                }
                ensure!(!self.taken.is_empty(), "nothing is guarded");
                Ok(())
            }
            Given::FewPids => {
                self.few_pids = Some(PidMax::set(PIDS)?);
                Ok(())
            }
            Given::CaptureGone => {
                let (mut captured, id) = (pinned::map::<8, 4>("CAPTURED")?, self.inside.id()?.to_ne_bytes());
                self.flags = captured.get(&id, 0)?;
                Ok(captured.remove(&id)?)
            }
        }
    }

    fn take_back(&mut self, given: Given) -> Result<()> {
        if matches!(given, Given::GuardGone | Given::CaptureGone) {
            self.agent.as_ref().context("no agent")?.process().signal(Signal::SIGCONT)?;
        }
        match given {
            Given::Nothing => Ok(()),
            Given::ConnectionsFull => {
                let left = pinned::empty::<32, 96>("CONNECTIONS", self.filled_with)?;
                ensure!(left == self.filled_with, "{left} of {} records are left", self.filled_with);
                Ok(())
            }
            Given::QuotaUsed => {
                pinned::map::<8, 8>("PENDING")?.remove(&self.inside.id()?.to_ne_bytes())?;
                Ok(())
            }
            Given::AgentDead => self.agent.as_mut().context("no agent")?.start_again(),
            Given::GuardGone => {
                let mut guarded = pinned::map::<16, 4>("GUARDED")?;
                self.taken.drain(..).try_for_each(|key| Ok(guarded.insert(key, 1_u32.to_ne_bytes(), 0)?))
            }
            Given::FewPids => {
                self.few_pids = None;
                Ok(())
            }
            Given::CaptureGone => {
                let mut captured = pinned::map::<8, 4>("CAPTURED")?;
                Ok(captured.insert(self.inside.id()?.to_ne_bytes(), self.flags, 0)?)
            }
        }
    }

    pub(crate) fn saw(&self, tool: &str) -> bool {
        [Some(&self.server), Some(&self.open), self.stand_in.as_ref()]
            .into_iter()
            .flatten()
            .any(|witness| witness.saw(tool))
    }

    /// One attempt, and all that is to be seen of it.
    fn try_it(&self, way: &Way, expected: Outcome, tool: &str) -> Result<()> {
        let said = self.run(way.how, tool)?;
        let answered = [Some(&self.server), Some(&self.open), self.stand_in.as_ref()]
            .into_iter()
            .flatten()
            .any(|witness| said.contains(&format!("{} {tool}.", witness.nonce)));
        let pid = said.rsplit_once(" pid=").and_then(|(_, pid)| pid.parse::<u32>().ok());
        match expected {
            Reached => ensure!(answered && self.saw(tool), "it did not reach a server: {said}"),
            Done(what) => ensure!(said.starts_with(what), "{said}"),
            Refused(errnos) => {
                // A program that refuses cannot choose the errno on every kernel; what sk_lookup refuses has its own.
                let mut words = Vec::new();
                for &errno in errnos {
                    words.extend([errno, refusal(errno)?]);
                }
                let refused = words.iter().any(|errno| said.starts_with(&format!("refused {errno} ")));
                ensure!(refused, "not refused by one of {words:?}: {said}");
                ensure!(!self.saw(tool), "refused, and it reached the server: {said}");
            }
            Captured(_) | Nobody => {
                // As an MCP reply, or where the server is not declared.
                let denied = said.starts_with("answered 200 ") || said.starts_with("answered 403 ");
                ensure!(!answered && denied, "not captured: {said}");
                ensure!(!self.saw(tool), "captured, and it reached the server: {said}");
                let app_id = if let Captured(app_id) = expected { json!(app_id) } else { Value::Null };
                self.check_audit(tool, &app_id, pid.context("who connected?")?, &said)?;
                if way.how.starts_with("reuses-pid") {
                    self.check_audit(&format!("{tool}.own"), &json!(BESIDE), pid.unwrap_or_default(), &said)?;
                }
            }
        }
        Ok(())
    }

    /// The one line of the audit that names the tool tells who called it.
    fn check_audit(&self, tool: &str, app_id: &Value, pid: u32, said: &str) -> Result<()> {
        let agent = self.agent.as_ref().context("no agent")?;
        let is_this = |line: &&Value| text(line, "tool") == tool;
        let lines = agent.audit_until(tool, |lines| lines.iter().any(|line| is_this(&line)))?;
        let lines: Vec<_> = lines.iter().filter(is_this).collect();
        let [line] = lines.as_slice() else { bail!("{} audit lines", lines.len()) };
        let told = (&line["caller"]["app_id"], &line["caller"]["pid"], text(line, "decision"));
        ensure!(told == (app_id, &json!(pid), "deny"), "{said}\n{line}");
        // What it has become by now is not who connected.
        let exe = text(line, "caller/exe");
        ensure!(exe.is_empty() || exe.ends_with("/attacker"), "{line}");
        Ok(())
    }

    /// Runs the attacker and returns what it said.
    fn run(&self, how: &str, tool: &str) -> Result<String> {
        let mut process = Process::start(&mut self.command(how, tool)?)?;
        process.end().with_context(|| format!("it hangs: {}", process.said()))?;
        Ok(process.said().trim_end().to_owned())
    }

    fn command(&self, how: &str, tool: &str) -> Result<Command> {
        let how = self.filled(how)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_attacker"));
        command.args(how.split(' '));
        let path = |cgroup: &Cgroup| cgroup.path().display().to_string();
        for (name, value) in [
            ("tool", tool.to_owned()),
            ("inside", path(&self.inside)),
            ("beside", path(&self.beside)),
            ("outside", path(&self.outside)),
            // What the declared server is called, whichever way leads there.
            ("host", format!("127.0.0.1:{}", self.server.port)),
        ] {
            if !how.contains(&format!(" {name}=")) {
                command.arg(format!("{name}={value}"));
            }
        }
        Ok(command)
    }

    fn filled(&self, how: &str) -> Result<String> {
        let index = nix::net::if_::if_nametoindex(self.netns.device())?;
        let mut how = how.to_owned();
        if how.contains("{agent_pid}") {
            how = how.replace("{agent_pid}", &self.agent_pid()?.to_string());
        }
        if how.contains("{source}") {
            how = how.replace("{source}", &self.source_port()?.to_string());
        }
        Ok(how
            .replace("{port}", &self.server.port.to_string())
            .replace("{open}", &self.open.port.to_string())
            .replace("{agent}", &self.agent_port.to_string())
            .replace("{spare}", &self.spare_port.to_string())
            .replace("{near}", &self.near.to_string())
            .replace("{near6}", &self.near6.to_string())
            .replace("{link_local}", &link_local(self.netns.device())?)
            .replace("{index}", &index.to_string())
            .replace("{device}", self.netns.device())
            .replace("{vrf}", self.vrf.as_ref().map_or("no-vrf", |vrf| &vrf.name))
            .replace("{in_vrf}", Vrf::ADDRESS)
            .replace("{beside}", &self.beside.path().display().to_string())
            .replace("{namespace}", &self.netns.path().display().to_string()))
    }
}

impl Stage {
    /// Of the agent, which is dead where this is asked for; else of a process that has ended.
    fn agent_pid(&self) -> Result<u32> {
        match &self.agent {
            Some(agent) => Ok(agent.process().id()),
            None => {
                let mut ended = Process::start(&mut Command::new("true"))?;
                ended.end()?;
                Ok(ended.id())
            }
        }
    }

    /// The port from which the server was last dialled, by the agent; without an agent, a free one.
    fn source_port(&self) -> Result<u16> {
        match (&self.agent, self.server.arrivals().last()) {
            (Some(_), arrival) => Ok(arrival.context("the agent never dialled")?.peer.port()),
            (None, _) => Ok(free_address()?.port()),
        }
    }

    /// A call that is permitted, so that the agent has dialled the server.
    fn dialled(&self) -> Result<()> {
        let said = self.run("tcp start=inside tool=other to=127.0.0.1:{port}", "other")?;
        ensure!(said.contains(&self.server.nonce), "{said}");
        Ok(())
    }
}

/// The link-local address of a device, once nobody else on the link turned out to have it (`/proc/net/if_inet6`).
fn link_local(device: &str) -> Result<String> {
    /// IFA_F_TENTATIVE: until then the address is not local yet.
    const TENTATIVE: u32 = 0x40;
    wait::until("a link-local address", || {
        let addresses = fs::read_to_string("/proc/net/if_inet6").context("no IPv6")?;
        let found = addresses.lines().find(|line| line.starts_with("fe80") && line.ends_with(device));
        let Some(line) = found else { return Ok(None) };
        let flags = line.split_whitespace().nth(4).context("an address without flags")?;
        let digits = line.get(..32).context("a line without address")?;
        let number = u128::from_str_radix(digits, 16).context("not an address")?;
        let ready = u32::from_str_radix(flags, 16).context("flags that are no number")? & TENTATIVE == 0;
        Ok(ready.then(|| std::net::Ipv6Addr::from(number).to_string()))
    })
}

/// One server, two workloads by their cgroups, and a policy that allows neither what is tried here.
fn resources(server: &Witness, inside: &Cgroup, beside: &Cgroup) -> Result<String> {
    let workload = |name: &str, cgroup: &Cgroup| -> Result<String> {
        Ok(format!(
            "apiVersion: toolgate/v1
kind: Workload
metadata: {{ name: {name} }}
spec: {{ selectors: {{ cgroup: \"/{}\" }} }}
---
",
            cgroup.name()?
        ))
    };
    let server = format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: docs }}
spec:
  local: {{ address: \"127.0.0.1:{}\" }}
  path: /mcp
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: docs }}
spec:
  rules:
  - {{ name: other-tools, effect: allow, callers: [{ATTACKER}, {BESIDE}], servers: [docs], tools: [other] }}
",
        server.port
    );
    Ok([workload(ATTACKER, inside)?, workload(BESIDE, beside)?, server].concat())
}
