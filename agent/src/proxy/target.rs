//! Which server it is.

use toolgate_core::decision::Target;
use toolgate_core::http1::{Name, RequestHead};
use toolgate_core::policy::Ends;

use crate::app::Node;
use crate::config::Resources;
use crate::identify::{Origin, Source};
use crate::inspect::Name as TlsName;

/// The declared server that a connection goes to, and which ends of its calls are here. Loopback is the caller's own: in
/// another network namespace than the agent's, no Server is there. Other agents get to local servers alone.
pub(super) fn declared<'r>(resources: &'r Resources, origin: &Origin, node: &Node) -> Option<Target<'r>> {
    let captured = match &origin.source {
        Source::Process(connecting) => &connecting.captured,
        Source::Peer(remote) => {
            let server = resources.local_server(&remote.server)?;
            return Some(Target { server, ends: Ends::Server });
        }
    };
    let at_home = captured.process.netns_cookie == node.namespaces.home().cookie;
    let is_own = captured.original.ip().to_canonical().is_loopback();
    let server = if !at_home && is_own { None } else { resources.server_at(captured.original) };
    server.map(|server| server.captured())
}

/// The external server that a request names, wherever its connection goes to.
pub(super) fn named<'r>(
    resources: &'r Resources,
    head: &RequestHead<'_>,
    is_tls: bool,
) -> Option<Target<'r>> {
    let host = head.headers.only(Name::Host).ok()??;
    resources.external(host, head.path, is_tls).map(|server| server.captured())
}

/// The same of a request within TLS, by the name that this was read by.
pub(super) fn named_in_tls<'r>(
    resources: &'r Resources,
    spoken: &TlsName,
    origin: &Origin,
) -> Option<Target<'r>> {
    let Source::Process(connecting) = &origin.source else { return None };
    let port = connecting.captured.original.port();
    resources.externals_in_tls(&spoken.shown, port).next().map(|server| server.captured())
}
