//! What the authority does for other nodes: tokens, joins, their certificates, revocations. Everything is on disk before
//! anybody is answered.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateSigningRequestParams, KeyPair, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use toolgate_core::spiffe::SpiffeId;

use super::certify::{self, CertifyError, Holder, IssuedTo};
use super::folder::Kind;
use super::operate::{Level, fingerprint};
use super::registry::{self, FORMAT, Refusal, Registry, Unregistrable, time};
use super::state::Stage;
use super::wire::{
    AUTHORITY_PATH, IssuedAnswer, JoinRequest, JoinToken, JwtAnswer, JwtRequest, NODE_PATH, RevokedList,
    SIGNED_AS, Signed, SvidRequest, TrustAnswer,
};
use super::{Authority, CaError, Issued, json as text_of, pem};
use crate::svid::{Revoked, Serial, hex};

const FILE: &str = "registry.json";

/// Why a node is not answered as it wishes.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It may not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The authority cannot.
    #[error(transparent)]
    Authority(#[from] CaError),
}

/// What the authority shows of itself.
pub(crate) struct Own {
    /// Leaf first, and the root last: a token has the root's fingerprint.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) renew_at: SystemTime,
}

impl Authority {
    /// What is written of nodes; none: nobody has joined yet.
    pub(super) fn read_registry(&self) -> Result<Registry, CaError> {
        let Some(text) = self.folder.read(FILE, Kind::Secret)? else { return Ok(Registry::default()) };
        let path = self.folder.file(FILE);
        let registry: Registry = serde_json::from_str(&text)
            .map_err(|problem| CaError::Damaged { path: path.clone(), problem: problem.to_string() })?;
        if registry.format != FORMAT {
            return Err(CaError::Version { path, found: registry.format, expected: FORMAT });
        }
        Ok(registry)
    }

    /// Changes the registry under the lock; what is refused changes nothing.
    fn register<T, E: From<CaError>>(
        &mut self,
        with: impl FnOnce(&mut Registry) -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = self.folder.lock()?;
        let mut registry = self.read_registry()?;
        let done = with(&mut registry)?;
        if registry != self.registry {
            self.folder.write(FILE, Kind::Secret, &text_of(&registry))?;
            self.registry = registry;
        }
        Ok(done)
    }

    /// Makes a token for a node to join by.
    ///
    /// # Errors
    /// [`CaError`]: there is none.
    pub(crate) fn token(
        &mut self,
        (node, app_ids): (&str, &[String]),
        ttl: Duration,
        authority: String,
        now: SystemTime,
    ) -> Result<JoinToken, CaError> {
        let secret = hex(&certify::random::<16>()?);
        if !is_address(&authority) {
            return Err(Unregistrable::Address { address: authority }.into());
        }
        self.register(|registry| {
            let added = registry.add((node, app_ids), hash(&secret), ttl, now);
            added.map_err(CaError::from)
        })?;
        let root = self.root()?;
        let (trust_domain, node) = (self.plan.trust_domain.clone(), node.to_owned());
        Ok(JoinToken { trust_domain, node, secret, root: fingerprint(&root), authority })
    }

