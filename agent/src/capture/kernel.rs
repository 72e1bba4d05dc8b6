//! The programs in the kernel, from load to detach.

use std::{
    fs::File,
    net::TcpListener,
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, SockMap},
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps,
        links::{FdLink, LinkError},
    },
};
use toolgate_ebpf_common::{Config, LISTENERS_MAX, Offsets};

use super::{
    CaptureError, Counter, LogTask, Plan, Removed, Taker,
    abi::Abi,
    btf, cgroup, counters, host, log,
    pins::Generation,
    plan::{PlanMaps, map_error},
    taker::Connections,
};

/// Built by `cargo xtask ebpf`; empty where it was not (see build.rs).
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/toolgate.bpf.o"));

/// Maps that are pinned: all that the programs share with the agent.
const MAPS: [&str; 9] = [
    "CONFIG",
    "CAPTURED",
    "REFUSED",
    "EXCLUDED",
    "DESTINATIONS",
    "ORIGINALS",
    "CONNECTIONS",
    "LISTENERS",
    "COUNTERS",
];

/// A record this old belongs to no connection that still waits: a SYN is given up after 127 s
/// with the kernel's default of 6 retries.
const RECORD_AGE_NS_MAX: u64 = 130 * 1_000_000_000;

/// The programs, attached and pinned.
///
/// Dropped without [`Kernel::detach`] the pins stay, and captured connections are refused: as when
/// the agent is killed. [`super::detach`] removes them.
pub struct Kernel {
    /// Programs; their maps are below.
    _ebpf: Ebpf,
    generation: Generation,
    plan: Mutex<PlanMaps>,
    counters: PerCpuArray<MapData, u64>,
    connections: Map,
    _listeners: SockMap<MapData>,
    netns_cookie: u64,
    log: Mutex<Option<LogTask>>,
}

impl Kernel {
    /// Loads, attaches at the cgroup2 root and in the network namespace of this thread, and pins.
    /// `listeners` listen on `plan.listener`, one a thread. The caller holds the agent's lock: what
    /// is pinned already belongs to a dead agent, and is removed once the new programs are attached.
    /// On an error nothing new stays.
    pub fn attach(plan: &Plan, listeners: &[TcpListener]) -> Result<Self, CaptureError> {
        if OBJECT.is_empty() {
            return Err(CaptureError::NoObject);
        }
        host::check()?;
        let root = cgroup::mount()?;
        let root = File::open(&root).map_err(|source| CaptureError::Cgroup { path: root, cause: source })?;
        let config = config(plan, listeners)?;
        let mut ebpf = load(&btf::offsets()?)?;
        let log = log::task(&mut ebpf);
        let mut generation = Generation::create(config.agent_start_from_ns)?;
        for name in MAPS {
            let path = generation.map_path(name);
            let map = ebpf.map(name).ok_or(CaptureError::WrongObject { name })?;
            map.pin(&path)
                .map_err(|error| CaptureError::Pin { path, cause: std::io::Error::other(error) })?;
        }
        let mut plan_maps = PlanMaps {
            captured: take(&mut ebpf, "CAPTURED")?,
            refused: take(&mut ebpf, "REFUSED")?,
            excluded: take(&mut ebpf, "EXCLUDED")?,
            destinations: take(&mut ebpf, "DESTINATIONS")?,
        };
        plan_maps.apply(plan)?;
        let listener_map = fill_listeners(&mut ebpf, listeners)?;
        let mut config_map: Array<MapData, Abi<Config>> = take(&mut ebpf, "CONFIG")?;
        config_map.set(0, Abi(config), 0).map_err(map_error("CONFIG"))?;
        let counters = take(&mut ebpf, "COUNTERS")?;
        let name = "CONNECTIONS";
        let connections = ebpf.take_map(name).ok_or(CaptureError::WrongObject { name })?;
        attach_programs(&mut ebpf, &root, &generation)?;
        let replaced = generation.remove_others()?;
        generation.keep();
        if replaced.links > 0 {
            tracing::info!(programs = replaced.links, "took over from an agent that did not detach");
        }
        Ok(Self {
            _ebpf: ebpf,
            generation,
            plan: Mutex::new(plan_maps),
            counters,
            connections,
            _listeners: listener_map,
            netns_cookie: config.netns_cookie,
            log: Mutex::new(log),
        })
    }

