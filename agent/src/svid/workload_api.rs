//! SVIDs of somebody else's Workload API (`identity.source: workload-api`), such as SPIRE's: streamed, with the bundles of our
//! trust domain and of those that it is federated with. A socket that is away stops nothing as long as what it gave lives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};
use spiffe::{WorkloadApiClient, X509Context, X509Svid};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::SpiffeId;

use super::verify::validity;
use super::{Bundle, Revoked, Role, Trust, verify};
use crate::ca::Issued;

/// Until the socket has given something, or who asks is told that it has not.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two attempts to reach it: doubled with each that fails.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(5);

/// Why it gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It is not there, or breaks off.
    #[error(
        "the Workload API at `{socket}` (identity.socket) gives nothing: {cause}; asked again every few seconds"
    )]
    Lost {
        /// Where.
        socket: String,
        /// What happened.
        cause: Arc<str>,
    },
    /// Other SVIDs than that.
    #[error(
        "the Workload API at `{socket}` gives this agent no SVID of `{id}`: register it there, for the agent's process"
    )]
    NotGiven {
        /// Where.
        socket: String,
        /// Whose.
        id: String,
    },
}

/// Where SVIDs are asked for.
#[derive(Debug, Clone)]
pub struct ProviderPlan {
    /// Ours: what is given of others is not used.
    pub trust_domain: String,
    /// `unix:PATH`
    pub socket: String,
}

/// One SVID with its key.
pub(super) struct Given {
    pub(super) identity: Identity,
    pub(super) issued: Issued,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Clone for Given {
    fn clone(&self) -> Self {
        Self { identity: self.identity.clone(), issued: self.issued.clone(), key: self.key.clone_key() }
    }
}

/// All that was given at once.
#[derive(Default)]
struct Update {
    svids: Vec<Given>,
    bundles: BTreeMap<Box<str>, Arc<Bundle>>,
    /// SVIDs that are of no use here.
    others: Vec<String>,
}

/// What is known of it.
#[derive(Clone, Default)]
struct Told {
    update: Option<Arc<Update>>,
    /// Why there is nothing new.
    lost: Option<Arc<str>>,
}

/// A Workload API that is asked from the first look on.
pub struct Provider {
    plan: ProviderPlan,
    told: Option<watch::Receiver<Told>>,
    /// Who was asked for, and is not given.
    missing: BTreeSet<String>,
}

impl Provider {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(plan: ProviderPlan) -> Self {
        Self { plan, told: None, missing: BTreeSet::new() }
    }

    pub(super) fn trust_domain(&self) -> &str {
        &self.plan.trust_domain
    }

    pub(super) fn socket(&self) -> &str {
        &self.plan.socket
    }

    /// Begins to ask. Within the runtime of who owns it.
    fn told(&mut self) -> &mut watch::Receiver<Told> {
        self.told.get_or_insert_with(|| {
            let (telling, told) = watch::channel(Told::default());
            tokio::spawn(follow(self.plan.clone(), telling));
            told
        })
    }

    fn update(&self) -> Option<Arc<Update>> {
        self.told.as_ref().and_then(|told| told.borrow().update.clone())
    }

    pub(super) fn trust(&self) -> Trust {
        let revoked = Revoked { trust_domain: self.plan.trust_domain.as_str().into(), ..Revoked::default() };
        let bundles = self.update().map(|update| update.bundles.clone()).unwrap_or_default();
        Trust { generation: 1, bundles, revoked: Arc::new(revoked), ..Trust::default() }
    }

    pub(super) fn given(&self) -> Vec<Given> {
        self.update().map(|update| update.svids.clone()).unwrap_or_default()
    }

    /// Says why nothing new is to be had.
    pub(super) fn look(&mut self) -> Result<(), ProviderError> {
        let lost = self.told().borrow().lost.clone();
        match lost {
            Some(cause) => Err(self.lost(cause)),
            None => Ok(()),
        }
    }

