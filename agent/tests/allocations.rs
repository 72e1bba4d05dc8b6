//! A permitted call costs no allocation once its connection is warm: parsed, decided, forwarded, answered, recorded.
#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use toolgate::bindings::{Bindings, Giving, Kind};
use toolgate::ca::{Authority, Lives, Plan};
use toolgate::capture::{Captured, Cookie, Executable, Recorded};
use toolgate::config::{self, AgentConfig, Resources};
use toolgate::deadline;
use toolgate::forward::{self, Connectors, Pool, Ways};
use toolgate::identify::{Identify, Origin};
use toolgate::limits::Limits;
use toolgate::names::Names;
use toolgate::netns::{Door, Namespace, Namespaces};
use toolgate::parse::{self, Client, Expected};
use toolgate::peer::Tethers;
use toolgate::pins::Pins;
use toolgate::record::{self, AuditPlan, Recorder};
use toolgate::replicas::Replicas;
use toolgate::respond::{self, Exchange, McpExchange};
use toolgate::room::housed;
use toolgate::shares::{Sharer, Shares};
use toolgate::svid::{Source, Svids};
use toolgate_core::decision::{self, Decision, Ids, Mode, Use};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::Message;
use toolgate_core::pin::{self, Definition, HiddenCharacters, Pinning, Seen, Verdict};
use toolgate_core::policy::Ends;

thread_local! {
    static HERE: Cell<u64> = const { Cell::new(0) };
}
static EVERYWHERE: AtomicU64 = AtomicU64::new(0);
static IN_SERVER: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counting.
struct Counting;

fn count() {
    HERE.with(|count| count.set(count.get() + 1));
    EVERYWHERE.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory that it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System.alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of a reply as the client gets it, and how it ends.
const REPLY_BYTES_MAX: usize = 128 * 1024;
const ENDS: [&[u8]; 2] = [b"]}}", b"\r\n0\r\n\r\n"];
const WARM_UP: usize = 50;
const CALLS: usize = 400;
/// Entries at once, before the calls: as many lines wait for the writer then as can wait at all in so many calls, and
/// no more than are kept for the next.
const ENTRIES: usize = WARM_UP + CALLS;

#[test]
fn a_warm_permitted_call_allocates_nothing() {
    let json = |id: &str, text: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#)
    };
    let small = json("7", "x");
    let reply = chunked("application/json", &[&small]);
    check("small, JSON", &reply, "7", "x", None);
    check("small, with a session", &reply, "7", "x", Some("0123456789abcdef-0123-4567-89ab-cdef"));
    check("64 KiB, JSON", &reply, "7", &"x".repeat(64 * 1024), None);
    check("small, of a length", &sized(&small), "7", "x", None);
    check(
        "in pieces",
        &chunked("application/json; charset=utf-8", &[&small[..9], &small[9..]]),
        "7",
        "x",
        None,
    );
    check("64 KiB of a length", &sized(&json("7", &"x".repeat(64 * 1024))), "7", "x", None);
    let id = r#""0f8fad5b-d9cb-469f-a165-70867728950e""#;
    check("by a UUID", &sized(&json(id, "x")), id, "x", None);
    let event = format!("data: {small}\n\n");
    check("small, as an event", &chunked("text/event-stream", &[&event]), "7", "x", None);
}

fn sized(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn chunked(content_type: &str, pieces: &[&str]) -> String {
    let chunks: String = pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    )
}

/// `id`: of the request.
fn check(name: &str, reply: &str, id: &str, message: &str, session: Option<&str>) {
    let scene = Scene::set(reply.to_owned());
    let request = scene.request(id, message, session);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let calls = async { deadline::connection(scene.calls(&request, session)).await };
    let (here, writer) = runtime.block_on(calls);
    scene.writer.finish();
    assert_eq!(here, 0, "{name}: allocations in {CALLS} calls");
    // Its batches are of any size, and the newest lines are kept as text.
    assert!(writer <= 2 * CALLS as u64, "{name}: {writer} allocations of the writer's in {CALLS} calls");
}

/// All that the path of a call needs.
struct Scene {
    server: SocketAddr,
    resources: Arc<Resources>,
    caller: Identity,
    pins: Pins,
    svids: Svids,
    recorder: Recorder,
    writer: record::Writer,
    folder: tempfile::TempDir,
}

