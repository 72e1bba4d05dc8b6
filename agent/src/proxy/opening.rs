//! What a connection begins with: requests that can be decided one by one, or something that is decided once.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use toolgate_core::decision::{
    self, Decision, Denied, Handling, Host, Passage, Permitted, Server, Target, TlsRule, Unread,
};
use toolgate_core::denial::Reason;
use toolgate_core::http1::Guess;
use toolgate_core::tls::{ClientHello, Hello};

use super::identified::{Identified, Latest, identified};
use super::inspected::Meant;
use super::{Turn, declared, undeclared};
use crate::app::{Node, Worker};
use crate::capture::Captured;
use crate::config::Resources;
use crate::deadline::timeout;
use crate::forward::{self, ForwardError, Upstream};
use crate::identify::{Origin, Source};
use crate::inspect::Name;
use crate::limits::Limits;
use crate::names::Question;
use crate::parse::{Client, Stream};
use crate::record::Entry;

/// The way that traffic that is not MCP may take: to where the client wanted it, over a connection of this client's own.
pub(super) struct Way {
    pub(super) passage: Permitted<Passage>,
    pub(super) upstream: Option<Upstream>,
    /// One entry for all of that traffic; the connection's end closes it.
    pub(super) entry: Option<Entry>,
    /// The connection is a tunnel through a proxy to this name, and ends with it.
    pub(super) tunnel_to: Option<String>,
}

/// Decided once for a connection, from what is read at start alone.
pub(super) type Passing = Result<Way, Denied>;

/// What a connection turned out to be.
pub(super) enum Opening {
    Http(Passing),
    /// TLS that is to be read.
    Inspect(Box<Meant>),
    Relay(Way),
    Ended,
}

/// What becomes of bytes that are no HTTP on a way that is open.
enum Fate<'h> {
    Passes,
    Denied(Denied),
    /// They are for this server, wherever they go.
    External(&'h Server, &'h ClientHello),
    /// They are TLS, to be read by this name.
    Read(Name),
}

/// Looks at the first bytes: requests that can be decided one by one, or something else.
pub(super) async fn opening<S: Stream>(
    client: &mut Client<S>,
    origin: &Arc<Origin>,
    captured: &Captured,
    worker: &Worker,
) -> Opening {
    // What few connections come to has a box: the others need not have room for it.
    let node = &*worker.node;
    let Identified { resources, caller } =
        &identified(None, &mut Latest::new(&node.resources), origin, node).await;
    let (working, then) = (Cell::default(), Cell::default());
    let turn = Turn { worker, origin, resources, caller, working, spoken: None, then };
    let decision = match declared(resources, origin, node) {
        Some(target) => return turn.to_declared(client, target).await,
        None if node.is_invoked(captured.original) => Decision::Denied(
            Denied::because(Reason::Opaque).with_detail("what calls by App ID is plain HTTP"),
        ),
        None if leads_to_external(resources, captured, node) => {
            return Box::pin(turn.to_external(client, undeclared::beyond(captured, worker))).await;
        }
        // The guard lets the agent pass: what is not decided as for that server must not.
        None if node.namespaces.guards(captured.process.netns_cookie, captured.original) => {
            Decision::Denied(Denied::because(Reason::Undeclared))
        }
        None => decision::unrecognised(node.unrecognised),
    };
    match decision {
        Decision::Denied(denied) => match (client.guess(node.limits.silence_time_max).await, denied.reason) {
            (Some(Guess::Yes | Guess::Http2), _) => Opening::Http(Err(denied)),
            // It said nothing, to a server of which nothing is known.
            (None, reason) if reason != Reason::Unrecognised => Opening::Ended,
            (Some(Guess::No | Guess::Maybe), _) => {
                Box::pin(turn.denied_unread(client, undeclared::beyond(captured, worker), denied)).await
            }
            (None, _) => turn.ended(&denied),
        },
        Decision::Permitted(passage) => {
            Box::pin(turn.on_the_way(client, passage, undeclared::beyond(captured, worker))).await
        }
    }
}

/// Whether an external server is, or was lately, at the address that a client connects to. Others may be there too.
fn leads_to_external(resources: &Resources, captured: &Captured, node: &Node) -> bool {
    let (ip, port) = (captured.original.ip().to_canonical(), captured.original.port());
    resources.externals().filter(|external| external.client_ports().any(|own| own == port)).any(|external| {
        match &external.host {
            Host::Address(address) => *address == ip,
            Host::Name(name) => {
                let known = node.names.known(&Question::Addresses(name.clone()));
                known.is_some_and(|known| known.lately.iter().any(|(found, _)| found.ip == ip))
            }
        }
    })
}

