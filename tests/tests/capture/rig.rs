//! An attached kernel side, with listeners whose connections the test takes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{Shutdown, shutdown};
use socket2::{Domain, Socket, Type};
use toolgate::capture::{
    Captured, CapturedCgroup, Cookie, Destination, Destinations, Kernel, Loss, Plan, Scope, Settings, Taker,
};
use toolgate_tests::{Cgroup, Host, PATIENCE};

/// Nobody's address (RFC 5737): a connection there gets through only if it is captured.
pub(crate) const NOWHERE: &str = "192.0.2.7 8000";
/// The same of IPv6 (RFC 3849).
pub(crate) const NOWHERE6: &str = "2001:db8::7 8000";
pub(crate) const NOBODY: u32 = 65_534;
/// Of tests that are not about it: nobody beats in them.
const NO_LOSS: Duration = Duration::from_secs(3600);

/// What an acceptor hands to the test.
type Taken = (TcpStream, Result<Captured, String>);

/// Accepts, takes the record, and hands both to the test.
pub(crate) struct Acceptor {
    listener: TcpListener,
    pub(crate) taken: Receiver<Taken>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    pub(crate) fn start(listener: &TcpListener, mut taker: Taker) -> Result<Self> {
        let accepting = listener.try_clone().context("cannot share a listener")?;
        let (sender, taken): (Sender<_>, Receiver<_>) = channel();
        let thread = std::thread::spawn(move || {
            while let Ok((stream, peer)) = accepting.accept() {
                let captured = taker.take(&stream, peer).map_err(|error| error.to_string());
                if sender.send((stream, captured)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { listener: listener.try_clone()?, taken, thread: Some(thread) })
    }

    pub(crate) fn next(&self) -> Result<Captured> {
        let (_stream, captured) = self.taken.recv_timeout(PATIENCE).context("nothing was captured")?;
        captured.map_err(anyhow::Error::msg)
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // Wakes the accept; the listener is closed with its last descriptor.
        let _not_listening = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

/// How a rig differs from others.
pub(crate) struct Wanted {
    pub(crate) agent_loss: Loss,
    pub(crate) heartbeat_age_max: Duration,
    pub(crate) ipv6_routes: bool,
    /// For each family.
    pub(crate) listeners: usize,
    pub(crate) plan: Plan,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            agent_loss: Loss::Closed,
            heartbeat_age_max: NO_LOSS,
            ipv6_routes: true,
            listeners: 1,
            plan: Plan::default(),
        }
    }
}

/// An attached kernel side, the last to go of what a test makes.
pub(crate) struct Rig {
    pub(crate) acceptors: Vec<Acceptor>,
    pub(crate) acceptors6: Vec<Acceptor>,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) plan: Plan,
    pub(crate) home: Cookie,
    pub(crate) port: u16,
    /// Kept open where nobody accepts.
    pub(crate) listeners: Vec<TcpListener>,
    _turn: Host,
}

impl Rig {
    /// With a listener for each family.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
        Self::with(Wanted { plan, ..Wanted::default() })
    }

    /// All that a process of this cgroup connects to.
    pub(crate) fn capturing(cgroup: &Cgroup) -> Result<Self> {
        Self::start(Plan { cgroups: vec![all_of(cgroup)?], ..Plan::default() })
    }

    /// The same, but nobody accepts.
    pub(crate) fn deaf(cgroup: &Cgroup) -> Result<Self> {
        let plan = Plan { cgroups: vec![all_of(cgroup)?], ..Plan::default() };
        let (mut rig, v4, v6) = Self::attached(Wanted { plan, ..Wanted::default() })?;
        rig.listeners = v4.into_iter().chain(v6).collect();
        Ok(rig)
    }

    pub(crate) fn with(wanted: Wanted) -> Result<Self> {
        let (mut rig, v4, v6) = Self::attached(wanted)?;
        rig.acceptors = rig.accept(&v4)?;
        rig.acceptors6 = rig.accept(&v6)?;
        Ok(rig)
    }

    fn accept(&self, listeners: &[TcpListener]) -> Result<Vec<Acceptor>> {
        listeners.iter().map(|listener| Acceptor::start(listener, self.kernel()?.taker()?)).collect()
    }

    fn attached(wanted: Wanted) -> Result<(Self, Vec<TcpListener>, Vec<TcpListener>)> {
        let turn = Host::turn()?;
        let (v4, v6, port) = listeners(wanted.listeners)?;
        let kernel = Kernel::attach(&Settings {
            port,
            agent_loss: wanted.agent_loss,
            heartbeat_age_max: wanted.heartbeat_age_max,
        })?;
        let home = here(&kernel)?;
        kernel.serve(home, wanted.ipv6_routes, &v4, &v6)?;
        kernel.update(&wanted.plan)?;
        kernel.lead()?;
        let rig = Self {
            acceptors: Vec::new(),
            acceptors6: Vec::new(),
            kernel: Some(kernel),
            plan: wanted.plan,
            home,
            port,
            listeners: Vec::new(),
            _turn: turn,
        };
        Ok((rig, v4, v6))
    }

    pub(crate) fn kernel(&self) -> Result<&Kernel> {
        self.kernel.as_ref().context("detached")
    }

    pub(crate) fn next(&self) -> Result<Captured> {
        self.acceptors.first().context("no acceptor")?.next()
    }

    pub(crate) fn next6(&self) -> Result<Captured> {
        self.acceptors6.first().context("no acceptor")?.next()
    }

    /// Changes the plan.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Plan)) -> Result<()> {
        change(&mut self.plan);
        Ok(self.kernel()?.update(&self.plan)?)
    }

