//! The next page of a list, asked for in the caller's place where it would be shown an empty one: the caller's own request
//! with another cursor, parsed and decided like that, within its entry.

use toolgate_core::decision::Target;

use super::Turn;
use crate::forward::{Bound, BoundBy, Leg, Upstream};
use crate::parse::{self, Client, Expected, Stream};
use crate::record::Entry;
use crate::respond::{self, Broken, Exchange, Fault, Next, Replied, Seen};

/// How the last page ended, and its connection, if one is left.
type Ended = (Result<Replied, Broken>, Option<Upstream>);

impl Turn<'_> {
    /// Goes on until a page has something for the caller, or is the last.
    pub(super) async fn further_pages<S: Stream>(
        &self,
        client: &mut Client<S>,
        (mut upstream, leg): (Upstream, &Leg),
        (mut before, expected): (Replied, &Expected),
        exchange: &Exchange<'_>,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Ended {
        while let Some(next) = before.next.take() {
            let bound = upstream.replica().map(|address| Bound { address, by: BoundBy::Session });
            if before.reusable {
                self.worker.pool.checkin(leg.clone(), upstream, exchange.limits);
            }
            upstream = match self.next_page(client, (&next, leg, bound), expected, target, entry).await {
                Ok(upstream) => upstream,
                Err(fault) => {
                    let has_begun = exchange.begun.get();
                    let seen = if has_begun { Seen::Events { unanswered: true } } else { Seen::Nothing };
                    return (Err(Broken { fault, bytes: before.bytes, seen }), None);
                }
            };
            match respond::stream(&mut upstream, client, exchange).await {
                Ok(replied) => before = Replied { bytes: before.bytes + replied.bytes, ..replied },
                Err(broken) => return (Err(broken), Some(upstream)),
            }
        }
        (Ok(before), Some(upstream))
    }

    async fn next_page<S: Stream>(
        &self,
        client: &mut Client<S>,
        (next, leg, bound): (&Next, &Leg, Option<Bound>),
        expected: &Expected,
        target: Target<'_>,
        entry: &mut Entry,
    ) -> Result<Upstream, Fault> {
        let body = expected.again.as_ref().map(|again| again.body(&next.cursor)).unwrap_or_default();
        let Some(request) = expected.again.as_ref().and_then(|again| again.request(&body)) else {
            return Err(Fault::Circle);
        };
        let asked = parse::asked(request, target.server, &self.worker.node.limits).map_err(|refused| {
            let parse::Refused { reason, detail, limit, .. } = refused;
            Fault::NextPage { reason, detail, limit }
        })?;
        let fault = |reason, detail, limit| Err(Fault::NextPage { reason, detail, limit });
        let named = self.named(target.server, &asked, entry);
        let (permitted, _) = match self.judged(&asked, &named, target, entry) {
            Ok(permitted) => permitted,
            Err(denied) => return fault(denied.reason, denied.detail.unwrap_or_default(), None),
        };
        match self.sent(permitted, target, (leg, bound), &mut client.watch(), entry).await {
            Ok(upstream) => Ok(upstream),
            Err(error) => fault(error.reason().0, error.to_string(), error.limit()),
        }
    }
}
