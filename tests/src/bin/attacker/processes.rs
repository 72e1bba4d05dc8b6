//! Cgroups, namespaces and process ids: who connects, and from where.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use io_uring::IoUring;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use socket2::Socket;

use crate::ask::{Ask, At as _, Stopped, Tried, ended, enter, host_pid, stopped};
use crate::{passed, speak, tcp};

const POLLER_MS: u32 = 200;
/// Forks until a process id must have come again, where there are a thousand.
const FORKS_MAX: u32 = 1_500;
/// Processes whose id is waited for.
const TRIES_MAX: u32 = 5;

/// The socket is made before this process joins the captured cgroup.
pub(crate) fn joins_late(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    ask.join()?;
    socket.connect(&to.into()).at("connect")?;
    tcp::said(socket, ask)
}

/// So are the socket and a ring whose poller is a kernel thread.
pub(crate) fn joins_late_with_ring(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    let mut ring = IoUring::builder().setup_sqpoll(POLLER_MS).build(8).at("ring")?;
    ask.join()?;
    tcp::ring_connect(&mut ring, &socket, to)?;
    tcp::said(socket, ask)
}

/// The socket is made inside; then the process goes, as root may.
pub(crate) fn leaves_with_socket(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    ask.leave()?;
    socket.connect(&to.into()).at("connect")?;
    tcp::said(socket, ask)
}

/// The process goes first.
pub(crate) fn leaves(ask: &Ask) -> Tried {
    ask.leave()?;
    tcp::plain(ask)
}

/// A cgroup of its own, `depth=` levels below.
pub(crate) fn below(ask: &Ask) -> Tried {
    let mut made = vec![PathBuf::from(ask.word("inside")?)];
    for level in 0..ask.number("depth")? {
        let next = made.last().map(|above| above.join(format!("level-{level}"))).unwrap_or_default();
        fs::create_dir(&next).at("cgroup")?;
        made.push(next);
    }
    enter(&made.last().map(|deepest| deepest.display().to_string()).unwrap_or_default())?;
    let said = tcp::plain(ask);
    ask.join()?;
    for made in made.iter().skip(1).rev() {
        fs::remove_dir(made).at("cgroup")?;
    }
    said
}

/// Connects, then becomes another program, which says the call.
pub(crate) fn becomes_another(ask: &Ask) -> Tried {
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty())).at("inherit")?;
    let copy = std::env::temp_dir().join(format!("attacker-{}", std::process::id()));
    fs::copy("/proc/self/exe", &copy).at("copy")?;
    let error = Command::new(&copy)
        .args(["speaks-on", &format!("descriptor={}", socket.as_raw_fd())])
        .args(std::env::args().skip(2))
        .exec();
    Err(error).at("exec")
}

/// What it becomes. Its file is removed at once.
pub(crate) fn speaks_on(ask: &Ask) -> Tried {
    fs::remove_file(std::env::current_exe().at("exe")?).at("exe")?;
    let descriptor = i32::try_from(ask.number("descriptor")?).unwrap_or(-1);
    // SAFETY: the program that became this one left the descriptor to it alone.
    let socket = unsafe { Socket::from_raw_fd(descriptor) };
    tcp::said(socket, ask)
}

/// In a namespace of its own: `user`, `cgroup` or `mount`.
pub(crate) fn unshared(ask: &Ask) -> Tried {
    let flags = match ask.word("namespace")? {
        "user" => CloneFlags::CLONE_NEWUSER,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        "mount" => CloneFlags::CLONE_NEWNS,
        other => return Err(stopped("start", format!("no namespace `{other}`"))),
    };
    unshare(flags).at("unshare")?;
    tcp::plain(ask)
}

/// A child in a PID namespace of its own.
pub(crate) fn first_of_its_pids(ask: &Ask) -> Tried {
    unshare(CloneFlags::CLONE_NEWPID).at("unshare")?;
    let output = ask.again("tcp")?.output().at("child")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Goes to another network namespace and connects there.
pub(crate) fn elsewhere(ask: &Ask) -> Tried {
    setns(File::open(ask.word("namespace")?).at("namespace")?, CloneFlags::CLONE_NEWNET).at("setns")?;
    tcp::plain(ask)
}

/// The socket is made there and used here.
pub(crate) fn socket_from_elsewhere(ask: &Ask) -> Tried {
    let here = File::open("/proc/self/ns/net").at("namespace")?;
    let there = File::open(ask.word("namespace")?).at("namespace")?;
    let to = ask.to()?;
    setns(there, CloneFlags::CLONE_NEWNET).at("setns")?;
    let socket = tcp::socket(ask, to)?;
    setns(here, CloneFlags::CLONE_NEWNET).at("setns")?;
    socket.connect(&to.into()).at("connect")?;
    tcp::said(socket, ask)
}

/// The socket is made here and used there.
pub(crate) fn socket_to_elsewhere(ask: &Ask) -> Tried {
    let there = File::open(ask.word("namespace")?).at("namespace")?;
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    setns(there, CloneFlags::CLONE_NEWNET).at("setns")?;
    socket.connect(&to.into()).at("connect")?;
    tcp::said(socket, ask)
}

/// A thread connects when the first one has ended: `/proc` shows no executable then.
pub(crate) fn leaderless(ask: Ask) -> Tried {
    let leader = std::process::id();
    std::thread::spawn(move || {
        let stat = format!("/proc/self/task/{leader}/stat");
        // Bounded by the kernel: the thread below ends in its next call.
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            std::thread::yield_now();
        }
        crate::say(tcp::plain(&ask));
        std::process::exit(0);
    });
    // SAFETY: ends this thread alone; what it owns was moved away.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Err(stopped("exit", "the first thread goes on"))
}