    /// How often a branch was taken, named `program/branch`.
    pub(crate) fn count(&self, name: &str) -> Result<u64> {
        count(self.kernel()?, name)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.kernel.take().map(|kernel| kernel.detach()) {
            eprintln!("{error}");
        }
    }
}

/// How often a branch was taken, named `program/branch`.
pub(crate) fn count(kernel: &Kernel, name: &str) -> Result<u64> {
    let counters = kernel.counters()?;
    let counted: BTreeMap<String, u64> =
        counters.iter().map(|c| (format!("{}/{}", c.program, c.branch), c.count)).collect();
    counted.get(name).copied().with_context(|| format!("no counter `{name}`"))
}

/// The namespace of this thread.
pub(crate) fn here(kernel: &Kernel) -> Result<Cookie> {
    Ok(kernel.namespace_of(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)?)
}

pub(crate) fn all_of(cgroup: &Cgroup) -> Result<CapturedCgroup> {
    Ok(CapturedCgroup { id: cgroup.id()?, scope: Scope::Subtree, destinations: Destinations::All })
}

pub(crate) fn declared_of(cgroup: &Cgroup) -> Result<CapturedCgroup> {
    Ok(CapturedCgroup { destinations: Destinations::Declared, ..all_of(cgroup)? })
}

/// Of both families, at one port.
pub(crate) fn listeners(count: usize) -> Result<(Vec<TcpListener>, Vec<TcpListener>, u16)> {
    let first = listener(Ipv4Addr::LOCALHOST.into(), 0)?;
    let port = first.local_addr()?.port();
    let mut v4 = vec![first];
    while v4.len() < count {
        v4.push(listener(Ipv4Addr::LOCALHOST.into(), port)?);
    }
    let v6 = (0..count).map(|_| listener(Ipv6Addr::LOCALHOST.into(), port)).collect::<Result<_>>()?;
    Ok((v4, v6, port))
}

fn listener(address: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// A listener that accepts and keeps, so that a connect to it succeeds.
pub(crate) fn plain_server() -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    Ok((listener, format!("127.0.0.1 {port}")))
}

/// A server for both families at once, as many are.
pub(crate) fn dual_stack_server() -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind("[::]:0")?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

pub(crate) fn destination(text: &str) -> Result<Destination> {
    let (net, port) = text.split_once(' ').map_or((text, None), |(net, port)| (net, Some(port)));
    Ok(Destination { net: net.parse()?, port: port.map(str::parse).transpose()? })
}

/// Where the agent pins.
pub(crate) fn pin_folder() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let bpffs = mounts.lines().find(|line| line.split(' ').nth(2) == Some("bpf")).context("no bpffs")?;
    Ok(Path::new(bpffs.split(' ').nth(1).context("no mount point")?).join("toolgate"))
}

/// The directories in it, one for each layout.
pub(crate) fn pins() -> Result<Vec<PathBuf>> {
    let folder = pin_folder()?;
    if !folder.exists() {
        return Ok(Vec::new());
    }
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}
