//! Who asks, and what it is given.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use tokio::sync::watch;
use tonic::Status;
use toolgate_core::identity::Identity;

use super::attest::Attested;
use super::messages::{X509BundlesResponse, X509Svid, X509SvidResponse};
use super::stream::{BUNDLES_AGAIN, Streamed};
use crate::app::Node;
use crate::ca::Holder;
use crate::svid::{JoinError, Operation, SvidError, Svids, Trust};

/// The process at the other end of a connection.
pub(super) struct Caller {
    who: Attested,
    node: Arc<Node>,
}

/// What it may have.
pub(super) struct Entitled {
    pub(super) identities: Vec<Identity>,
    /// Whether it is an agent (`agent_for`).
    pub(super) holder: Holder,
}

/// A line of the audit.
#[derive(Serialize)]
struct Event {
    event: &'static str,
    pid: i32,
    uid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Caller {
    pub(super) fn new(who: Attested, node: Arc<Node>) -> Self {
        Self { who, node }
    }

    pub(super) fn svids(&self) -> &Svids {
        &self.node.svids
    }

    pub(super) fn changed(&self) -> watch::Receiver<u64> {
        self.node.svids.changed()
    }

    /// Who it is now. It is not told why it is nobody.
    pub(super) async fn entitled(&self) -> Result<Entitled, Status> {
        let nobody = || Status::permission_denied("no identity issued");
        let process = self.who.process().map_err(|error| {
            tracing::info!(%error, pid = self.who.pid, "no identity is issued");
            nobody()
        })?;
        let resources = self.node.resources.load_full();
        let found = self.node.identify.local(&process, &resources, &self.node.agent.trust_domain).await;
        let identity = found.map_err(|error| {
            tracing::info!(%error, pid = self.who.pid, cgroup = process.cgroup, "no identity is issued");
            nobody()
        })?;
        // The process may have moved, or ended, while that was found out.
        if self.who.process().ok().as_ref() != Some(&process) {
            return Err(nobody());
        }
        Ok(match resources.agents.get(&identity) {
            Some(of) => Entitled { identities: of.clone(), holder: Holder::Agent },
            None => Entitled { identities: vec![identity], holder: Holder::Process },
        })
    }

    /// Whoever gets an identity, or asks for one in vain, is in the audit before it has it.
    pub(super) fn record(&self, refused: Option<&Status>) -> Result<(), Status> {
        let event = if refused.is_some() { "workload_api_refused" } else { "workload_api_answered" };
        let detail = refused.map(|status| status.message().to_owned());
        let event = Event { event, pid: self.who.pid, uid: self.who.uid, detail };
        let recorded = self.node.record.event(&event);
        recorded.map_err(|error| Status::unavailable(format!("it cannot be recorded: {error}")))
    }

    /// Whom this node believes; an authority that nobody has asked for anything yet is made now.
    pub(super) async fn trust(&self) -> Result<Arc<Trust>, Status> {
        let own = &self.node.agent.trust_domain;
        if self.node.svids.trust().bundle(own).is_none() {
            self.node.svids.operate(Operation::Status).await.map_err(|error| unavailable(&error))?;
        }
        Ok(Arc::clone(&self.node.svids.trust()))
    }
}

impl Streamed for X509SvidResponse {
    async fn now(caller: &Caller) -> Result<(Self, SystemTime), Status> {
        let Entitled { identities, holder } = caller.entitled().await?;
        let trust = caller.trust().await?;
        let own = &caller.node.agent.trust_domain;
        let bundle = trust.bundle(own).map(|bundle| joined(&bundle.roots)).unwrap_or_default();
        let mut svids = Vec::new();
        let mut again_at = SystemTime::now() + BUNDLES_AGAIN;
        for identity in &identities {
            let held = caller.node.svids.hold(identity, holder).await.map_err(|error| unavailable(&error))?;
            again_at = again_at.min(held.renew_at);
            svids.push(X509Svid {
                spiffe_id: identity.spiffe_id(),
                x509_svid: joined(&held.chain),
                x509_svid_key: secret(&held.key).to_vec(),
                bundle: bundle.clone(),
            });
        }
        let mut federated_bundles = bundles(&trust);
        federated_bundles.remove(&named(own));
        Ok((Self { svids, federated_bundles }, again_at))
    }
}

impl Streamed for X509BundlesResponse {
    async fn now(caller: &Caller) -> Result<(Self, SystemTime), Status> {
        caller.entitled().await?;
        let bundles = bundles(&*caller.trust().await?);
        Ok((Self { bundles }, SystemTime::now() + BUNDLES_AGAIN))
    }
}

fn secret<'k>(key: &'k PrivateKeyDer<'_>) -> &'k [u8] {
    key.secret_der()
}

/// As the Workload API names a trust domain.
pub(super) fn named(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

fn bundles(trust: &Trust) -> HashMap<String, Vec<u8>> {
    trust.bundles.iter().map(|(name, bundle)| (named(name), joined(&bundle.roots))).collect()
}

/// Certificates one after the other.
fn joined(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    certificates.iter().flat_map(|one| one.iter().copied()).collect()
}

/// An authority that says no is obeyed; one that is away is asked again.
pub(super) fn unavailable(error: &SvidError) -> Status {
    tracing::warn!(%error, "a process is not answered by the Workload API");
    let is_no = matches!(error, SvidError::Join(JoinError::Refused { .. }) | SvidError::Node(_));
    if is_no {
        Status::permission_denied("no identity issued")
    } else {
        Status::unavailable("no SVID can be had now: the agent's log says why")
    }
}