    /// The root that signs.
    fn root(&self) -> Result<CertificateDer<'static>, CaError> {
        let root = self.state.at(Level::Root, Stage::Active);
        let root = root.ok_or_else(|| self.damaged("no root is active".to_owned()))?;
        root.der().map_err(|problem| self.damaged(problem))
    }

    /// Registers a node by its token, once, and gives it its certificate.
    pub(crate) fn join(&mut self, wanted: &JoinRequest, now: SystemTime) -> Result<IssuedAnswer, NodeError> {
        let csr = read_csr(&wanted.csr)?;
        let key = hash(&hex(&csr.public_key.subject_public_key_info()));
        self.register(|registry| {
            registry.redeem((&wanted.node, &hash(&wanted.secret)), &key, now).map_err(NodeError::from)
        })?;
        self.node_certificate(&wanted.node, &csr, now)
    }

    /// A node's next certificate.
    pub(crate) fn renew(&self, node: &str, csr: &str, now: SystemTime) -> Result<IssuedAnswer, NodeError> {
        self.registry.node(node)?;
        self.node_certificate(node, &read_csr(csr)?, now)
    }

    fn node_certificate(
        &self,
        node: &str,
        csr: &CertificateSigningRequestParams,
        now: SystemTime,
    ) -> Result<IssuedAnswer, NodeError> {
        let id = self.own_name(&format!("{NODE_PATH}{node}"))?;
        // An authority that is away for that long is a matter for its operator.
        let life = self.plan.lives.issuing / 2;
        Ok(answer(&self.issue_for(&id, of(node, Holder::Agent), &csr.public_key, life, now)?))
    }

    /// An SVID of a workload on a node: of those alone that the node is registered for.
    pub(crate) fn node_svid(
        &self,
        node: &str,
        wanted: &SvidRequest,
        now: SystemTime,
    ) -> Result<IssuedAnswer, NodeError> {
        let malformed = |problem: String| Refusal::Malformed { problem };
        let identity = registry::identity(&self.plan.trust_domain, &wanted.app_id)
            .map_err(|problem| malformed(problem.to_string()))?;
        self.registry.permits(node, &identity)?;
        let csr = read_csr(&wanted.csr)?;
        Ok(answer(&self.issue(&SpiffeId::from(&identity), of(node, wanted.holder), &csr.public_key, now)?))
    }

    /// A JWT-SVID of one of them.
    pub(crate) fn node_jwt(
        &mut self,
        node: &str,
        wanted: &JwtRequest,
        now: SystemTime,
    ) -> Result<JwtAnswer, NodeError> {
        let malformed = |problem: String| Refusal::Malformed { problem };
        let identity = registry::identity(&self.plan.trust_domain, &wanted.app_id)
            .map_err(|problem| malformed(problem.to_string()))?;
        self.registry.permits(node, &identity)?;
        if wanted.audience.is_empty() {
            return Err(malformed("a JWT-SVID is for somebody (`audience`)".to_owned()).into());
        }
        Ok(JwtAnswer { token: self.jwt_svid(&SpiffeId::from(&identity), &wanted.audience, now)? })
    }

    /// The bundle, and the signed list of what was revoked.
    pub(crate) fn trust_answer(&mut self, node: &str, now: SystemTime) -> Result<TrustAnswer, NodeError> {
        self.registry.node(node)?;
        let list = RevokedList {
            trust_domain: self.plan.trust_domain.clone(),
            number: self.registry.revocations,
            serials: self.registry.serials.keys().cloned().collect(),
            nodes: self.registry.revoked_nodes().map(str::to_owned).collect(),
        };
        let list = text_of(&list);
        let own = self.own(now)?;
        let signature = own.key.sign(format!("{SIGNED_AS}{list}").as_bytes()).map_err(CertifyError::from);
        let signature = hex(&signature.map_err(CaError::from)?);
        let chain = own.chain.iter().take(own.chain.len() - 1).map(|one| pem("CERTIFICATE", one)).collect();
        let roots = self.bundle.roots.iter().map(|root| pem("CERTIFICATE", root)).collect();
        Ok(TrustAnswer { roots, jwt_keys: self.jwt_bundle(), revoked: Signed { list, signature, chain } })
    }

    /// What it shows of itself now.
    pub(crate) fn own(&mut self, now: SystemTime) -> Result<&Own, CaError> {
        let is_good = |own: &Own| now < own.renew_at && own.chain.get(1) == Some(&self.signer.certificate);
        let own = match self.own.take().filter(is_good) {
            Some(own) => own,
            None => {
                let key = certify::new_key()?;
                let issued = self.issue(&self.own_name(AUTHORITY_PATH)?, IssuedTo::default(), &key, now)?;
                let half = issued.validity.not_after.duration_since(now).unwrap_or_default() / 2;
                let chain = [issued.chain, vec![self.root()?]].concat();
                Own { chain, key, renew_at: now + half }
            }
        };
        Ok(self.own.insert(own))
    }

    fn own_name(&self, path: &str) -> Result<SpiffeId, CaError> {
        let name = SpiffeId::parse(&format!("spiffe://{}{path}", self.plan.trust_domain));
        name.map_err(|problem| self.damaged(problem.to_string()))
    }

    /// Revokes a node, or a certificate by its serial number.
    pub(crate) fn revoke(&mut self, what: &str, now: SystemTime) -> Result<(), CaError> {
        // No certificate lives longer than what signs it.
        let until = now + self.plan.lives.issuing + self.plan.lives.skew;
        self.register(|registry| registry.revoke(what, until, now).map_err(CaError::from))
    }

    /// What was revoked.
    pub(crate) fn revoked(&self) -> Revoked {
        Revoked {
            trust_domain: self.plan.trust_domain.as_str().into(),
            number: self.registry.revocations,
            serials: self.registry.serials.keys().filter_map(|serial| Serial::parse(serial)).collect(),
            ids: Default::default(),
            nodes: self.registry.revoked_nodes().map(Into::into).collect(),
        }
    }

    /// Who has joined, and who may.
    pub(crate) fn nodes(&self, now: SystemTime) -> Value {
        let nodes = self.registry.nodes.iter().map(|(name, node)| {
            json!({
                "node": name,
                "app_ids": node.app_ids,
                "joined_at": time(node.joined_at),
                "revoked_at": node.revoked_at.map(time),
            })
        });
        let now = super::seconds(now);
        let open = self.registry.tokens.iter().filter(|token| token.used.is_none() && now < token.until);
        let tokens = open
            .map(|token| json!({ "node": token.node, "app_ids": token.app_ids, "until": time(token.until) }));
        json!({
            "nodes": nodes.collect::<Vec<_>>(),
            "tokens": tokens.collect::<Vec<_>>(),
            "revoked_serials": self.registry.serials.keys().collect::<Vec<_>>(),
        })
    }

    /// Takes over what another agent wrote, as in a hand-over.
    pub(super) fn refresh(&mut self) -> Result<bool, CaError> {
        let registry = self.read_registry()?;
        let is_new = registry != self.registry;
        self.registry = registry;
        Ok(is_new)
    }
}

