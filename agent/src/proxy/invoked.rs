//! The path of what is addressed by App ID, as to a Dapr sidecar: each request names its server.

use std::sync::Arc;

use toolgate_core::decision::{Denied, Server, Target, is_named_by};
use toolgate_core::denial::{Answer, Reason, Shape};
use toolgate_core::http1::{App, Authority, Framing, Name, RequestHead};
use toolgate_core::identity::Identity;

use super::refused::deny;
use super::{Flow, Turn};
use crate::identify::Source;
use crate::parse::{BodyAt, Client, HeadAt, Stream};
use crate::record::Entry;

/// The namespace of an App ID that stands alone where its caller has none.
const NAMESPACE: &str = "default";

/// What a sidecar is asked about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Whether it is ready; and whether it is asked of another App ID than the caller's.
    Health { is_outbound: bool, is_other: bool },
    /// Whose it is.
    Metadata,
}

impl Turn<'_> {
    /// A request by App ID: to the server that it names, or about the agent itself.
    pub(super) async fn invoked<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        mut entry: Entry,
    ) -> Flow {
        self.name_caller(&mut entry);
        let (may, question) = match client.kept_head() {
            Some(kept) => (self.is_host_own(&kept), self.question(&kept)),
            None => return Flow::Close,
        };
        if let Err(denied) = may {
            return self.misaddressed(client, &denied, 403, entry).await;
        }
        if let Some(question) = question {
            return self.about_itself(client, head, question, entry).await;
        }
        let app = match client.invoked() {
            Ok(Some(app)) => app,
            Ok(None) => {
                return self.misaddressed(client, &Denied::because(Reason::NoAppId), 404, entry).await;
            }
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        match self.called(&app) {
            Ok(target) => self.declared(client, head, target, entry).await,
            Err((detail, status)) => {
                let denied = Denied::because(Reason::Undeclared).with_detail(detail);
                self.misaddressed(client, &denied, status, entry).await
            }
        }
    }

    /// Refuses a request of which no more is known; its body is perhaps still to come.
    async fn misaddressed<S: Stream>(
        &self,
        client: &mut Client<S>,
        denied: &Denied,
        status: u16,
        mut entry: Entry,
    ) -> Flow {
        entry.method("invoke");
        let answer = deny(denied, Shape::Invocation { status }, &mut entry);
        self.answer(client, &answer, true).await
    }

    /// Whether the Host is the sidecar's: a web page that had its own name resolve to this address is told apart by it.
    fn is_host_own(&self, head: &RequestHead<'_>) -> Result<(), Denied> {
        let Source::Process(connecting) = &self.origin.source else { return Ok(()) };
        let host = head.headers.only(Name::Host).ok().flatten().unwrap_or_default();
        if is_named_by(connecting.captured.original, host) {
            return Ok(());
        }
        let detail = format!("host `{host}` is not where calls by App ID come (listen.invoke)");
        Err(Denied::because(Reason::HostMismatch).with_detail(detail))
    }

    /// The server that a text names.
    fn called(&self, app: &str) -> Result<Target<'_>, (String, u16)> {
        let (app_id, namespace) = match App::of(app) {
            Some(App::Id { app_id, namespace }) => (app_id, namespace),
            Some(App::Url { is_https, authority }) => return self.at_url(app, is_https, &authority),
            None => return Err((format!("`{app}` is neither an App ID nor a URL"), 404)),
        };
        let own = self.caller.as_ref().map_or(NAMESPACE, Identity::namespace);
        let domain = &self.worker.node.agent.trust_domain;
        let named = Identity::new(domain, namespace.unwrap_or(own), app_id).ok();
        let server = named.and_then(|named| self.resources.servers.iter().find(|one| one.identity == named));
        let none = || (format!("no Server has the App ID `{app}`"), 404);
        server.map(|server| server.captured()).ok_or_else(none)
    }

    /// The external server of a URL. To others a caller that may go there can go by itself.
    fn at_url(
        &self,
        app: &str,
        is_https: bool,
        authority: &Authority<'_>,
    ) -> Result<Target<'_>, (String, u16)> {
        let is_at = |one: &&Arc<Server>| {
            one.external().is_some_and(|external| {
                external.tls.is_some() == is_https
                    && external.port == authority.port
                    && external.has_name(authority.host)
            })
        };
        let mut all = self.resources.servers.iter().filter(is_at);
        match (all.next(), all.next()) {
            (Some(server), None) => Ok(server.captured()),
            (Some(_), Some(_)) => {
                Err((format!("more than one Server has the URL `{app}`: call one by its App ID"), 403))
            }
            (None, _) => Err((format!("no external Server has the URL `{app}`"), 403)),
        }
    }

    /// What a sidecar is asked about itself, by paths that come before any address.
    fn question(&self, head: &RequestHead<'_>) -> Option<Question> {
        let pairs = head.query.into_iter().flat_map(|query| query.split('&'));
        let mut wanted = pairs.filter_map(|pair| pair.strip_prefix("appid="));
        let own = self.caller.as_ref().ok().map(Identity::app_id);
        match (head.method, head.path) {
            ("GET", "/v1.0/healthz") => {
                Some(Question::Health { is_outbound: false, is_other: wanted.any(|one| Some(one) != own) })
            }
            ("GET", "/v1.0/healthz/outbound") => {
                Some(Question::Health { is_outbound: true, is_other: false })
            }
            ("GET", "/v1.0/metadata") => Some(Question::Metadata),
            _ => None,
        }
    }

    /// Answers such a question. It is no call, so it leaves no line.
    async fn about_itself<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        question: Question,
        entry: Entry,
    ) -> Flow {
        let answer = match (question, self.caller) {
            (Question::Health { is_other: true, .. }, _) => {
                Answer::not_ready("ERR_HEALTH_APPID_NOT_MATCH", "toolgate: the caller has another App ID")
            }
            (Question::Health { is_outbound, .. }, _) => match (self.worker.node.unready(), is_outbound) {
                (None, _) => Answer::said(None),
                (Some(why), true) => Answer::not_ready("ERR_OUTBOUND_HEALTH_NOT_READY", &why),
                (Some(why), false) => Answer::not_ready("ERR_HEALTH_NOT_READY", &why),
            },
            (Question::Metadata, Ok(caller)) => Answer::said(Some(metadata(caller))),
            (Question::Metadata, Err(unidentified)) => {
                return self.misaddressed(client, &unidentified.into(), 403, entry).await;
            }
        };
        entry.forget();
        client.done(head, &BodyAt::InPlace(0));
        self.answer(client, &answer, !head.keep_alive || head.framing != Framing::None).await
    }
}

/// What of Dapr's metadata there is here.
fn metadata(caller: &Identity) -> String {
    let version = concat!("toolgate ", env!("CARGO_PKG_VERSION"));
    let extended = serde_json::json!({ "namespace": caller.namespace() });
    let said = serde_json::json!({
        "id": caller.app_id(), "runtimeVersion": version, "enabledFeatures": [], "components": [],
        "extended": extended,
    });
    said.to_string()
}
