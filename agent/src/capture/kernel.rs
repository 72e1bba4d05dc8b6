//! The programs in the kernel, from load to detach.

use std::{
    collections::BTreeSet,
    fs::File,
    net::TcpListener,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf, SkStorage},
};
use toolgate_ebpf_common::{LISTENERS_MAX, Offsets, Record, Served};

use super::{
    CaptureError, Cookie, Counter, LogTask, Plan, Removed, SeenReader, Settings, Taker,
    abi::Abi,
    agents::Agents,
    btf, cgroup, counters, host, log,
    names::Names,
    namespaces::{self, Namespaces},
    pins::Pins,
    plan::{PlanMaps, map_error},
    preflight::preflight,
    programs,
    settings::Switches,
    sweep::Waiting,
};

/// Built by `cargo xtask ebpf`; empty where it was not (see build.rs).
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/toolgate.bpf.o"));

/// Maps that are pinned and shared: by the agent that comes next, and by the programs that are loaded later, one for each
/// namespace. Not among them are the listeners of a namespace, whose turn it is, and the log's ring: each agent reads what
/// its own programs say.
const SHARED: [&str; 20] = [
    "ACCEPTED",
    "ADMITTED",
    "AGENTS",
    "BYPASSED",
    "CAPTURED",
    "CONFIG",
    "CONNECTIONS",
    "COUNTERS",
    "DESTINATIONS",
    "EXCLUDED",
    "GUARDED",
    "HEARTBEAT",
    "LEARNED",
    "MADE",
    "NAMES",
    "NAMESPACES",
    "ORIGINALS",
    "PENDING",
    "REFUSED",
    "SEEN",
];

/// A page: the kernel makes no smaller ring.
const LOG_BYTES_MIN: u32 = 4_096;

/// The programs, attached and pinned.
///
/// Dropped without [`Kernel::detach`] the pins stay, and captured connections are refused: as when
/// the agent is killed. [`super::detach`] removes them. Dropped before the first [`Kernel::update`], as when the
/// start fails, it takes with it what it attached newly; what it found goes on refusing.
///
/// While another agent hands over, what that one needs is left as it is until [`Kernel::lead`].
pub struct Kernel {
    pins: Pins,
    offsets: Offsets,
    agents: Mutex<Agents>,
    switches: Mutex<Switches>,
    heartbeat: Mutex<Array<MapData, u64>>,
    namespaces: Mutex<Namespaces>,
    /// The one that was served first.
    home: OnceLock<Cookie>,
    plan: Mutex<PlanMaps>,
    waiting: Mutex<Waiting>,
    counters: PerCpuArray<MapData, u64>,
    accepted: MapData,
    seen: Mutex<Option<Map>>,
    retired: Arc<AtomicBool>,
    log: Mutex<Option<LogTask>>,
}

impl Kernel {
    /// Loads and attaches at the cgroup2 root, and pins. Where an agent was here before, its maps go on and its
    /// programs are replaced, one by one, without a gap. From here on this process is the agent: it may bind the port.
    ///
    /// Captured is what was before, at first nothing; and what is captured is refused until [`Kernel::serve`].
    /// On an error nothing new stays.
    pub fn attach(settings: &Settings) -> Result<Self, CaptureError> {
        if OBJECT.is_empty() {
            return Err(CaptureError::NoObject);
        }
        preflight()?;
        let root = root()?;
        let offsets = btf::offsets()?;
        let pins = Pins::open()?;
        let mut ebpf = load(&pins, &offsets, None)?;
        let log = log::task(&mut ebpf);
        let mut agents = Agents::new(take(&mut ebpf, "AGENTS")?);
        let alone = agents.claim()?;
        let (accepted, accepted_too) = share(&mut ebpf, "ACCEPTED")?;
        let namespaces = Namespaces::new(
            take(&mut ebpf, "NAMESPACES")?,
            take(&mut ebpf, "LEARNED")?,
            SkStorage::<MapData, Abi<Record>>::try_from(Map::SkStorage(accepted_too))
                .map_err(map_error("ACCEPTED"))?,
        );
        let switches =
            Switches::new(settings, alone, take(&mut ebpf, "CONFIG")?, take(&mut ebpf, "BYPASSED")?)?;
        programs::attach(&mut ebpf, &root, &pins)?;
        pins.remove_gone(programs::SK_LOOKUP)?;
        pins.remove_others_links(&programs::BINDS)?;
        if pins.is_adopted() {
            tracing::info!(alone, "took over from an agent that did not detach");
        }
        Ok(Self {
            offsets,
            agents: Mutex::new(agents),
            switches: Mutex::new(switches),
            heartbeat: Mutex::new(take(&mut ebpf, "HEARTBEAT")?),
            namespaces: Mutex::new(namespaces),
            home: OnceLock::new(),
            plan: Mutex::new(PlanMaps {
                captured: take(&mut ebpf, "CAPTURED")?,
                names: Names::new(take(&mut ebpf, "NAMES")?),
                refused: take(&mut ebpf, "REFUSED")?,
                excluded: take(&mut ebpf, "EXCLUDED")?,
                destinations: take(&mut ebpf, "DESTINATIONS")?,
                guarded: take(&mut ebpf, "GUARDED")?,
            }),
            waiting: Mutex::new(Waiting::new(take(&mut ebpf, "CONNECTIONS")?, take(&mut ebpf, "PENDING")?)),
            counters: take(&mut ebpf, "COUNTERS")?,
            accepted,
            seen: Mutex::new(ebpf.take_map("SEEN")),
            retired: Arc::default(),
            log: Mutex::new(log),
            pins,
        })
    }

