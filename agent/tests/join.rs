//! Nodes that join an authority, and those that only try: real TLS, real files, and OpenSSL as the independent witness.
#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set fails")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, LocalSet, spawn_blocking, spawn_local};
use toolgate::ca::{Authority, Listener, Lives, Plan};
use toolgate::record::{self, AuditPlan, Recorder, Writer};
use toolgate::svid::{JoinPlan, Joined, Operation, Role, Source, Svid, Svids, verify};
use toolgate_core::identity::Identity;

/// Revocations are known everywhere after so long at most.
const REVOKED_WITHIN: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);

/// An authority that listens.
struct Home {
    folder: TempDir,
    svids: Svids,
    address: SocketAddr,
    recorder: Rc<Recorder>,
    writer: Option<Writer>,
    accepting: JoinHandle<()>,
}

impl Home {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (recorder, writer) = record::start(&AuditPlan {
            file: folder.path().join("audit.jsonl"),
            sync: Duration::from_millis(10),
            deny_on_failure: true,
            state_directory: folder.path().to_owned(),
            entries_max: 64,
            write_time_max: Duration::from_secs(1),
        })
        .unwrap();
        let lives = Lives {
            svid: HOUR,
            issuing: 10 * HOUR,
            root: 100 * HOUR,
            overlap: HOUR,
            skew: Duration::from_secs(60),
            root_is_credential: false,
        };
        let plan = Plan {
            state_directory: folder.path().to_owned(),
            trust_domain: "example.org".to_owned(),
            lives,
            credentials: None,
        };
        let authority = Authority::open(plan, SystemTime::now()).unwrap();
        let svids = Svids::start(Source::Embedded(Box::new(authority))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let recorder = Rc::new(recorder);
        let accepting = spawn_local(accept(listener, svids.clone(), Rc::clone(&recorder)));
        Self { folder, svids, address, recorder, writer: Some(writer), accepting }
    }

    async fn operate(&self, operation: Operation) -> Value {
        self.svids.operate(operation).await.unwrap()
    }

    async fn token(&self, node: &str, app_ids: &[&str]) -> String {
        let app_ids = app_ids.iter().map(|&one| one.to_owned()).collect();
        let (node, address) = (node.to_owned(), self.address.to_string());
        let made = self.operate(Operation::Token { node, app_ids, ttl: HOUR, address }).await;
        made["token"].as_str().unwrap().to_owned()
    }

