//! Our client against whoever answers as it likes: what does not hold together is not believed, and what there was goes on.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::messages::{Empty, X509Svid};
use super::*;
use crate::ca::{Authority, IssuedTo, Lives, Plan};
use crate::svid::{Operation, Provider, ProviderPlan, Source, Svids};

const HOUR: Duration = Duration::from_secs(3600);
const READER: &str = "spiffe://example.org/ns/default/reader";

fn authority(folder: &Path, trust_domain: &str) -> Authority {
    let [svid, issuing, root, overlap] = [24, 24 * 30, 24 * 365, 48].map(|hours| HOUR * hours);
    let lives =
        Lives { svid, issuing, root, overlap, skew: Duration::from_secs(60), root_is_credential: false };
    let (state_directory, trust_domain) = (folder.to_owned(), trust_domain.to_owned());
    Authority::open(Plan { state_directory, trust_domain, lives, credentials: None }, SystemTime::now())
        .unwrap()
}

fn roots(of: &Authority) -> Vec<u8> {
    of.bundle().roots.iter().flat_map(|root| root.to_vec()).collect()
}

fn svid(by: &Authority, id: &str) -> X509Svid {
    let key = KeyPair::generate().unwrap();
    let issued =
        by.issue(&SpiffeId::parse(id).unwrap(), IssuedTo::default(), &key, SystemTime::now()).unwrap();
    X509Svid {
        spiffe_id: id.to_owned(),
        x509_svid: issued.chain.iter().flat_map(|one| one.to_vec()).collect(),
        x509_svid_key: key.serialize_der(),
        bundle: roots(by),
    }
}

fn one(svid: X509Svid) -> X509SvidResponse {
    X509SvidResponse { svids: vec![svid], ..X509SvidResponse::default() }
}

/// Says one thing, and leaves the stream open.
struct Says(X509SvidResponse);

impl tonic::server::ServerStreamingService<Empty> for Says {
    type Response = X509SvidResponse;
    type ResponseStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<X509SvidResponse, Status>> + Send>>;
    type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _request: tonic::Request<Empty>) -> Self::Future {
        let said = tokio_stream::once(Ok(self.0.clone())).chain(tokio_stream::pending());
        std::future::ready(Ok(tonic::Response::new(Box::pin(said))))
    }
}

/// A Workload API that says what it is told to. Dropped: it is gone, connections and all.
struct Socket(JoinHandle<()>);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Socket {
    fn at(path: &Path, says: X509SvidResponse) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let connections = Arc::new(Mutex::new(tokio::task::JoinSet::new()));
        Self(tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let says = says.clone();
                let answered = move |request: Request<Incoming>| {
                    let says = says.clone();
                    async move {
                        let codec = ProstCodec::<X509SvidResponse, Empty>::default();
                        Ok::<_, Infallible>(Grpc::new(codec).server_streaming(Says(says), request).await)
                    }
                };
                let served = http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answered));
                connections.lock().unwrap().spawn(served);
            }
        }))
    }

    fn nonsense(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self(tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        }))
    }
}

fn asking(path: &Path) -> Svids {
    let plan =
        ProviderPlan { trust_domain: "example.org".to_owned(), socket: format!("unix:{}", path.display()) };
    Svids::start(Source::WorkloadApi(Box::new(Provider::new(plan)))).unwrap()
}

fn reader() -> Identity {
    SpiffeId::parse(READER).unwrap().identity().unwrap()
}

