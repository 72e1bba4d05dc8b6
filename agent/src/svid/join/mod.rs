//! A node of another's authority (`identity.source: join`): it joins by a token, renews by its own certificate, and fetches
//! SVIDs, bundle and revocations. An authority that is away stops nothing as long as what was fetched lives.

mod client;
mod error;
mod member;

pub use self::error::JoinError;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rcgen::KeyPair;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use toolgate_core::identity::Identity;
use toolgate_core::spiffe::is_trust_domain;

use self::client::Client;
use self::member::Member;
use super::{Bundle, JwtKey, Revoked, Trust};
use crate::ca::folder::{Folder, Kind, read};
use crate::ca::nodes::{csr, proven, read_chain};
use crate::ca::wire::{
    IssuedAnswer, JOIN, JWT, JoinRequest, JoinToken, JwtAnswer, JwtRequest, RENEW, RenewRequest, SVID,
    SvidRequest, TRUST, TrustAnswer,
};
use crate::ca::{CertifyError, Holder, Issued, Validity};

/// How often bundle and revocations are fetched: peers refuse what is revoked within twenty seconds.
const TRUST_EVERY: Duration = Duration::from_secs(10);
/// After a failure the next who asks is told the same at once.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Below the state directory.
const FOLDER: &str = "node";

/// How a node joins.
#[derive(Debug, Clone)]
pub struct JoinPlan {
    /// The agent's state directory.
    pub state_directory: PathBuf,
    /// What is configured; the authority's must be the same.
    pub trust_domain: String,
    /// Where the token is; needed once.
    pub token_file: Option<PathBuf>,
}

/// This node, whether it has joined yet or not.
pub struct Joined {
    plan: JoinPlan,
    folder: Folder,
    member: Option<Member>,
    client: Option<Client>,
    fetched: Option<Instant>,
    /// What verifies JWT-SVIDs, as it was fetched last.
    jwt_keys: Vec<JwtKey>,
    failed: Option<(Instant, String)>,
    /// The secret of a token that the authority does not take, and why: only another one is worth a try.
    refused: Option<(String, String)>,
}

impl Joined {
    /// Takes up what this node joined before, or will join.
    ///
    /// # Errors
    /// [`JoinError`]: its files are no good, and are left as they are.
    pub fn open(plan: JoinPlan, now: SystemTime) -> Result<Self, JoinError> {
        let folder = Folder::new(plan.state_directory.join(FOLDER));
        let member = Member::load(&folder, &plan.trust_domain, now)?;
        if member.is_none() && plan.token_file.is_none() {
            return Err(JoinError::NoToken);
        }
        Ok(Self {
            plan,
            folder,
            member,
            client: None,
            fetched: None,
            jwt_keys: Vec::new(),
            failed: None,
            refused: None,
        })
    }

    /// The trust domain.
    pub(super) fn trust_domain(&self) -> &str {
        &self.plan.trust_domain
    }

    /// Whom the authority said to believe.
    pub(super) fn trust(&self) -> Trust {
        let trust_domain: Box<str> = self.plan.trust_domain.as_str().into();
        let nobody = || Revoked { trust_domain: trust_domain.clone(), ..Revoked::default() };
        let (bundle, revoked) = match &self.member {
            Some(member) => (Arc::clone(&member.bundle), Arc::clone(&member.revoked)),
            None => (Arc::default(), Arc::new(nobody())),
        };
        let jwt_keys = BTreeMap::from([(trust_domain.clone(), self.jwt_keys.clone())]);
        Trust { generation: 1, bundles: BTreeMap::from([(trust_domain, bundle)]), jwt_keys, revoked }
    }

    /// Where its authority is, for messages.
    pub(super) fn authority(&self) -> String {
        self.member.as_ref().map(|member| member.authority.clone()).unwrap_or_default()
    }

    pub(super) fn status(&self) -> Value {
        json!({
            "source": "join",
            "trust_domain": self.plan.trust_domain,
            "folder": self.folder.path,
            "node": self.member.as_ref().map(|member| &member.node),
            "authority": self.member.as_ref().map(|member| &member.authority),
            "not_after": self.member.as_ref().map(|member| humantime::format_rfc3339_seconds(member.not_after).to_string()),
            "failed": self.failed.as_ref().map(|(_, why)| why),
        })
    }

