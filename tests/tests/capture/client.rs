//! A process that connects as it is told.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use toolgate_tests::{Cgroup, Process, refusal};

/// Connects as it is told, a line each, and keeps what it made.
const CLIENT: &str = r#"
import ctypes, errno, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
kept = []
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {"tcp": (STREAM, 0), "mptcp": (STREAM, 262), "udp": (DATAGRAM, 0), "raw": (socket.SOCK_RAW, 6),
         "sctp": (STREAM, 132), "dccp": (6, 33)}
def new(kind):
    family = socket.AF_INET6 if kind.endswith("6") else socket.AF_INET
    made = socket.socket(family, *KINDS[kind.rstrip("6")])
    made.settimeout(5)
    kept.append(made)
    return made
def dissolve(made):
    unspecified = struct.pack("=H14x", socket.AF_UNSPEC)
    if libc.connect(made.fileno(), unspecified, len(unspecified)) != 0:
        raise OSError(ctypes.get_errno(), "connect")
def do(words):
    if words[0] == "drop":
        while kept: kept.pop().close()
        return ""
    if words[0] == "many":
        for _ in range(int(words[3])):
            with socket.create_connection((words[1], int(words[2])), 5): pass
        return ""
    if words[0] == "abort":
        kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        kept.pop().close()
        return ""
    if words[0] == "from":
        made = new("tcp")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", int(words[1])))
        made.connect((words[2], int(words[3])))
        return str(made.getsockname()[1])
    if words[0] == "make":
        new(words[1]).close()
        return ""
    if words[0] == "keep":
        new(words[1])
        return ""
    if words[0] == "device":
        made = new("tcp")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, words[1].encode())
        made.connect((words[2], int(words[3])))
        return ""
    if words[0] == "listen":
        made = new(words[1])
        made.bind((words[2], int(words[3])))
        if not words[1].startswith("udp"): made.listen(8)
        return str(made.getsockname()[1])
    if words[0] == "send":
        new(words[1]).sendto(b"x", (words[2], int(words[3])))
        return ""
    if words[0] == "begin":
        made = new("tcp")
        made.setblocking(False)
        try: made.connect((words[1], int(words[2])))
        except BlockingIOError: pass
        return ""
    if words[0] == "fast":
        made = new("tcp")
        made.setblocking(True)
        made.sendto(b"x", 0x20000000, (words[1], int(words[2])))
        return "%s:%d" % kept[-1].getpeername()[:2]
    if words[0] == "again": dissolve(kept[-1])
    made = kept[-1] if words[0] in ("again", "now") else new(words[0])
    made.connect((words[1], int(words[2])))
    address, port = made.getpeername()[:2]
    return "[%s]:%d" % (address, port) if ":" in address else "%s:%d" % (address, port)
for line in sys.stdin:
    try: answer = "+" + do(line.split())
    except OSError as error: answer = "-" + errno.errorcode.get(error.errno, str(error))
    print(answer, flush=True)
"#;

pub(crate) struct Client(pub(crate) Process);

impl Client {
    pub(crate) fn start(cgroup: Option<&Cgroup>, user: u32, prefix: &[&str]) -> Result<Self> {
        let words: Vec<&str> = prefix.iter().copied().chain(["/usr/bin/python3", "-c", CLIENT]).collect();
        let mut command = Command::new(words.first().context("no command")?);
        command.args(words.get(1..).unwrap_or_default()).uid(user);
        let process = Process::start(&mut command)?;
        // Before its first socket, so that all of them were made in it.
        if let Some(cgroup) = cgroup {
            cgroup.add(process.id())?;
        }
        Ok(Self(process))
    }

    pub(crate) fn inside(cgroup: &Cgroup) -> Result<Self> {
        Self::start(Some(cgroup), 0, &[])
    }

    pub(crate) fn outside() -> Result<Self> {
        Self::start(None, 0, &[])
    }

    /// The peer, or what else was asked for; or the name of the errno.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Result<String, String>> {
        let from = self.0.lines();
        self.0.say(command)?;
        let (_, answer) = self.0.line_from(from, "")?;
        Ok(match (answer.strip_prefix('+'), answer.strip_prefix('-')) {
            (Some(peer), _) => Ok(peer.to_owned()),
            (None, Some(errno)) => Err(errno.to_owned()),
            (None, None) => bail!("{}", self.0.said()),
        })
    }

    /// Fails unless it works; what it says then.
    pub(crate) fn must(&mut self, command: &str) -> Result<String> {
        self.ask(command)?.map_err(|errno| anyhow::anyhow!("`{command}`: {errno}"))
    }

    /// Fails unless a program refuses it with this errno, or as it is told on this kernel.
    pub(crate) fn must_be_refused(&mut self, command: &str, errno: &str) -> Result<()> {
        self.must_fail(command, refusal(errno)?)
    }

    /// Fails unless it fails with this errno.
    pub(crate) fn must_fail(&mut self, command: &str, errno: &str) -> Result<()> {
        let answer = self.ask(command)?;
        ensure!(answer == Err(errno.to_owned()), "`{command}`: {answer:?} instead of {errno}");
        Ok(())
    }
}