#[tokio::test]
async fn what_does_not_hold_together_is_not_believed() {
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let own = authority(folders[0].path(), "example.org");
    let same_name = authority(folders[1].path(), "example.org");
    let other = authority(folders[2].path(), "other.org");
    let whole = || svid(&own, READER);
    let federated = |name: &str, of: &Authority| X509SvidResponse {
        federated_bundles: HashMap::from([(name.to_owned(), roots(of))]),
        ..one(whole())
    };
    let of_other = svid(&other, "spiffe://other.org/ns/default/reader");
    let not_given = "gives this agent no SVID of `spiffe://example.org/ns/default/reader`";
    type Case<'c> = (&'c str, X509SvidResponse, Option<&'c str>);
    let table: Vec<Case<'_>> = vec![
        ("whole", one(whole()), None),
        ("another App ID", one(svid(&own, "spiffe://example.org/ns/default/writer")), Some(not_given)),
        ("no workload", one(svid(&own, "spiffe://example.org/agent")), Some(not_given)),
        ("another trust domain", one(of_other), Some(not_given)),
        ("none", X509SvidResponse::default(), Some("missing required field")),
        ("no bundle", one(X509Svid { bundle: Vec::new(), ..whole() }), Some("missing required field")),
        ("no key", one(X509Svid { x509_svid_key: Vec::new(), ..whole() }), Some("missing required field")),
        ("no certificate", one(X509Svid { x509_svid: b"x".to_vec(), ..whole() }), Some("gives nothing")),
        (
            "another's key",
            one(X509Svid { x509_svid_key: svid(&own, READER).x509_svid_key, ..whole() }),
            Some("the key is not its certificate's"),
        ),
        (
            "another authority of the same name",
            one(X509Svid { bundle: roots(&same_name), ..whole() }),
            Some("is signed by no root"),
        ),
        ("federated", federated("spiffe://other.org", &other), None),
        ("federated in our name", federated("spiffe://example.org", &other), Some("is signed by no root")),
    ];
    for (name, says, expected) in table {
        let path = folders[3].path().join("api.sock");
        let _socket = Socket::at(&path, says);
        let obtained = asking(&path).obtain(&reader()).await;
        match (expected, obtained) {
            (None, Ok(svid)) => assert_eq!(svid.identity, reader(), "{name}"),
            (Some(words), Err(error)) => {
                assert!(error.to_string().contains(words), "{name}: {error}");
            }
            (_, obtained) => panic!("{name}: {:?}", obtained.map(drop)),
        }
    }
    let path = folders[3].path().join("nobody.sock");
    let missing = asking(&path).obtain(&reader()).await.unwrap_err().to_string();
    assert!(missing.contains("gives nothing") && missing.contains("nobody.sock"), "{missing}");
    let _socket = Socket::nonsense(&path);
    let nonsense = asking(&path).obtain(&reader()).await.unwrap_err().to_string();
    assert!(nonsense.contains("gives nothing"), "{nonsense}");
}

#[tokio::test]
async fn a_federated_trust_domain_is_believed_by_its_own_bundle_alone() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let (own, other) =
        (authority(folders[0].path(), "example.org"), authority(folders[1].path(), "other.org"));
    let path = folders[2].path().join("api.sock");
    let says = X509SvidResponse {
        federated_bundles: HashMap::from([("spiffe://other.org".to_owned(), roots(&other))]),
        ..one(svid(&own, READER))
    };
    let _socket = Socket::at(&path, says);
    let svids = asking(&path);
    svids.obtain(&reader()).await.unwrap();
    let mut changed = svids.changed();
    while svids.trust().bundle("other.org").is_none() {
        changed.changed().await.unwrap();
    }
    let trust = Arc::clone(&svids.trust());
    let proven = |by: &Authority, id: &str| {
        let key = KeyPair::generate().unwrap();
        let issued = by.issue(&SpiffeId::parse(id).unwrap(), IssuedTo::default(), &key, SystemTime::now());
        let verified =
            crate::svid::verify(&issued.unwrap().chain, &trust, crate::svid::Role::Client, SystemTime::now());
        verified.is_ok()
    };
    assert!(proven(&own, READER));
    assert!(proven(&other, "spiffe://other.org/ns/default/reader"));
    assert!(!proven(&other, READER), "by another trust domain's authority");
    assert!(!proven(&own, "spiffe://other.org/ns/default/reader"));
}

#[tokio::test]
async fn a_socket_that_is_away_stops_nothing_and_is_come_back_to() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let own = authority(folders[0].path(), "example.org");
    let path = folders[1].path().join("api.sock");
    let socket = Socket::at(&path, one(svid(&own, READER)));
    let svids = asking(&path);
    let first = svids.obtain(&reader()).await.unwrap();
    drop(socket);
    until(&svids, || svids.failing().is_some()).await;
    assert_eq!(svids.svid(&reader()).unwrap().serial, first.serial, "what there is goes on");
    let status = svids.operate(Operation::Status).await.unwrap();
    assert!(status["failed"].is_string(), "{status}");
    let _socket = Socket::at(&path, one(svid(&own, READER)));
    until(&svids, || svids.svid(&reader()).is_some_and(|svid| svid.serial != first.serial)).await;
    until(&svids, || svids.failing().is_none()).await;
}

async fn until(svids: &Svids, is_so: impl Fn() -> bool) {
    let mut changed = svids.changed();
    let waited = async {
        while !is_so() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waited).await.unwrap();
}