    /// When its certificate is to be renewed, and ends.
    pub(super) fn own_life(&self) -> Option<(SystemTime, SystemTime)> {
        self.member.as_ref().map(|member| (member.renew_at, member.not_after))
    }

    /// Joins, renews and fetches what is due. True: it is believed otherwise now.
    pub(super) async fn look(&mut self, now: SystemTime) -> Result<bool, JoinError> {
        let has_joined = self.member.is_some();
        self.join(now).await?;
        if self.member.as_ref().is_some_and(|member| member.renew_at <= now) {
            self.renew(now).await?;
        }
        if self.fetched.is_some_and(|at| at.elapsed() < TRUST_EVERY) {
            return Ok(!has_joined);
        }
        self.fetch(now).await.map(|is_new| is_new || !has_joined)
    }

    /// Has an SVID issued for a key.
    pub(super) async fn issue(
        &mut self,
        identity: &Identity,
        holder: Holder,
        key: &KeyPair,
        now: SystemTime,
    ) -> Result<Issued, JoinError> {
        self.join(now).await?;
        let csr = csr(key).map_err(JoinError::certify)?;
        let wanted = SvidRequest { app_id: identity.to_string(), csr, holder };
        let IssuedAnswer { chain } = self.call(SVID, Some(&wanted)).await?;
        let issued = issued(&chain, &self.trust(), (&identity.spiffe_id(), holder), now);
        issued.map_err(|problem| self.nonsense(problem))
    }

    /// Has a JWT-SVID signed.
    pub(super) async fn jwt(
        &mut self,
        identity: &Identity,
        audience: Vec<String>,
        now: SystemTime,
    ) -> Result<String, JoinError> {
        self.join(now).await?;
        let wanted = JwtRequest { app_id: identity.to_string(), audience };
        let JwtAnswer { token } = self.call(JWT, Some(&wanted)).await?;
        if self.jwt_keys.is_empty() {
            // It may be the first one, whose key nobody knew yet.
            self.fetch(now).await?;
        }
        Ok(token)
    }

    async fn join(&mut self, now: SystemTime) -> Result<(), JoinError> {
        if self.member.is_some() {
            return Ok(());
        }
        let path = self.plan.token_file.clone().ok_or(JoinError::NoToken)?;
        let token = self.token(&path)?;
        let key = Member::key(&self.folder)?;
        let csr = csr(&key).map_err(JoinError::certify)?;
        self.client = Some(Client::pinned(&token)?);
        let wanted = JoinRequest { node: token.node.clone(), secret: token.secret.clone(), csr };
        let answered = self.call::<IssuedAnswer>(JOIN, Some(&wanted)).await;
        let answered = answered.inspect_err(|error| {
            if let JoinError::Refused { why, .. } = error {
                self.refused = Some((token.secret.clone(), why.clone()));
            }
        })?;
        let roots = self.client.as_ref().map(Client::roots).unwrap_or_default();
        let bundle = Bundle::new(roots).map_err(|problem| self.nonsense(problem.to_string()))?;
        let member = Member::new(&token, key, &answered.chain, bundle, now);
        let member = member.map_err(|problem| self.nonsense(problem))?;
        member.save(&self.folder)?;
        tracing::info!(node = %member.node, authority = %member.authority, "this node has joined");
        self.client = None;
        self.member = Some(member);
        self.fetch(now).await.map(drop)
    }

    fn token(&self, path: &Path) -> Result<JoinToken, JoinError> {
        let no_token =
            |problem: &str| JoinError::Token { path: path.to_owned(), problem: problem.to_owned() };
        let text = read(path, Kind::Secret).map_err(JoinError::File)?;
        let text = text.ok_or_else(|| no_token("there is no such file"))?;
        let token = JoinToken::parse(&text).filter(|token| is_trust_domain(&token.trust_domain));
        let token =
            token.ok_or_else(|| no_token("it is not what `toolgate ca token` printed, or cut off"))?;
        if token.trust_domain != self.plan.trust_domain {
            let (found, wanted) = (token.trust_domain, self.plan.trust_domain.clone());
            return Err(JoinError::TrustDomain { found, wanted });
        }
        if let Some((secret, why)) = &self.refused
            && *secret == token.secret
        {
            return Err(no_token(&format!("the authority does not take it: {why}")));
        }
        Ok(token)
    }