/// Proves to who connected that it is captured. It is no message, so there is no entry.
pub(super) async fn canary<S: Stream>(mut stream: S, limits: &Limits) {
    let answered = async {
        stream.write_all(b"toolgate\n").await?;
        stream.shutdown().await
    };
    // Who did not wait for the answer did not want it.
    let _ = timeout(limits.client_write_max, answered).await;
}

async fn speaks_http<S: Stream>(client: &mut Client<S>, limits: &Limits) -> bool {
    client.guess(limits.silence_time_max).await == Some(Guess::Yes)
}

/// Traffic that is no HTTP, passed both ways until both sides end.
pub(super) async fn relay<S: Stream>(client: &mut Client<S>, way: Way) {
    let Way { passage, upstream: Some(mut upstream), entry: Some(mut entry), .. } = way else { return };
    let (sent, received) = forward::relay(&passage, client, &mut upstream).await;
    entry.relayed(sent, received);
}

impl Turn<'_> {
    /// The first bytes to a declared server.
    async fn to_declared<S: Stream>(&self, client: &mut Client<S>, target: Target<'_>) -> Opening {
        let node = &*self.worker.node;
        let hello = match client.guess(node.limits.silence_time_max).await {
            // Without the server, should it be declared no more, there is no way for this connection.
            Some(Guess::Yes | Guess::Http2) => return Opening::Http(Err(Denied::because(Reason::Opaque))),
            None => return Opening::Ended,
            Some(Guess::No | Guess::Maybe) => client.hello(node.limits.head_time_max).await,
        };
        let what = match self.handled(&hello) {
            Handling::Denied(denied) => return self.ended_at(target, &denied),
            Handling::Inspect(hello) => {
                return match decision::inspected(target, hello) {
                    Ok(()) => self.to_be_read(hello, self.address(), Err(Denied::because(Reason::Opaque))),
                    Err(denied) => self.ended_at(target, &denied),
                };
            }
            Handling::Opaque => match &hello {
                Hello::Client(hello) => Unread::Tls(hello),
                Hello::No | Hello::Unclear | Hello::Maybe => Unread::Other,
            },
        };
        Box::pin(self.opaque(target, what)).await
    }

    /// What becomes of TLS before its target has a say.
    fn handled<'h>(&self, hello: &'h Hello) -> Handling<'h> {
        let node = &*self.worker.node;
        let opts_in = self.caller.as_ref().is_ok_and(|caller| self.resources.inspects(caller));
        let is_excluded = match (hello, &node.inspection) {
            (Hello::Client(hello), Some(inspection)) => {
                inspection.excludes(hello.server_name.as_deref(), self.address().ip())
            }
            (Hello::Client(_) | Hello::No | Hello::Unclear | Hello::Maybe, _) => false,
        };
        decision::tls(node.agent.capture.tls, opts_in, is_excluded, hello)
    }

    /// What is no HTTP and may not pass: of TLS that is to be read what is within decides.
    async fn denied_unread<S: Stream>(
        &self,
        client: &mut Client<S>,
        to: forward::Undeclared<'_>,
        denied: Denied,
    ) -> Opening {
        let node = &*self.worker.node;
        if node.agent.capture.tls == TlsRule::Opaque {
            return self.ended(&denied);
        }
        match self.handled(&client.hello(node.limits.head_time_max).await) {
            Handling::Denied(of_tls) => self.ended(&of_tls),
            Handling::Inspect(hello) => self.to_be_read(hello, to.address, Err(denied)),
            Handling::Opaque => self.ended(&denied),
        }
    }

    /// What cannot be read, to a declared server.
    async fn opaque(&self, target: Target<'_>, what: Unread<'_>) -> Opening {
        let (node, policies) = (&*self.worker.node, &self.resources.policies);
        let passage = match decision::opaque(self.caller.as_ref(), target, what, policies, node.mode) {
            Decision::Denied(denied) => return self.ended_at(target, &denied),
            Decision::Permitted(passage) => passage,
        };
        let dialled =
            forward::dial_declared(&passage, target.server, &self.worker.ways(), &node.limits).await;
        self.relayed(passage, Some(target), dialled, |entry| {
            entry.method("opaque");
            entry.opened();
        })
    }

    /// The first bytes to an address of an external server: whom they are for is said by them alone. Nobody is dialled
    /// before.
    async fn to_external<S: Stream>(&self, client: &mut Client<S>, to: forward::Undeclared<'_>) -> Opening {
        let node = &*self.worker.node;
        let beyond = decision::unrecognised(node.unrecognised);
        match client.guess(node.limits.silence_time_max).await {
            None => return Opening::Ended,
            Some(Guess::Yes) => {
                return Opening::Http(match beyond {
                    Decision::Denied(denied) => Err(denied),
                    Decision::Permitted(passage) => {
                        Ok(Way { passage, upstream: None, entry: None, tunnel_to: None })
                    }
                });
            }
            Some(Guess::Http2 | Guess::No | Guess::Maybe) => {}
        }
        let hello = client.hello(node.limits.head_time_max).await;
        match (self.handled(&hello), &hello) {
            (Handling::Denied(denied), _) => return self.ended(&denied),
            (Handling::Inspect(hello), _) => {
                let passing = match (self.external_in_tls(hello, to.address.port()), beyond) {
                    (Some(_), _) => Err(Denied::because(Reason::Opaque)),
                    (None, Decision::Denied(denied)) => Err(denied),
                    (None, Decision::Permitted(passage)) => {
                        Ok(Way { passage, upstream: None, entry: None, tunnel_to: None })
                    }
                };
                return self.to_be_read(hello, to.address, passing);
            }
            (Handling::Opaque, Hello::Client(hello)) => {
                if hello.server_name.is_none() || hello.may_hide_name {
                    return self.ended(&decision::unnamed());
                }
                if let Some(server) = self.external_in_tls(hello, to.address.port()) {
                    return self.opaque(server.captured(), Unread::Tls(hello)).await;
                }
            }
            (Handling::Opaque, Hello::Unclear | Hello::Maybe) => return self.ended(&decision::unnamed()),
            (Handling::Opaque, Hello::No) => {}
        }
        match beyond {
            Decision::Denied(denied) => self.ended(&denied),
            Decision::Permitted(passage) => self.on_the_way(client, passage, to).await,
        }
    }

    /// The external server that TLS names, wherever its client found it.
    fn external_in_tls(&self, hello: &ClientHello, port: u16) -> Option<&Server> {
        let name = hello.server_name.as_deref()?;
        self.resources.externals_in_tls(name, port).next().map(Arc::as_ref)
    }

    /// Dials where a permitted passage leads, and sees who speaks first: only a client that does can speak HTTP.
    async fn on_the_way<S: Stream>(
        &self,
        client: &mut Client<S>,
        passage: Permitted<Passage>,
        to: forward::Undeclared<'_>,
    ) -> Opening {
        let limits = &self.worker.node.limits;
        match forward::dial(&passage, to, limits).await {
            Ok(upstream) => {
                let way = Way { passage, upstream: Some(upstream), entry: None, tunnel_to: None };
                self.told_apart(client, way).await
            }
            // A request may name a server that is elsewhere, and is told so where it does not.
            Err(_) if self.resources.has_externals() && speaks_http(client, limits).await => {
                Opening::Http(Ok(Way { passage, upstream: None, entry: None, tunnel_to: None }))
            }
            failed @ Err(_) => self.relayed(passage, None, failed, |_entry| {}),
        }
    }

    /// What goes a way that is open: requests, or bytes that nobody reads.
    pub(super) async fn told_apart<S: Stream>(&self, client: &mut Client<S>, mut way: Way) -> Opening {
        let node = &*self.worker.node;
        let Some(mut upstream) = way.upstream.take() else { return Opening::Ended };
        let passage = match forward::first_to_speak(&way.passage, client, &mut upstream, &node.limits).await {
            None => return Opening::Ended,
            Some(Guess::Yes) => {
                way.upstream = Some(upstream);
                return Opening::Http(Ok(way));
            }
            Some(Guess::Http2) => {
                match decision::unread_http2(self.caller.as_ref(), node.undeclared, node.mode) {
                    Decision::Denied(denied) => return self.ended(&denied),
                    Decision::Permitted(passage) => passage,
                }
            }
            Some(Guess::No | Guess::Maybe) => {
                // A server that has spoken first speaks no TLS.
                let may_be_tls = upstream.buffer.is_empty() && self.looks_into_tls();
                let hello =
                    if may_be_tls { client.hello(node.limits.head_time_max).await } else { Hello::No };
                match self.undeclared_tls(&hello, way.tunnel_to.as_deref()) {
                    Fate::Passes => way.passage,
                    Fate::Denied(denied) => return self.ended(&denied),
                    Fate::External(server, hello) => {
                        return self.opaque(server.captured(), Unread::Tls(hello)).await;
                    }
                    Fate::Read(name) => {
                        way.upstream = Some(upstream);
                        return Opening::Inspect(Box::new(Meant { name, passing: Ok(way) }));
                    }
                }
            }
        };
        self.relayed(passage, None, Ok(upstream), |entry| {
            if let Some(name) = way.tunnel_to {
                entry.noted(format!("through a proxy to `{name}`"));
            }
        })
    }

    /// Whether what TLS says at first can count for what goes to no declared address.
    fn looks_into_tls(&self) -> bool {
        self.worker.node.agent.capture.tls != TlsRule::Opaque || self.resources.has_externals()
    }

    /// What becomes of TLS, if it is that, on a way that is open; `tunnel_to`: through a proxy.
    fn undeclared_tls<'h>(&'h self, hello: &'h Hello, tunnel_to: Option<&str>) -> Fate<'h> {
        let address = self.address();
        let (host, port) = match tunnel_to.and_then(|to| to.rsplit_once(':')) {
            Some((host, port)) => (Some(host.trim_matches(['[', ']'])), port.parse().unwrap_or_default()),
            None => (None, address.port()),
        };
        let named = match hello {
            Hello::Client(hello) => self.external_in_tls(hello, port).map(|server| (server, hello)),
            Hello::No | Hello::Unclear | Hello::Maybe => None,
        };
        match (self.handled(hello), named) {
            (Handling::Denied(denied), _) => Fate::Denied(denied),
            (Handling::Inspect(_), _) if self.spoken.is_some() => {
                Fate::Denied(Denied::because(Reason::Opaque).with_detail("TLS within TLS is not read here"))
            }
            (Handling::Inspect(_) | Handling::Opaque, Some((server, _))) if tunnel_to.is_some() => {
                Fate::Denied(decision::proxied(server))
            }
            (Handling::Inspect(hello), _) => {
                match Name::of(hello.server_name.as_deref().or(host), address.ip()) {
                    Some(name) => Fate::Read(name),
                    None => Fate::Denied(decision::nameless()),
                }
            }
            (Handling::Opaque, Some((server, hello))) => Fate::External(server, hello),
            (Handling::Opaque, None) => Fate::Passes,
        }
    }

    /// Where the client has connected to.
    fn address(&self) -> SocketAddr {
        match &self.origin.source {
            Source::Process(connecting) => connecting.captured.original,
            Source::Peer(remote) => remote.address,
        }
    }

    /// A permitted way for bytes that nobody reads, with the one entry of all of them.
    fn relayed(
        &self,
        passage: Permitted<Passage>,
        target: Option<Target<'_>>,
        dialled: Result<Upstream, ForwardError>,
        say: impl FnOnce(&mut Entry),
    ) -> Opening {
        let entry = self.record_connection(|entry| {
            if let Some(target) = target {
                entry.target(&target.server.identity);
            }
            entry.permitted(&passage);
            match &dialled {
                Ok(_) => say(entry),
                Err(error) => entry.failed(error.reason().0, 0, error.to_string()),
            }
        });
        match (dialled, entry) {
            (Ok(upstream), entry @ Some(_)) => {
                Opening::Relay(Way { passage, upstream: Some(upstream), entry, tunnel_to: None })
            }
            (Ok(_) | Err(_), _) => Opening::Ended,
        }
    }

    /// What does not go on, recorded.
    pub(super) fn ended(&self, denied: &Denied) -> Opening {
        self.record_connection(|entry| entry.denied(denied, 0));
        Opening::Ended
    }

    /// The same of what is for a declared server.
    fn ended_at(&self, target: Target<'_>, denied: &Denied) -> Opening {
        self.record_connection(|entry| {
            entry.target(&target.server.identity);
            entry.denied(denied, 0);
        });
        Opening::Ended
    }
}