    pub(super) async fn stirs(&mut self) {
        if self.told().changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The SVID of one.
    pub(super) async fn find(
        &mut self,
        identity: &Identity,
    ) -> Result<(Issued, PrivateKeyDer<'static>), ProviderError> {
        // Another receiver: what comes meanwhile is still new to who looks.
        let mut told = self.told().clone();
        let known = told.wait_for(|told| told.update.is_some() || told.lost.is_some());
        let known = match tokio::time::timeout(ANSWER_TIME_MAX, known).await {
            Ok(Ok(known)) => known.clone(),
            Ok(Err(_)) | Err(_) => Told { lost: Some("it says nothing".into()), ..Told::default() },
        };
        let Some(update) = known.update else { return Err(self.lost(known.lost.unwrap_or_default())) };
        match update.svids.iter().find(|given| given.identity == *identity) {
            Some(given) => {
                self.missing.remove(&identity.spiffe_id());
                Ok((given.issued.clone(), given.key.clone_key()))
            }
            None => {
                let (socket, id) = (self.plan.socket.clone(), identity.spiffe_id());
                self.missing.insert(id.clone());
                Err(ProviderError::NotGiven { socket, id })
            }
        }
    }

    pub(super) fn status(&self) -> Value {
        let update = self.update();
        let given: Vec<String> =
            update.iter().flat_map(|update| &update.svids).map(|one| one.identity.spiffe_id()).collect();
        json!({
            "source": "workload-api",
            "trust_domain": self.plan.trust_domain,
            "socket": self.plan.socket,
            "trust_domains": update.as_ref().map(|update| update.bundles.keys().collect::<Vec<_>>()),
            "not_given": self.missing.iter().filter(|id| !given.contains(id)).collect::<Vec<_>>(),
            "not_used": update.as_ref().map(|update| &update.others),
            "failed": self.told.as_ref().and_then(|told| told.borrow().lost.clone()),
        })
    }

    fn lost(&self, cause: Arc<str>) -> ProviderError {
        ProviderError::Lost { socket: self.plan.socket.clone(), cause }
    }
}

/// Follows what the socket gives, and comes back to it, until nobody asks any more.
async fn follow(plan: ProviderPlan, telling: watch::Sender<Told>) {
    let mut pause = AGAIN_AFTER;
    loop {
        let followed = tokio::select! {
            lost = followed(&plan, &telling, &mut pause) => lost,
            () = telling.closed() => return,
        };
        telling.send_modify(|told| told.lost = Some(followed.into()));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(AGAIN_AFTER_MAX);
    }
}

/// One connection, until it breaks: why.
async fn followed(plan: &ProviderPlan, telling: &watch::Sender<Told>, pause: &mut Duration) -> String {
    let in_time = |what: &str| format!("{what} in {ANSWER_TIME_MAX:?}");
    let client = WorkloadApiClient::connect_to(&plan.socket);
    let client = match tokio::time::timeout(ANSWER_TIME_MAX, client).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return in_full(&error),
        Err(_) => return in_time("no connection"),
    };
    let mut contexts = match tokio::time::timeout(ANSWER_TIME_MAX, client.stream_x509_contexts()).await {
        Ok(Ok(contexts)) => contexts,
        Ok(Err(error)) => return in_full(&error),
        Err(_) => return in_time("no answer"),
    };
    let mut first = true;
    loop {
        // The first is due at once, the next ones when something changes.
        let next = match first {
            true => match tokio::time::timeout(ANSWER_TIME_MAX, contexts.next()).await {
                Ok(next) => next,
                Err(_) => return in_time("no SVID"),
            },
            false => contexts.next().await,
        };
        let context = match next {
            Some(Ok(context)) => context,
            Some(Err(error)) => return in_full(&error),
            None => return "it has ended the stream".to_owned(),
        };
        match read(&context, &plan.trust_domain, SystemTime::now()) {
            Ok(update) => {
                (first, *pause) = (false, AGAIN_AFTER);
                if telling.borrow().lost.is_some() {
                    tracing::info!(socket = plan.socket, "the Workload API gives SVIDs again");
                }
                for other in &update.others {
                    tracing::warn!(
                        id = other,
                        "the Workload API gives an SVID that is of no use to this agent"
                    );
                }
                telling.send_replace(Told { update: Some(Arc::new(update)), lost: None });
            }
            Err(problem) => return format!("what it gives is not believed: {problem}"),
        }
    }
}

/// An error with what caused it.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

/// What is given, if all of it holds together.
fn read(context: &X509Context, trust_domain: &str, now: SystemTime) -> Result<Update, String> {
    let mut update = Update::default();
    for (name, bundle) in context.bundle_set().iter() {
        let roots = bundle.authorities().iter().map(|root| CertificateDer::from(root.as_bytes().to_vec()));
        let bundle =
            Bundle::new(roots.collect()).map_err(|problem| format!("the bundle of `{name}`: {problem}"))?;
        update.bundles.insert(name.as_str().into(), Arc::new(bundle));
    }
    let trust = Trust { bundles: update.bundles.clone(), ..Trust::default() };
    for svid in context.svids() {
        let id = SpiffeId::parse(&svid.spiffe_id().to_string()).map_err(|problem| problem.to_string())?;
        let identity = id.identity().filter(|identity| identity.trust_domain() == trust_domain);
        let Some(identity) = identity else {
            update.others.push(id.to_string());
            continue;
        };
        let given =
            given(svid, identity, &trust, now).map_err(|problem| format!("the SVID of `{id}`: {problem}"))?;
        update.svids.push(given);
    }
    Ok(update)
}

/// One SVID: its key is its certificate's, and the bundle beside it proves it, so that what others are believed by is ours.
fn given(svid: &X509Svid, identity: Identity, trust: &Trust, now: SystemTime) -> Result<Given, String> {
    let chain: Vec<_> =
        svid.cert_chain().iter().map(|one| CertificateDer::from(one.as_bytes().to_vec())).collect();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec()));
    let signing = any_supported_type(&key).map_err(|problem| problem.to_string())?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|problem| format!("the key is not its certificate's: {problem}"))?;
    let chain = certified.cert;
    let peer = verify(&chain, trust, Role::Client, now).map_err(|problem| problem.to_string())?;
    let leaf = chain.first().ok_or("it is empty")?;
    let validity = validity(leaf).map_err(|problem| problem.to_string())?;
    Ok(Given { identity, issued: Issued { chain, validity, serial: peer.serial }, key })
}