    async fn renew(&mut self, now: SystemTime) -> Result<(), JoinError> {
        let Some(member) = &self.member else { return Ok(()) };
        let wanted = RenewRequest { csr: csr(&member.key).map_err(JoinError::certify)? };
        let IssuedAnswer { chain } = self.call(RENEW, Some(&wanted)).await?;
        if let Some(member) = &mut self.member {
            let renewed = member.renewed(&chain, now);
            renewed
                .map_err(|problem| JoinError::Nonsense { authority: member.authority.clone(), problem })?;
            member.save(&self.folder)?;
        }
        // The next connection shows the new one.
        self.client = None;
        Ok(())
    }

    async fn fetch(&mut self, now: SystemTime) -> Result<bool, JoinError> {
        let TrustAnswer { roots, jwt_keys, revoked } = self.call::<TrustAnswer>(TRUST, None::<&()>).await?;
        self.fetched = Some(Instant::now());
        let bundle = roots.iter().map(|root| read_chain(root)).collect::<Result<Vec<_>, _>>();
        let bundle = bundle.map_err(|problem| self.nonsense(problem))?.concat();
        let bundle = Bundle::new(bundle).map_err(|problem| self.nonsense(problem.to_string()))?;
        let Some(member) = &mut self.member else { return Ok(false) };
        let nonsense = |problem| JoinError::Nonsense { authority: member.authority.clone(), problem };
        let trust_domain = self.plan.trust_domain.as_str();
        let trust =
            Trust { bundles: BTreeMap::from([(trust_domain.into(), Arc::new(bundle))]), ..Trust::default() };
        let list = proven(&revoked, &trust, trust_domain, now).map_err(nonsense)?;
        if list.number < member.revoked.number {
            let problem = "its list of revocations is older than the one that is known here: if it was restored from \
                           a backup, revoke again what was revoked since";
            return Err(nonsense(problem.to_owned()));
        }
        let bundle = trust.bundles.into_values().next().unwrap_or_default();
        let is_new = jwt_keys != self.jwt_keys;
        self.jwt_keys = jwt_keys;
        if bundle.roots == member.bundle.roots && list == *member.revoked {
            return Ok(is_new);
        }
        (member.bundle, member.revoked) = (bundle, Arc::new(list));
        member.save(&self.folder)?;
        Ok(true)
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, JoinError> {
        if let Some((at, why)) = &self.failed
            && at.elapsed() < AGAIN_AFTER
        {
            return Err(JoinError::Again { why: why.clone() });
        }
        let client = match (self.client.take(), &self.member) {
            (Some(client), _) => self.client.insert(client),
            (None, Some(member)) => self.client.insert(Client::member(member)?),
            (None, None) => return Err(JoinError::NoToken),
        };
        let answered = client.call(path, body).await;
        self.failed = match &answered {
            Err(error @ (JoinError::Away { .. } | JoinError::Nonsense { .. })) => {
                Some((Instant::now(), error.to_string()))
            }
            Ok(_) | Err(_) => None,
        };
        answered
    }

    fn nonsense(&self, problem: String) -> JoinError {
        JoinError::Nonsense { authority: self.authority(), problem }
    }
}

impl JoinError {
    fn certify(error: CertifyError) -> Self {
        Self::File(error.into())
    }
}

/// What an authority gave, proven to be what was asked for.
fn issued(
    chain: &str,
    trust: &Trust,
    (id, holder): (&str, Holder),
    now: SystemTime,
) -> Result<Issued, String> {
    let chain = read_chain(chain)?;
    let peer = super::verify(&chain, trust, super::Role::Client, now).map_err(|error| error.to_string())?;
    if peer.id.as_str() != id {
        return Err(format!("it issued `{}` for `{id}`", peer.id));
    }
    if peer.is_process == holder.is_agent() {
        return Err(format!("the SVID of `{id}` that it issued is not for {holder:?}"));
    }
    let leaf = chain.first().ok_or("it issued nothing")?;
    let validity: Validity = super::verify::validity(leaf).map_err(|error| error.to_string())?;
    Ok(Issued { chain, validity, serial: peer.serial })
}