    /// Captures by another plan from now on; established connections go on. The listener cannot change.
    pub fn update(&self, plan: &Plan) -> Result<(), CaptureError> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).apply(plan)
    }

    /// A taker of records for one thread.
    pub fn taker(&self) -> Result<Taker, CaptureError> {
        Ok(Taker::new(self.open_connections()?, self.netns_cookie))
    }

    /// Every branch of every program.
    pub fn counters(&self) -> Result<Vec<Counter>, CaptureError> {
        counters::read(&self.counters)
    }

    /// Removes records that nobody took and nobody will: of clients that vanished between SYN and
    /// accept. How many. To be called now and then, a minute is often enough.
    pub fn sweep(&self) -> Result<usize, CaptureError> {
        let now_ns = host::monotonic_ns();
        let mut connections = self.open_connections()?;
        let old: Vec<_> = connections
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, Abi(record))| now_ns.saturating_sub(record.connected_ns) > RECORD_AGE_NS_MAX)
            .map(|(key, _)| key)
            .collect();
        // One that is gone was taken after all.
        Ok(old.iter().filter(|key| connections.remove(key).is_ok()).count())
    }

    /// Records that wait to be taken: as many as there are connections between SYN and accept.
    pub fn waiting(&self) -> Result<usize, CaptureError> {
        Ok(self.open_connections()?.keys().filter(Result::is_ok).count())
    }

    /// The programs' log, for a runtime to run. The first call has it.
    pub fn log_task(&self) -> Option<LogTask> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Detaches the programs and removes their pins. Connections that were captured go on; new ones
    /// go where they are meant to.
    pub fn detach(&self) -> Result<Removed, CaptureError> {
        self.generation.remove()
    }

    /// A descriptor of its own, so that threads share nothing.
    fn open_connections(&self) -> Result<Connections, CaptureError> {
        let failed = map_error("CONNECTIONS");
        let Map::HashMap(map) = &self.connections else {
            return Err(CaptureError::WrongObject { name: "CONNECTIONS" });
        };
        let fd = map.fd().as_fd().try_clone_to_owned().map_err(|error| failed(MapError::IoError(error)))?;
        MapData::from_fd(fd).and_then(|map| Connections::try_from(Map::HashMap(map))).map_err(failed)
    }
}

fn config(plan: &Plan, listeners: &[TcpListener]) -> Result<Config, CaptureError> {
    let first = listeners.first().filter(|_| listeners.len() <= LISTENERS_MAX as usize);
    let (Some(first), Ok(count)) = (first, u32::try_from(listeners.len())) else {
        return Err(CaptureError::Listeners { count: listeners.len(), max: LISTENERS_MAX });
    };
    let (agent_start_from_ns, agent_start_until_ns) = host::own_start_ns()?;
    Ok(Config {
        netns_cookie: host::netns_cookie(first)?,
        agent_start_from_ns,
        agent_start_until_ns,
        agent_tgid: std::process::id(),
        listener_address: u32::from_ne_bytes(plan.listener.ip().octets()),
        listener_port: u32::from(plan.listener.port()),
        listeners: count,
    })
}

fn load(offsets: &Offsets) -> Result<Ebpf, CaptureError> {
    EbpfLoader::new()
        .override_global("OFFSETS", &Abi(*offsets), true)
        .load(OBJECT)
        .map_err(|source| CaptureError::Load { cause: Box::new(source) })
}

/// A map of the object, as what the agent takes it for.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CaptureError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CaptureError::WrongObject { name })?;
    M::try_from(map).map_err(map_error(name))
}

fn fill_listeners(ebpf: &mut Ebpf, listeners: &[TcpListener]) -> Result<SockMap<MapData>, CaptureError> {
    let mut map: SockMap<MapData> = take(ebpf, "LISTENERS")?;
    for (slot, listener) in (0..).zip(listeners) {
        map.set(slot, listener, 0).map_err(map_error("LISTENERS"))?;
    }
    Ok(map)
}

/// connect4 last: nothing is turned to the agent before all else is in place.
fn attach_programs(ebpf: &mut Ebpf, root: &File, generation: &Generation) -> Result<(), CaptureError> {
    let netns = File::open("/proc/thread-self/ns/net")
        .map_err(|source| CaptureError::Host { what: "opening `/proc/thread-self/ns/net`", cause: source })?;
    let link = attach_program("toolgate_sk_lookup", ebpf, |program: &mut SkLookup| {
        program.load()?;
        let id = program.attach(netns)?;
        Ok(FdLink::from(program.take_link(id)?))
    })?;
    generation.pin_link("sk_lookup", link)?;
    let link = attach_program("toolgate_sock_ops", ebpf, |program: &mut SockOps| {
        program.load()?;
        let id = program.attach(root, CgroupAttachMode::Single)?;
        program.take_link(id)?.try_into().map_err(no_link)
    })?;
    generation.pin_link("sock_ops", link)?;
    for (name, pin) in [
        ("toolgate_getpeername4", "getpeername4"),
        ("toolgate_connect6", "connect6"),
        ("toolgate_connect4", "connect4"),
    ] {
        let link = attach_program(name, ebpf, |program: &mut CgroupSockAddr| {
            program.load()?;
            let id = program.attach(root, CgroupAttachMode::Single)?;
            program.take_link(id)?.try_into().map_err(no_link)
        })?;
        generation.pin_link(pin, link)?;
    }
    Ok(())
}

/// Kernels before 5.7 attach without a link; they were refused already.
fn no_link(_: LinkError) -> ProgramError {
    ProgramError::NotAttached
}

fn attach_program<'e, P>(
    name: &'static str,
    ebpf: &'e mut Ebpf,
    attach: impl FnOnce(P) -> Result<FdLink, ProgramError>,
) -> Result<FdLink, CaptureError>
where
    P: TryFrom<&'e mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(CaptureError::WrongObject { name })?;
    P::try_from(program)
        .and_then(attach)
        .map_err(|source| CaptureError::Program { name, cause: Box::new(source) })
}
