//! One look at a name, as this host's programs would look: `/etc/hosts`, then the name servers of `/etc/resolv.conf`, both
//! read anew.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::NameError;

/// How often a name server is asked, each time for an equal part of the time that there is.
const ATTEMPTS: u32 = 2;

/// What a name leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Each once, in the order of the answer.
    pub(super) addresses: Vec<IpAddr>,
    /// For how long, as the answer says; `None`: until `/etc/hosts` changes.
    pub(super) ttl: Option<Duration>,
}

/// Looks a name up.
///
/// # Errors
/// [`NameError`].
pub(super) async fn resolve(name: &str, time_max: Duration) -> Result<Answer, NameError> {
    let missing = |cause: &str| NameError::Missing { name: name.into(), cause: cause.into() };
    let unanswered = |cause: String| NameError::Unanswered { name: name.into(), cause: cause.into() };
    let mut dns_name = Name::from_utf8(name).map_err(|error| missing(&error.to_string()))?;
    let from_hosts = in_hosts(&dns_name);
    if !from_hosts.is_empty() {
        return Ok(Answer { addresses: from_hosts, ttl: None });
    }
    // A name with a dot is whole: none of the host's search domains comes behind it.
    dns_name.set_fqdn(name.contains('.'));
    let mut builder = TokioResolver::builder_tokio()
        .map_err(|error| unanswered(format!("`/etc/resolv.conf` cannot be read ({error})")))?;
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.attempts = ATTEMPTS as usize;
    options.timeout = time_max / (ATTEMPTS + 1);
    let resolver = builder.build().map_err(|error| unanswered(error.to_string()))?;
    let looked = tokio::time::timeout(time_max, resolver.lookup_ip(dns_name)).await;
    let answer = match looked {
        Ok(Ok(answer)) => answer,
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
            return Err(missing(&format!("{}", none.response_code)));
        }
        Ok(Err(error)) => return Err(unanswered(error.to_string())),
        Err(_) => return Err(NameError::Slow { name: name.into(), limit: time_max }),
    };
    let addresses = once(answer.iter());
    if addresses.is_empty() {
        return Err(missing("an empty answer"));
    }
    Ok(Answer { addresses, ttl: Some(answer.valid_until().saturating_duration_since(Instant::now())) })
}

fn in_hosts(name: &Name) -> Vec<IpAddr> {
    let hosts = Hosts::from_system().unwrap_or_default();
    let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
    let found = [RecordType::A, RecordType::AAAA].map(of);
    let records = found.iter().flatten().flat_map(|lookup| lookup.answers());
    once(records.filter_map(|record| record.data.ip_addr()))
}

fn once(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for address in addresses.map(|address| address.to_canonical()) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    all
}