impl Scene {
    fn set(reply: String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, reply.as_bytes()));
        let (recorder, writer) = record::start(&AuditPlan {
            file: folder.path().join("audit.jsonl"),
            sync: Duration::from_millis(100),
            deny_on_failure: true,
            state_directory: folder.path().join("store"),
            entries_max: 1_024,
            write_time_max: Duration::from_secs(1),
        })
        .unwrap();
        let resources = Arc::new(resources(folder.path(), server));
        let caller = Identity::new("example.org", "default", "reader").unwrap();
        let pins = pins(folder.path(), &resources.servers[0].identity, &caller);
        let svids = svids(folder.path());
        Self { server, resources, caller, pins, svids, recorder, writer, folder }
    }

    fn request(&self, id: &str, message: &str, session: Option<&str>) -> Vec<u8> {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"message":"{message}"}}}}}}"#
        );
        let session = session.map(|id| format!("Mcp-Session-Id: {id}\r\n")).unwrap_or_default();
        let (host, length) = (self.server, body.len());
        format!(
            "POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nAccept: application/json, \
             text/event-stream\r\n{session}Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Allocations of this thread's, and of the writer's, in the calls after the warm-up.
    async fn calls(&self, request: &[u8], session: Option<&str>) -> (u64, u64) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // It reads when the call is over.
        socket2::SockRef::from(&program).set_recv_buffer_size(REPLY_BYTES_MAX).unwrap();
        let share = Shares::new(&Limits::default()).of(&Sharer::Cgroup(1));
        let accepted = listener.accept().await.unwrap().0;
        accepted.set_nodelay(true).unwrap();
        let mut client = Client::new(accepted, Arc::clone(&share));
        let identify = Identify::new(Arc::clone(&self.writer.metrics));
        let origin = Arc::new(identify.origin(captured(self.server), share));
        let bindings = Bindings::new(&Limits::default());
        if let Some(session) = session {
            let server = &self.resources.servers[0].identity;
            assert!(bindings.bind_session(
                Giving { caller: &self.caller, server, replica: None, now: Instant::now() },
                session
            ));
        }
        let namespaces = Namespaces::of(Namespace::new(Cookie::default(), Door::home().unwrap()));
        let (pool, tethers, names) = (Pool::default(), Tethers::default(), Names::new(&Limits::default()));
        let ways = Ways {
            pool: &pool,
            namespaces: &namespaces,
            names: &names,
            connectors: &Connectors::default(),
            replicas: &Replicas::default(),
            svids: &self.svids,
            tethers: &tethers,
        };
        let (mut here, mut others) = (0, 0);
        let mut got = vec![0; REPLY_BYTES_MAX];
        self.fill_lane(&origin);
        for call in 0..WARM_UP + CALLS {
            if call == WARM_UP {
                others = EVERYWHERE.load(Ordering::Relaxed) - HERE.get() - IN_SERVER.load(Ordering::Relaxed);
            }
            program.write_all(request).unwrap();
            let before = HERE.get();
            housed(|| self.call(&mut client, &origin, &bindings, &ways)).await;
            if call >= WARM_UP {
                here += HERE.get() - before;
            }
            let mut count = 0;
            while !ENDS.iter().any(|end| got[..count].ends_with(end)) {
                count += program.read(&mut got[count..]).unwrap();
            }
            assert!(got.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
        let all = EVERYWHERE.load(Ordering::Relaxed) - HERE.get() - IN_SERVER.load(Ordering::Relaxed);
        (here, all - others)
    }

    /// Opens and closes many entries at once, and waits until the writer is done with them.
    fn fill_lane(&self, origin: &Arc<Origin>) {
        let entries: Vec<_> = (0..ENTRIES).map(|_| self.recorder.open(origin, 1).unwrap()).collect();
        drop(entries);
        let audit = self.folder.path().join("audit.jsonl");
        let lines = || std::fs::read(&audit).unwrap().iter().filter(|byte| **byte == b'\n').count();
        while lines() < ENTRIES {
            std::thread::yield_now();
        }
    }

    /// One call, as `proxy.rs` leads it through the stages.
    async fn call(
        &self,
        client: &mut Client<tokio::net::TcpStream>,
        origin: &Arc<Origin>,
        bindings: &Bindings,
        ways: &Ways<'_>,
    ) {
        let limits = &Limits::default();
        let server = self.resources.servers[0].as_ref();
        let head = client.head(limits).await.unwrap().unwrap();
        let mut entry = self.recorder.open(origin, 1).unwrap();
        entry.target(&server.identity);
        entry.caller(&self.caller);
        let body = client.body(&head, limits).await.unwrap();
        let (request, mut watch) = client.request(&head, &body).unwrap();
        let asked = parse::asked(request, server, limits).unwrap_or_else(|refused| panic!("{refused:?}"));
        entry.asked(&asked, &self.recorder);
        let found = asked
            .session
            .map(|id| bindings.used_by(Kind::Session, &self.caller, &server.identity, id, entry.started()));
        let ids = Ids { session: found.unwrap_or_default().whose, ..Ids::default() };
        assert_ne!(ids.session, Use::Unknown);
        let policies = &self.resources.policies;
        let decision =
            decision::decide(Ok(&self.caller), server.captured(), &asked, ids, policies, Mode::default());
        let Decision::Permitted(permitted) = decision else { panic!("it is permitted") };
        entry.permitted(&permitted);
        let Some(Message::Request(request)) = asked.message() else { panic!("it is a call") };
        let called = pin::called(request).unwrap();
        let verdict = self.pins.now().call(&server.identity, &self.caller, called, HiddenCharacters::Deny);
        assert_eq!(verdict, Verdict::Approved);
        let expected = Expected::of(&asked, None, None);
        let leg = forward::leg(&self.caller, server, None, &asked);
        let mut upstream = {
            let sending = pin!(forward::send(permitted, (&leg, None), server, "", ways, limits));
            watch.unless_left(sending).await.unwrap().unwrap()
        };
        client.done(&head, &body);
        let exchange = Exchange {
            http_method: expected.http_method,
            mcp: Some(McpExchange {
                caller: &self.caller,
                server,
                ends: Ends::Both,
                resources: &self.resources,
                owed: expected.owed(),
                pins: None,
                bindings,
                replica: None,
                expected: &expected,
                pages: None,
                view: Cell::new(None),
                others_tasks: &Cell::new(0),
                observe: false,
                may_ask: &|_| false,
                paired: None,
            }),
            upgrade: false,
            close: false,
            begun: Cell::new(false),
            limits,
        };
        let replied = respond::stream(&mut upstream, client, &exchange).await.unwrap();
        assert!(replied.reusable);
        entry.replied(replied.status, replied.bytes);
        ways.pool.checkin(leg, upstream, limits);
    }
}

/// Of a node that nobody else is trusted by.
fn svids(folder: &std::path::Path) -> Svids {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let (svid, issuing, root, overlap, skew) = (hours(1), hours(10), hours(100), hours(1), hours(0));
    let lives = Lives { svid, issuing, root, overlap, skew, root_is_credential: false };
    let (state_directory, trust_domain) = (folder.to_owned(), "example.org".to_owned());
    let plan = Plan { state_directory, trust_domain, lives, credentials: None };
    Svids::start(Source::Embedded(Box::new(Authority::open(plan, SystemTime::now()).unwrap()))).unwrap()
}

/// With the tool that is called, approved.
fn pins(folder: &std::path::Path, server: &Identity, caller: &Identity) -> Pins {
    let pins = Pins::open(&folder.join("store"), &Limits::default()).unwrap();
    let pinning = Pinning { mode: pin::Mode::FirstUse, hidden: HiddenCharacters::Deny };
    let definition = Definition::from_canonical(r#"{"name":"echo"}"#.to_owned());
    let seen = vec![Seen::of(pin::Kind::Tool, "echo", definition)];
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(pins.observe(server, caller, seen, pinning));
    pins
}

fn captured(original: SocketAddr) -> Captured {
    let exe = Executable { dev: 1, ino: 1, exec_id: 1 };
    let process = Recorded {
        tgid: 1,
        start_ns: 1,
        exe,
        cgroup_id: 1,
        captured_id: 1,
        uid: 0,
        netns_cookie: Cookie::default(),
        connected_ns: 1,
    };
    Captured { original, process }
}

fn resources(folder: &std::path::Path, server: SocketAddr) -> Resources {
    let text = format!(
        "apiVersion: toolgate/v1
kind: Server
metadata: {{ name: docs }}
spec: {{ local: {{ address: \"{server}\" }}, path: /mcp }}
---
apiVersion: toolgate/v1
kind: Policy
metadata: {{ name: docs }}
spec:
  rules:
  - {{ name: echo, effect: allow, callers: [reader], servers: [docs], tools: [echo],
      arguments: {{ message: {{ type: string, max_length: 100000 }} }} }}
"
    );
    let folder = folder.join("resources");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("all.yaml"), text).unwrap();
    config::load_resources(&folder, &AgentConfig::default()).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// Answers every request of every connection, one after another.
fn serve(listener: &TcpListener, reply: &[u8]) {
    let mut block = vec![0; 256 * 1024];
    while let Ok((mut stream, _)) = listener.accept() {
        let (mut head, mut left) = (Vec::with_capacity(1_024), None);
        while let Ok(count @ 1..) = stream.read(&mut block) {
            let mut body = count;
            if left.is_none() {
                head.extend_from_slice(&block[..count]);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                let text = std::str::from_utf8(&head[..end]).unwrap();
                let length = text.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
                left = Some(length.unwrap().parse::<usize>().unwrap());
                body = head.len() - end - 4;
            }
            left = left.map(|left| left - body);
            if left == Some(0) {
                (left, _) = (None, head.clear());
                stream.write_all(reply).unwrap();
            }
            IN_SERVER.store(HERE.get(), Ordering::Relaxed);
        }
    }
}
