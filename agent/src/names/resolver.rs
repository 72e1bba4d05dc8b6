//! One look at a name, as this host's programs would look: `/etc/hosts`, then the name servers of `/etc/resolv.conf`, both
//! read anew.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::{Found, NameError, Question};

/// How often a name server is asked, each time for an equal part of the time that there is.
const ATTEMPTS: u32 = 2;

/// Targets of a service that are looked up.
const TARGETS_MAX: usize = 64;

/// What a name leads to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Each once, in the order of the answer, of a service by priority.
    pub(super) found: Vec<Found>,
    /// For how long, as the answer says; `None`: until `/etc/hosts` changes.
    pub(super) ttl: Option<Duration>,
}

/// Looks a name up.
///
/// # Errors
/// [`NameError`].
pub(super) async fn resolve(question: &Question, time_max: Duration) -> Result<Answer, NameError> {
    let looked = async {
        match question {
            Question::Addresses(name) => Look::at(name, time_max)?.addresses().await,
            Question::Service(name) => Look::at(name, time_max)?.service(time_max).await,
        }
    };
    let slow = |_| NameError::Slow { name: question.name().into(), limit: time_max };
    tokio::time::timeout(time_max, looked).await.map_err(slow)?
}

/// A look at one name.
struct Look<'n> {
    name: &'n str,
    dns_name: Name,
    resolver: TokioResolver,
}

impl<'n> Look<'n> {
    fn at(name: &'n str, time_max: Duration) -> Result<Self, NameError> {
        let unanswered = |cause: String| NameError::Unanswered { name: name.into(), cause: cause.into() };
        let mut dns_name = Name::from_utf8(name).map_err(|error| missing(name, &error.to_string()))?;
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
        Ok(Self { name, dns_name, resolver })
    }

    async fn addresses(self) -> Result<Answer, NameError> {
        let found = |addresses: Vec<IpAddr>| {
            addresses.into_iter().map(|ip| Found { priority: 0, ip, port: None }).collect()
        };
        let from_hosts = in_hosts(&self.dns_name);
        if !from_hosts.is_empty() {
            return Ok(Answer { found: found(from_hosts), ttl: None });
        }
        let answer =
            self.resolver.lookup_ip(self.dns_name.clone()).await.map_err(|error| self.failed(&error))?;
        let addresses = once(answer.iter());
        if addresses.is_empty() {
            return Err(missing(self.name, "an empty answer"));
        }
        Ok(Answer { found: found(addresses), ttl: Some(left(answer.valid_until())) })
    }

    /// The addresses of all that the records name, for as long as the shortest of the answers counts.
    async fn service(self, time_max: Duration) -> Result<Answer, NameError> {
        let records =
            self.resolver.srv_lookup(self.dns_name.clone()).await.map_err(|error| self.failed(&error))?;
        let mut ttl = left(records.valid_until());
        let mut services: Vec<SRV> = records
            .answers()
            .iter()
            .filter_map(|record| if let RData::SRV(srv) = &record.data { Some(srv.clone()) } else { None })
            .collect();
        services.sort_by_key(|service| service.priority);
        services.truncate(TARGETS_MAX);
        let mut all: Vec<Found> = Vec::new();
        let mut failed = None;
        for service in services {
            let target = service.target.to_utf8();
            let target = target.trim_end_matches('.');
            // `.` says that there is no such service.
            if target.is_empty() {
                continue;
            }
            match Look::at(target, time_max)?.addresses().await {
                Ok(answer) => {
                    ttl = answer.ttl.map_or(ttl, |other| other.min(ttl));
                    let found = answer.found.into_iter().map(|found| Found {
                        priority: service.priority,
                        port: Some(service.port),
                        ..found
                    });
                    all.extend(found.filter(|found| found.port != Some(0)));
                }
                Err(error) => failed = Some(error),
            }
        }
        match (all.is_empty(), failed) {
            (false, _) => Ok(Answer { found: all, ttl: Some(ttl) }),
            (true, Some(error)) => Err(error),
            (true, None) => Err(missing(self.name, "no such service")),
        }
    }

    fn failed(&self, error: &NetError) -> NameError {
        if let NetError::Dns(DnsError::NoRecordsFound(none)) = &error {
            return missing(self.name, &none.response_code.to_string());
        }
        NameError::Unanswered { name: self.name.into(), cause: error.to_string().into() }
    }
}

fn missing(name: &str, cause: &str) -> NameError {
    NameError::Missing { name: name.into(), cause: cause.into() }
}

fn left(valid_until: Instant) -> Duration {
    valid_until.saturating_duration_since(Instant::now())
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