    /// Whether an agent was here before, so that its port was kept for this one.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.pins.is_adopted()
    }

    /// The network namespace of an unconnected UDP socket of this process, which is connected to learn it. Works with
    /// `lo` down and without any route.
    pub fn namespace_of(&self, socket: &impl AsFd) -> Result<Cookie, CaptureError> {
        lock(&self.namespaces).learn(socket)
    }

    /// Gives what is captured in a namespace to these listeners in it, which take turns: those at 127.0.0.1, one a
    /// thread, and those at ::1, if it has IPv6. Called by a thread inside of that namespace. Where another agent, or
    /// this one, served it before, its listeners are replaced at once. It beats, too.
    ///
    /// `ipv6_routes`: whether IPv6 addresses outside of the namespace can be reached from it.
    pub fn serve(
        &self,
        cookie: Cookie,
        ipv6_routes: bool,
        listeners: &[TcpListener],
        listeners6: &[TcpListener],
    ) -> Result<(), CaptureError> {
        let served = Served {
            netns_cookie: cookie.0,
            home_cookie: self.home.get_or_init(|| cookie).0,
            listeners: number_of(listeners).filter(|&count| count > 0).ok_or_else(|| too_many(listeners))?,
            listeners6: number_of(listeners6).ok_or_else(|| too_many(listeners6))?,
        };
        let netns = File::open("/proc/thread-self/ns/net").map_err(|source| CaptureError::Host {
            what: "opening `/proc/thread-self/ns/net`",
            cause: source,
        })?;
        let mut ebpf = load(&self.pins, &self.offsets, Some(&served))?;
        namespaces::fill(&mut ebpf, listeners, listeners6)?;
        let mut known = lock(&self.namespaces);
        for listener in listeners.iter().chain(listeners6) {
            known.mark(listener, cookie)?;
        }
        programs::attach_lookup(&mut ebpf, &netns, &self.pins, &link_name(cookie))?;
        self.beat()?;
        // Last: until then captured processes in it are refused.
        known.insert(cookie, ipv6_routes)
    }

    /// Says again whether IPv6 addresses outside of a namespace can be reached from it.
    pub fn set_routes(&self, cookie: Cookie, ipv6_routes: bool) -> Result<(), CaptureError> {
        lock(&self.namespaces).set_routes(cookie, ipv6_routes)
    }

    /// Serves a namespace no longer: captured processes in it are refused, and seen.
    pub fn leave(&self, cookie: Cookie) -> Result<(), CaptureError> {
        lock(&self.namespaces).remove(cookie)?;
        self.pins.unlink(&link_name(cookie))
    }

    /// Captures by another plan from now on; established connections go on. The first one ends the start: what was
    /// attached stays from then on.
    pub fn update(&self, plan: &Plan) -> Result<(), CaptureError> {
        lock(&self.plan).apply(plan)?;
        self.pins.keep();
        Ok(())
    }

    /// No other agent lives from now on: this one's settings hold, and what others served or attached, and this one did
    /// not take over, goes.
    pub fn lead(&self) -> Result<(), CaptureError> {
        lock(&self.switches).settle()?;
        let served = lock(&self.namespaces).forget_others()?;
        let links: BTreeSet<String> = served.into_iter().map(link_name).collect();
        self.pins.remove_but(programs::SK_LOOKUP, &links)?;
        let replaced = self.pins.remove_others()?;
        if replaced.links > 0 {
            tracing::info!(programs = replaced.links, "removed the programs of another version");
        }
        Ok(())
    }

    /// Puts this agent's own programs back in the place of those of another that was to take over, and failed. The
    /// namespaces are to be served again, too: [`Kernel::serve`].
    pub fn reinstate(&self) -> Result<(), CaptureError> {
        let mut ebpf = load(&self.pins, &self.offsets, None)?;
        let log = log::task(&mut ebpf);
        programs::attach(&mut ebpf, &root()?, &self.pins)?;
        // The one before reads a ring that nothing is written to any more.
        *lock(&self.log) = log;
        lock(&self.agents).claim().map(drop)
    }

    /// A taker of records for one thread.
    pub fn taker(&self) -> Result<Taker, CaptureError> {
        let map = Map::SkStorage(clone(&self.accepted, "ACCEPTED")?);
        Ok(Taker::new(SkStorage::try_from(map).map_err(map_error("ACCEPTED"))?))
    }

    /// Says that the agent lives. To be called several times in [`Settings::heartbeat_age_max`].
    pub fn beat(&self) -> Result<(), CaptureError> {
        lock(&self.heartbeat).set(0, host::monotonic_ns(), 0).map_err(map_error("HEARTBEAT"))
    }

    /// Lets a cgroup, captured or not, and all below it go where they are meant to until then, in nanoseconds of
    /// CLOCK_MONOTONIC; `None`: no longer. It ends by itself, also without an agent.
    pub fn bypass(&self, cgroup_id: u64, until_ns: Option<u64>) -> Result<(), CaptureError> {
        lock(&self.switches).bypass(cgroup_id, until_ns)
    }

    /// Tells of captured processes in namespaces that are not served. The first call has it. Where another agent hands
    /// over: to be called after it has retired, as one reads at a time.
    pub fn seen(&self) -> Option<SeenReader> {
        let ring = RingBuf::try_from(lock(&self.seen).take()?)
            .inspect_err(|error| tracing::error!(%error, "new namespaces cannot be seen"))
            .ok()?;
        Some(SeenReader::new(ring, Arc::clone(&self.retired)))
    }

    /// Every branch of every program.
    pub fn counters(&self) -> Result<Vec<Counter>, CaptureError> {
        counters::read(&self.counters)
    }

    /// Removes records that nobody took and nobody will: of clients that vanished in the handshake. How many. Removes
    /// bypasses that are over, too. To be called now and then, a minute is often enough.
    pub fn sweep(&self) -> Result<usize, CaptureError> {
        lock(&self.switches).expire()?;
        lock(&self.waiting).sweep()
    }

    /// Records that wait to be taken: as many as there are connections between SYN and the handshake's end.
    pub fn waiting(&self) -> Result<usize, CaptureError> {
        Ok(lock(&self.waiting).count())
    }

    /// The programs' log, for a runtime to run. The first call has it, and the first after [`Kernel::reinstate`].
    pub fn log_task(&self) -> Option<LogTask> {
        lock(&self.log).take()
    }

    /// Detaches the programs and removes all pins. Connections that were captured go on; new ones
    /// go where they are meant to.
    pub fn detach(&self) -> Result<Removed, CaptureError> {
        self.pins.remove()
    }

    /// After a hand-over: this process is the agent no longer, and nothing is detached.
    pub fn retire(&self) -> Result<(), CaptureError> {
        self.retired.store(true, Ordering::Release);
        self.pins.keep();
        lock(&self.agents).retire()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn root() -> Result<File, CaptureError> {
    let path = cgroup::mount()?;
    File::open(&path).map_err(|cause| CaptureError::Cgroup { path, cause })
}

fn link_name(cookie: Cookie) -> String {
    format!("{}{cookie}", programs::SK_LOOKUP)
}

fn number_of(listeners: &[TcpListener]) -> Option<u32> {
    u32::try_from(listeners.len()).ok().filter(|&count| count <= LISTENERS_MAX)
}

fn too_many(listeners: &[TcpListener]) -> CaptureError {
    CaptureError::Listeners { count: listeners.len(), max: LISTENERS_MAX }
}

/// With the pinned maps as far as there are any; those that are not are made and pinned.
fn load(pins: &Pins, offsets: &Offsets, served: Option<&Served>) -> Result<Ebpf, CaptureError> {
    let (maps, offsets, served) = (pins.maps(), Abi(*offsets), served.map(|served| Abi(*served)));
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", &offsets, true);
    for name in SHARED {
        loader.map_pin_path(name, maps.join(name));
    }
    if let Some(served) = &served {
        loader.override_global("SERVED", served, true);
        // The log's ring: nobody reads that of these programs, which write none.
        loader.map_max_entries("AYA_LOGS", LOG_BYTES_MIN);
    }
    loader.load(OBJECT).map_err(|source| CaptureError::Load { cause: Box::new(source) })
}

/// A map of the object, as what the agent takes it for.
fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CaptureError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CaptureError::WrongObject { name })?;
    M::try_from(map).map_err(map_error(name))
}

/// A socket storage map, twice.
fn share(ebpf: &mut Ebpf, name: &'static str) -> Result<(MapData, MapData), CaptureError> {
    let Some(Map::SkStorage(map)) = ebpf.take_map(name) else {
        return Err(CaptureError::WrongObject { name });
    };
    let too = clone(&map, name)?;
    Ok((map, too))
}

/// With a descriptor of its own, so that threads share nothing.
fn clone(map: &MapData, name: &'static str) -> Result<MapData, CaptureError> {
    let failed = map_error(name);
    let fd = map.fd().as_fd().try_clone_to_owned().map_err(|error| failed(MapError::IoError(error)))?;
    MapData::from_fd(fd).map_err(failed)
}