    /// The events of the audit, which ends with this.
    fn events(&mut self) -> Vec<Value> {
        self.writer.take().unwrap().finish();
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn accept(listener: TcpListener, svids: Svids, recorder: Rc<Recorder>) {
    let nodes = Listener::new(svids);
    loop {
        let (stream, from) = listener.accept().await.unwrap();
        let (nodes, recorder) = (Rc::clone(&nodes), Rc::clone(&recorder));
        spawn_local(async move { nodes.serve(stream, from, &recorder).await });
    }
}

fn secret(path: &Path, text: &str) {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A node on a folder of its own.
fn node(folder: &TempDir, token: Option<&str>) -> Result<Svids, String> {
    let token_file = token.map(|token| {
        let path = folder.path().join("token");
        secret(&path, token);
        path
    });
    node_by(folder, token_file)
}

fn node_by(folder: &TempDir, token_file: Option<PathBuf>) -> Result<Svids, String> {
    let (state_directory, trust_domain) = (folder.path().to_owned(), "example.org".to_owned());
    let joined = Joined::open(JoinPlan { state_directory, trust_domain, token_file }, SystemTime::now());
    Ok(Svids::start(Source::Joined(Box::new(joined.map_err(|error| error.to_string())?))).unwrap())
}

fn identity(app_id: &str) -> Identity {
    Identity::new("example.org", "default", app_id).unwrap()
}

async fn refused(svids: &Svids, app_id: &str) -> String {
    svids.obtain(&identity(app_id)).await.map(drop).unwrap_err().to_string()
}

fn is_believed(svid: &Svid, by: &Svids) -> bool {
    verify(svid.chain(), &by.trust(), Role::Client, SystemTime::now()).is_ok()
}

/// What OpenSSL says of an SVID's chain under these roots.
fn openssl_verifies(svid: &Svid, home: &Svids) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, all: Vec<&[u8]>| {
        let text: String = all.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", *der))).collect();
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    let trust = home.trust();
    write("roots.pem", trust.bundle("example.org").unwrap().roots.iter().map(AsRef::as_ref).collect());
    write("leaf.pem", vec![&svid.chain()[0]]);
    write("rest.pem", svid.chain()[1..].iter().map(AsRef::as_ref).collect());
    ["sslclient", "sslserver"].iter().all(|purpose| {
        let arguments = [
            "verify",
            "-x509_strict",
            "-CAfile",
            "roots.pem",
            "-untrusted",
            "rest.pem",
            "-purpose",
            purpose,
            "leaf.pem",
        ];
        let output = Command::new("openssl").args(arguments).current_dir(&folder).output().unwrap();
        output.status.success()
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_node_joins_once_and_has_svids_of_its_app_ids_alone() {
    run(async {
        let mut home = Home::start().await;
        let token = home.token("node-a", &["docs", "agent.team"]).await;
        let here = tempfile::tempdir().unwrap();
        let a = node(&here, Some(&token)).unwrap();
        let docs = a.obtain(&identity("docs")).await.unwrap();
        assert!(
            is_believed(&docs, &home.svids) && is_believed(&docs, &a) && openssl_verifies(&docs, &home.svids)
        );
        assert!(a.svid(&identity("docs")).is_some_and(|known| known.serial == docs.serial), "kept");
        let team = Identity::new("example.org", "team", "agent").unwrap();
        assert!(is_believed(&a.obtain(&team).await.unwrap(), &home.svids));
        for foreign in ["agent", "other", "node-a"] {
            let error = refused(&a, foreign).await;
            assert!(
                error.contains(&format!("is registered for `agent.team`, `docs`, not for `{foreign}`")),
                "{error}"
            );
        }
        drop(a);
        // Started again, without the token.
        let again = node(&here, None).unwrap();
        assert!(is_believed(&again.obtain(&identity("docs")).await.unwrap(), &home.svids));
        // The same token elsewhere, once and again.
        let there = tempfile::tempdir().unwrap();
        let thief = node(&there, Some(&token)).unwrap();
        assert!(refused(&thief, "docs").await.contains("this token was used"));
        assert!(
            refused(&thief, "docs").await.contains("the authority does not take it: this token was used")
        );
        let nodes = home.operate(Operation::Nodes).await;
        assert_eq!(nodes["nodes"][0]["app_ids"], json!(["agent.team", "docs"]));
        let events = home.events();
        let told = |event: &str| events.iter().filter(|line| line["event"] == event).count();
        assert_eq!((told("node_joined"), told("node_refused")), (1, 4), "{events:#?}");
        let replayed = events.iter().filter_map(|line| line["detail"].as_str());
        assert!(replayed.clone().any(|detail| detail.contains("this token was used")), "{events:#?}");
        home.accepting.abort();
    });
}

#[test]
fn an_authority_that_is_away_stops_nothing_that_lives() {
    run(async {
        let home = Home::start().await;
        let token = home.token("node-a", &["docs", "agent"]).await;
        let here = tempfile::tempdir().unwrap();
        let a = node(&here, Some(&token)).unwrap();
        let docs = a.obtain(&identity("docs")).await.unwrap();
        // Its connections end with it.
        home.accepting.abort();
        let _ = home.accepting.await;
        drop(a);
        let a = node(&here, None).unwrap();
        assert!(is_believed(&docs, &a), "the bundle is known without the authority");
        let error = refused(&a, "agent").await;
        assert!(error.contains("does not answer"), "{error}");
        let listener = TcpListener::bind(home.address).await.unwrap();
        let accepting = spawn_local(accept(listener, home.svids.clone(), Rc::clone(&home.recorder)));
        let since = Instant::now();
        while a.obtain(&identity("agent")).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "it does not recover by itself");
        }
        accepting.abort();
    });
}

#[test]
fn a_node_that_joins_for_its_first_svid_believes_its_authority() {
    run(async {
        let home = Home::start().await;
        let token = home.token("node-a", &["docs"]).await;
        // What it looks at when it starts fails.
        home.accepting.abort();
        let _ = home.accepting.await;
        let here = tempfile::tempdir().unwrap();
        let a = node(&here, Some(&token)).unwrap();
        assert!(refused(&a, "docs").await.contains("does not answer"));
        let listener = TcpListener::bind(home.address).await.unwrap();
        let accepting = spawn_local(accept(listener, home.svids.clone(), Rc::clone(&home.recorder)));
        let since = Instant::now();
        let docs = loop {
            match a.obtain(&identity("docs")).await {
                Ok(docs) => break docs,
                Err(error) => {
                    assert!(since.elapsed() < Duration::from_secs(30), "it does not recover: {error}")
                }
            }
        };
        assert!(is_believed(&docs, &a), "it has joined, and believes nobody");
        accepting.abort();
    });
}

#[test]
fn what_is_revoked_is_refused_by_the_other_nodes_in_time() {
    run(async {
        let home = Home::start().await;
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a = node(&here, Some(&home.token("node-a", &["docs"]).await)).unwrap();
        let b = node(&there, Some(&home.token("node-b", &["docs", "agent"]).await)).unwrap();
        let (of_a, of_b) =
            (a.obtain(&identity("docs")).await.unwrap(), b.obtain(&identity("docs")).await.unwrap());
        assert!(is_believed(&of_b, &a) && is_believed(&of_a, &b));
        let mut changed = a.changed();
        changed.mark_unchanged();
        let since = Instant::now();
        home.operate(Operation::Revoke("node-b".to_owned())).await;
        assert!(!is_believed(&of_b, &home.svids), "at once where it was said");
        while is_believed(&of_b, &a) {
            let left = REVOKED_WITHIN.saturating_sub(since.elapsed());
            tokio::time::timeout(left, changed.changed()).await.expect("not refused in time").unwrap();
        }
        println!("refused after {:?}", since.elapsed());
        assert!(is_believed(&of_a, &a) && is_believed(&of_a, &home.svids), "the others are not");
        let error = refused(&b, "agent").await;
        assert!(error.contains("was revoked"), "{error}");
        // On a connection of its own, too.
        drop(b);
        let again = node(&there, None).unwrap();
        let error = refused(&again, "agent").await;
        assert!(error.contains("was revoked"), "{error}");
        // A certificate alone.
        home.operate(Operation::Revoke(of_a.serial.to_string())).await;
        while is_believed(&of_a, &a) {
            tokio::time::timeout(REVOKED_WITHIN, changed.changed())
                .await
                .expect("not refused in time")
                .unwrap();
        }
        home.accepting.abort();
    });
}

#[test]
fn a_token_that_leads_elsewhere_or_is_none_is_refused() {
    run(async {
        let home = Home::start().await;
        let token = home.token("node-a", &["docs"]).await;
        let parts: Vec<&str> = token.split('/').collect();
        let with = |at: usize, part: &str| {
            let mut parts = parts.clone();
            parts[at] = part;
            parts.join("/")
        };
        let other = Home::start().await;
        let table = [
            (with(4, &"0".repeat(64)), "no root with the token's fingerprint"),
            (with(5, &other.address.to_string()), "no root with the token's fingerprint"),
            (with(1, "other.org"), "is of trust domain `other.org`, and `trust_domain` says `example.org`"),
            (with(2, "node-b"), "is of another node than `node-b`"),
            (with(3, "00"), "is not known here"),
            (token[..token.len() / 2].to_owned(), "or cut off"),
            ("x".to_owned(), "is not what `toolgate ca token` printed"),
            (String::new(), "is not what `toolgate ca token` printed"),
        ];
        for (token, expected) in table {
            let folder = tempfile::tempdir().unwrap();
            let svids = node(&folder, Some(&token)).unwrap();
            let errors = [refused(&svids, "docs").await, refused(&svids, "docs").await];
            assert!(errors.iter().any(|error| error.contains(expected)), "{expected}: {errors:?}");
            assert_eq!(home.operate(Operation::Nodes).await["nodes"], json!([]), "{expected}");
        }
        // One that others may read, and none at all.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        secret(&file, &token);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let svids = node_by(&folder, Some(file)).unwrap();
        assert!(refused(&svids, "docs").await.contains("has mode 644"));
        assert!(node(&folder, None).err().unwrap().contains("names no token"));
        home.accepting.abort();
        other.accepting.abort();
    });
}

/// A request by OpenSSL's client: an independent one, that shows what it likes.
async fn ask(address: SocketAddr, flags: Vec<String>, request: String) -> String {
    let asked = spawn_blocking(move || {
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-ign_eof", "-connect", &address.to_string()])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // One that was turned away does not read it.
        let _ = client.stdin.take().unwrap().write_all(request.as_bytes());
        let output = client.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    asked.await.unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The flags that show a node's certificate, as its folder has it.
fn shows(folder: &TempDir) -> Vec<String> {
    let kept = folder.path().join("node");
    let text = std::fs::read_to_string(kept.join("node.json")).unwrap();
    let kept_json: Value = serde_json::from_str(&text).unwrap();
    let chain = folder.path().join("chain.pem");
    std::fs::write(&chain, kept_json["chain"].as_str().unwrap()).unwrap();
    flags(&chain, &kept.join("node.key"))
}

fn flags(chain: &Path, key: &Path) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    vec!["-cert".into(), text(chain), "-cert_chain".into(), text(chain), "-key".into(), text(key)]
}

/// A key and a request for a certificate, by OpenSSL.
fn made_by_openssl(folder: &TempDir) -> (PathBuf, String) {
    let key = folder.path().join("own.key");
    let arguments =
        ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"];
    let output = Command::new("openssl").args(arguments).arg("-keyout").arg(&key).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (key, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn who_is_no_node_gets_nothing() {
    run(async {
        let home = Home::start().await;
        let here = tempfile::tempdir().unwrap();
        let a = node(&here, Some(&home.token("node-a", &["docs"]).await)).unwrap();
        a.obtain(&identity("docs")).await.unwrap();
        let (key, csr) = made_by_openssl(&here);
        let wanted = |app_id: &str| post("/v1/svid", &json!({ "app_id": app_id, "csr": csr }));
        let answer = ask(home.address, shows(&here), wanted("docs")).await;
        assert!(answer.contains("200 OK"), "{answer}");
        let body: Value =
            serde_json::from_str(&answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()]).unwrap();
        let workload = here.path().join("workload.pem");
        std::fs::write(&workload, body["chain"].as_str().unwrap()).unwrap();
        // Another authority of the same name, and its node.
        let (other, there) = (Home::start().await, tempfile::tempdir().unwrap());
        let b = node(&there, Some(&other.token("node-a", &["docs"]).await)).unwrap();
        b.obtain(&identity("docs")).await.unwrap();
        let mut tls12 = shows(&here);
        tls12.push("-tls1_2".to_owned());
        let table: Vec<(&str, Vec<String>, String, &str)> = vec![
            ("a node", shows(&here), get("/v1/trust"), "200 OK"),
            ("a node, a foreign App ID", shows(&here), wanted("agent"), "not for `agent`"),
            ("a node, no App ID", shows(&here), wanted("../node"), "is no valid App ID"),
            ("nobody", vec![], get("/v1/trust"), "only a node with its certificate may ask that"),
            ("nobody", vec![], wanted("docs"), "only a node with its certificate may ask that"),
            ("nobody", vec![], post("/v1/renew", &json!({ "csr": csr })), "only a node with its certificate"),
            ("a workload", flags(&workload, &key), get("/v1/trust"), "is no node"),
            ("a workload", flags(&workload, &key), wanted("docs"), "is no node"),
            ("another authority's node", shows(&there), get("/v1/trust"), "alert"),
            ("TLS 1.2", tls12, get("/v1/trust"), "alert"),
            (
                "a request that is none",
                shows(&here),
                post("/v1/svid", &json!({ "app_id": "docs", "csr": "x" })),
                "cannot be read",
            ),
            ("a path that is none", shows(&here), get("/v1/keys"), "404"),
        ];
        for (who, flags, request, expected) in table {
            let answer = ask(home.address, flags, request).await;
            assert!(answer.contains(expected), "{who}: {answer}");
        }
        home.operate(Operation::Revoke("node-a".to_owned())).await;
        let stolen = ask(home.address, shows(&here), get("/v1/trust")).await;
        assert!(!stolen.contains("200 OK"), "a stolen certificate after its revocation: {stolen}");
        home.accepting.abort();
        other.accepting.abort();
    });
}

/// OpenSSL's server; ended when dropped.
struct Impostor(std::process::Child);

impl Impostor {
    fn start(address: SocketAddr, flags: Vec<String>) -> Self {
        let mut server = Command::new("openssl");
        server.args(["s_server", "-quiet", "-tls1_3", "-accept", &address.to_string()]).args(flags);
        let started =
            Self(server.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let since = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "OpenSSL does not listen");
        }
        started
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_node_believes_nobody_else_in_its_authoritys_place() {
    run(async {
        let home = Home::start().await;
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let a = node(&here, Some(&home.token("node-a", &["docs"]).await)).unwrap();
        let b = node(&there, Some(&home.token("node-b", &["docs"]).await)).unwrap();
        a.obtain(&identity("docs")).await.unwrap();
        b.obtain(&identity("docs")).await.unwrap();
        drop(b);
        // A node of the same authority, at another address.
        let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _impostor = Impostor::start(place, shows(&here));
        let kept = there.path().join("node/node.json");
        let text = std::fs::read_to_string(&kept).unwrap();
        std::fs::write(&kept, text.replace(&home.address.to_string(), &place.to_string())).unwrap();
        let b = node(&there, None).unwrap();
        let error = refused(&b, "docs").await;
        let expected = "it is `spiffe://example.org/toolgate/node/node-a`, and not `spiffe://example.org/toolgate/authority`";
        assert!(error.contains(expected), "{error}");
        home.accepting.abort();
    });
}
