//! Who a connection is of, from one request to the next.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use toolgate_core::identity::Identity;
use toolgate_core::workload::Unidentified;

use crate::app::Node;
use crate::config::Resources;
use crate::identify::Origin;
use crate::room::housed;

/// The resources as a connection knows them: whether there are others is one look at a pointer.
pub(super) type Latest<'n> = Cache<&'n ArcSwap<Resources>, Arc<Resources>>;

/// Who a connection is of, and the resources that say so.
pub(super) struct Identified {
    pub(super) resources: Arc<Resources>,
    pub(super) caller: Result<Identity, Unidentified>,
}

/// The same as `before` unless there are other resources now: nothing else can make another caller of a connection.
pub(super) async fn identified(
    before: Option<Identified>,
    latest: &mut Latest<'_>,
    origin: &Arc<Origin>,
    node: &Node,
) -> Identified {
    let resources = latest.load();
    match before {
        Some(before) if Arc::ptr_eq(&before.resources, resources) => before,
        Some(_) | None => {
            let resources = Arc::clone(resources);
            let domain = &node.agent.trust_domain;
            let caller = housed(|| node.identify.caller(origin, &resources, domain, &node.limits)).await;
            // Each request copies it: for the connection's thread alone.
            Identified { resources, caller: caller.map(|caller| caller.apart()) }
        }
    }
}