fn of(node: &str, holder: Holder) -> IssuedTo<'_> {
    IssuedTo { node: Some(node), holder }
}

/// `host:port`, and nothing that a token cannot hold.
fn is_address(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    text.chars().all(allowed) && port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn answer(issued: &Issued) -> IssuedAnswer {
    IssuedAnswer { chain: issued.chain.iter().map(|one| pem("CERTIFICATE", one)).collect() }
}

/// A key that is proven to be the asker's. What else the request says counts for nothing.
fn read_csr(text: &str) -> Result<CertificateSigningRequestParams, Refusal> {
    let malformed = |problem: String| Refusal::Malformed { problem };
    let csr =
        CertificateSigningRequestParams::from_pem(text).map_err(|error| malformed(error.to_string()))?;
    if *csr.public_key.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(malformed("the key is not of P-256".to_owned()));
    }
    Ok(csr)
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

impl From<Unregistrable> for CaError {
    fn from(problem: Unregistrable) -> Self {
        Self::Unregistrable(problem)
    }
}

/// The chain in a PEM text, leaf first.
pub(crate) fn read_chain(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    use rustls::pki_types::pem::PemObject as _;
    let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    chain.map_err(|problem| problem.to_string())
}

/// Proves a list that whoever holds it has from the authority.
pub(crate) fn proven(
    signed: &Signed,
    trust: &crate::svid::Trust,
    trust_domain: &str,
    now: SystemTime,
) -> Result<Revoked, String> {
    let chain = read_chain(&signed.chain)?;
    let peer =
        crate::svid::verify(&chain, trust, crate::svid::Role::Server, now).map_err(|e| e.to_string())?;
    let expected = format!("spiffe://{trust_domain}{AUTHORITY_PATH}");
    if peer.id.as_str() != expected {
        return Err(format!("it is signed by `{}`, not by the authority", peer.id));
    }
    let leaf = chain.first().ok_or("it has no certificate")?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|problem| problem.to_string())?;
    let signature = super::unhex(&signed.signature).ok_or("its signature cannot be read")?;
    let message = format!("{SIGNED_AS}{}", signed.list);
    let algorithm = webpki::aws_lc_rs::ECDSA_P256_SHA256;
    leaf.verify_signature(algorithm, message.as_bytes(), &signature)
        .map_err(|_| "its signature is not the authority's".to_owned())?;
    let list: RevokedList = serde_json::from_str(&signed.list).map_err(|problem| problem.to_string())?;
    if list.trust_domain != trust_domain {
        return Err(format!("it is of trust domain `{}`", list.trust_domain));
    }
    Ok(Revoked {
        trust_domain: trust_domain.into(),
        number: list.number,
        serials: list.serials.iter().filter_map(|serial| Serial::parse(serial)).collect(),
        ids: Default::default(),
        nodes: list.nodes.iter().map(|node| node.as_str().into()).collect(),
    })
}

/// The request of a key's owner.
pub(crate) fn csr(key: &KeyPair) -> Result<String, CertifyError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}