/// One process connects, hands the connection over and ends. Another one, captured in `beside=`, gets its process id
/// and makes a call of its own. Then the first one's connection says the call.
///
/// `comes-again=`: the kernel gives the process id again by itself, when all others have been given.
pub(crate) fn reuses_pid(ask: &Ask) -> Tried {
    for _ in 0..TRIES_MAX {
        let (child, channel) = passed::helper(ask, "connects-inside")?;
        let pid = child.id();
        let socket = passed::receive(&channel)?;
        ended(child)?;
        let (own, its) = std::os::unix::net::UnixStream::pair().at("pair")?;
        let mut successor = ask.again("calls-beside")?;
        successor.stdin(std::os::fd::OwnedFd::from(its));
        let successor = match ask.find("comes-again") {
            Some(_) => spawn_when_it_comes(pid, successor)?,
            None => Some(spawn_as(pid, successor)?),
        };
        if let Some(successor) = successor {
            return both_speak(ask, pid, socket, successor, own);
        }
    }
    Err(stopped("pid", "somebody else gets it each time"))
}

fn both_speak(
    ask: &Ask,
    pid: u32,
    socket: Socket,
    successor_pid: Pid,
    mut own: std::os::unix::net::UnixStream,
) -> Tried {
    own.set_read_timeout(Some(speak::SILENCE)).at("timeout")?;
    // It has made its call, and lives.
    own.read_exact(&mut [0]).at("the successor's call")?;
    let said = tcp::said(socket, ask);
    own.write_all(b"+").at("end")?;
    waitpid(successor_pid, None).at("wait")?;
    Ok(format!("{} pid={pid}", said?))
}

/// The first of the two.
pub(crate) fn connects_inside(ask: &Ask) -> Tried {
    let channel = passed::channel()?;
    ask.join()?;
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    passed::give(&channel, &socket)?;
    Ok(String::new())
}

/// The second; its call has `.own` behind the tool's name.
pub(crate) fn calls_beside(ask: &Ask) -> Tried {
    let mut channel = passed::channel()?;
    enter(ask.word("beside")?)?;
    let to = ask.to()?;
    let socket = tcp::socket(ask, to)?;
    socket.connect(&to.into()).at("connect")?;
    let host = ask.find("host").map_or_else(|| ask.word("to"), Ok)?;
    let said = speak::call(socket.into(), &format!("{}.own", ask.tool()?), host, speak::Then::More)?;
    channel.write_all(b"+").at("call")?;
    channel.read_exact(&mut [0]).at("end")?;
    Ok(format!("{said} pid={}", host_pid()?))
}

/// Does `then=` under a process id that somebody had before.
pub(crate) fn under_pid(ask: &Ask) -> Tried {
    let successor = spawn_as(ask.number("pid")?, ask.again(ask.word("then")?)?)?;
    waitpid(successor, None).at("wait")?;
    // It has said what came of it.
    Ok(String::new())
}

/// Starts a program under a process id when the kernel gives that. None: somebody else got it.
fn spawn_when_it_comes(pid: u32, mut command: Command) -> Result<Option<Pid>, Stopped> {
    for _ in 0..FORKS_MAX {
        // SAFETY: no thread but this one; the child calls nothing but exec, and ends.
        match unsafe { fork() }.at("fork")? {
            ForkResult::Child => {
                if std::process::id() == pid {
                    let _error = command.exec();
                }
                // SAFETY: ends the child without its parent's duties.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } if u32::try_from(child.as_raw()) == Ok(pid) => {
                return Ok(Some(child));
            }
            ForkResult::Parent { child } => {
                waitpid(child, None).at("wait")?;
            }
        }
    }
    Ok(None)
}

/// Starts a program under a process id that is free (clone3(2), `set_tid`, kernel 5.5).
fn spawn_as(pid: u32, mut command: Command) -> Result<Pid, Stopped> {
    let wanted = [i32::try_from(pid).map_err(|_| stopped("clone", "a process id above 2^31"))?];
    // SAFETY: all fields are integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
    arguments.set_tid = wanted.as_ptr() as u64;
    arguments.set_tid_size = 1;
    let bytes = size_of::<libc::clone_args>();
    // SAFETY: no thread but this one; the child calls nothing but exec, and ends if that fails.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, bytes) };
    match child {
        0 => {
            let _error = command.exec();
            // SAFETY: ends the child without its parent's duties.
            unsafe { libc::_exit(1) }
        }
        1.. => Ok(Pid::from_raw(i32::try_from(child).unwrap_or_default())),
        _error => Err(std::io::Error::last_os_error()).at("clone"),
    }
}
