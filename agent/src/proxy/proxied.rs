//! The path of what is sent to a proxy: decided by the name that the proxy is asked for.

use toolgate_core::decision;
use toolgate_core::denial::Shape;

use super::opening::{self, Opening, Passing, Way};
use super::{Flow, Turn, deny};
use crate::forward;
use crate::parse::{BodyAt, Client, Expected, HeadAt, Stream};
use crate::record::Entry;

impl Turn<'_> {
    /// A request as proxies get them, to no declared server. For a declared one it is refused, everything else is as
    /// undeclared as the proxy.
    pub(super) async fn proxied<S: Stream>(
        &self,
        client: &mut Client<S>,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        mut entry: Entry,
    ) -> Flow {
        let (head, whom) = match client.head_for_proxy(&self.worker.node.limits) {
            Ok(read) => read,
            Err(broken) => return self.broken(client, &broken, None, entry).await,
        };
        let head = head.going_on_if(!self.worker.is_leaving());
        let name = whom.to_string();
        if let Some(server) = self.resources.servers.iter().find(|one| one.is_named(&whom.host, whom.port)) {
            self.name_caller(&mut entry);
            entry.target(&server.identity);
            entry.method(if whom.by_tunnel { "connect" } else { "http" });
            let answer = deny(&decision::proxied(server), Shape::Connection, &mut entry);
            return self.answer(client, &answer, true).await; // its body is perhaps still to come
        }
        if whom.by_tunnel {
            self.tunnel(client, &head, (passing, to), name, entry).await
        } else {
            self.undeclared(client, &head, (passing, to), Some(&name), entry).await
        }
    }

    /// CONNECT. What is sent when the proxy has agreed is told apart like the beginning of any connection.
    async fn tunnel<S: Stream>(
        &self,
        client: &mut Client<S>,
        head: &HeadAt,
        (passing, to): (&mut Passing, forward::Undeclared<'_>),
        name: String,
        mut entry: Entry,
    ) -> Flow {
        self.name_caller(&mut entry);
        entry.method("connect");
        let where_to = format!("through a proxy to `{name}`");
        let way = match passing {
            Ok(way) => way,
            Err(denied) => {
                let answer = deny(denied, Shape::Connection, &mut entry);
                entry.noted(where_to);
                return self.answer(client, &answer, true).await;
            }
        };
        entry.permitted(&way.passage);
        entry.noted(where_to);
        let (upstream, to) = (way.upstream.take(), to.by(way.tunnel_to.as_deref()));
        let (limits, no_body) = (&self.worker.node.limits, Some(BodyAt::InPlace(0)));
        let sent = forward::pass(&way.passage, client, head, no_body, upstream, to, limits).await;
        let expected = Expected::passing(head);
        let (flow, upstream) = self.unread_reply(client, head, sent, &expected, &mut entry).await;
        drop(entry); // what goes through the tunnel has its own
        if flow != Flow::Upgraded {
            way.upstream = upstream;
            return flow;
        }
        let inside = Way { passage: way.passage.clone(), upstream, entry: None, tunnel_to: Some(name) };
        match self.told_apart(client, inside).await {
            Opening::Http(inside) => {
                *passing = inside;
                Flow::Continue
            }
            Opening::Relay(way) => {
                opening::relay(client, way).await;
                Flow::Close
            }
            Opening::Inspect(meant) => {
                self.then.set(Some(meant));
                Flow::Close
            }
            Opening::Ended => Flow::Close,
        }
    }
}
