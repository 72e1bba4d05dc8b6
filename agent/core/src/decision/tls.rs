//! Whether the TLS of a captured process is read, passed on or refused, before its target has a say.

use std::net::IpAddr;

use super::{Denied, Place, Target};
use crate::denial::Reason;
use crate::tls::{ClientHello, Hello};

/// What becomes of TLS on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsRule {
    /// Nobody reads it here: what it leads to decides.
    Opaque,
    /// That of Workloads which say so is read; all other is as with `Opaque`.
    Inspect,
    /// There is none.
    Deny,
}

/// What becomes of one connection's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handling<'h> {
    /// What it leads to decides, unread.
    Opaque,
    /// It ends here, and what is within is read.
    Inspect(&'h ClientHello),
    /// It does not go on.
    Denied(Denied),
}

/// A host whose TLS is never read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Excluded {
    /// It, and all below it; in lower case.
    Name(String),
    /// An address, of clients that name none.
    Address(IpAddr),
}

impl Excluded {
    /// Whether it is whom a client means: by name, or where it names none by address.
    #[must_use]
    pub fn covers(&self, server_name: Option<&str>, address: IpAddr) -> bool {
        match (self, server_name) {
            (Self::Name(own), Some(name)) => {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                name.strip_suffix(own.as_str()).is_some_and(|left| left.is_empty() || left.ends_with('.'))
            }
            (Self::Address(own), Some(name)) => name.parse() == Ok(*own),
            (Self::Address(own), None) => *own == address.to_canonical(),
            (Self::Name(_), None) => false,
        }
    }
}

/// Decides what becomes of TLS. `opts_in`: the caller's Workload has its TLS read; `is_excluded`: not that of this host.
#[must_use]
pub fn tls(rule: TlsRule, opts_in: bool, is_excluded: bool, hello: &Hello) -> Handling<'_> {
    let denied = |reason, why: &str| Handling::Denied(Denied::because(reason).with_detail(why));
    match (rule, hello) {
        (_, Hello::No) => Handling::Opaque,
        (TlsRule::Deny, Hello::Client(_) | Hello::Unclear | Hello::Maybe) => {
            denied(Reason::TlsDenied, "TLS of captured processes is denied (capture.tls: deny)")
        }
        (TlsRule::Inspect, hello) if opts_in && !is_excluded => match hello {
            Hello::Client(client) if client.offers_http1 => Handling::Inspect(client),
            Hello::Client(_) => denied(
                Reason::Opaque,
                "it offers other protocols than HTTP/1.1 within TLS, which are not read here (ALPN): exclude the host \
                 (capture.tls_exclude)",
            ),
            Hello::Unclear | Hello::Maybe | Hello::No => {
                denied(Reason::Opaque, "its TLS is to be read, and how it begins cannot be")
            }
        },
        (TlsRule::Opaque | TlsRule::Inspect, Hello::Client(_) | Hello::Unclear | Hello::Maybe) => {
            Handling::Opaque
        }
    }
}

/// Whether TLS to a declared server may be read: it must name the server, where it names any.
///
/// # Errors
/// [`Denied`]
pub fn inspected(target: Target<'_>, hello: &ClientHello) -> Result<(), Denied> {
    let server = target.server;
    let refused = |reason, why: &str| {
        Err(Denied::because(reason).with_detail(format!("`{}` is declared: {why}", server.identity)))
    };
    if matches!(server.place, Place::Peer { .. }) {
        return refused(Reason::Opaque, "TLS of a client does not go on to another agent");
    }
    match &hello.server_name {
        Some(name) if !server.goes_by(name) => {
            refused(Reason::HostMismatch, &format!("TLS to `{name}`, which is none of its `hosts`"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Decides on TLS that is to be read, with a name that nobody could have a certificate for.
#[must_use]
pub fn nameless() -> Denied {
    Denied::because(Reason::Opaque).with_detail("the name in its TLS is none that a certificate could have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_excluded_is_a_host_and_all_below_it() {
        let at: IpAddr = "::ffff:10.0.0.5".parse().unwrap();
        let table = [
            ("bank.example", Some("bank.example"), true),
            ("bank.example", Some("BANK.example."), true),
            ("bank.example", Some("api.bank.example"), true),
            ("bank.example", Some("notbank.example"), false),
            ("bank.example", Some("bank.example.org"), false),
            ("bank.example", None, false),
            ("10.0.0.5", None, true),
            ("10.0.0.5", Some("10.0.0.5"), true),
            ("10.0.0.5", Some("bank.example"), false),
            ("10.0.0.6", None, false),
        ];
        for (own, name, expected) in table {
            let own = own.parse().map_or_else(|_| Excluded::Name(own.to_owned()), Excluded::Address);
            assert_eq!(own.covers(name, at), expected, "{own:?} {name:?}");
        }
    }

    #[test]
    fn it_is_read_of_who_opts_in_alone() {
        let client = |offers_http1| {
            Hello::Client(ClientHello { server_name: None, may_hide_name: false, offers_http1 })
        };
        let (http, other) = (client(true), client(false));
        let (opaque, inspect, deny) = (TlsRule::Opaque, TlsRule::Inspect, TlsRule::Deny);
        let table = [
            (opaque, true, false, &http, "opaque"),
            (opaque, false, false, &Hello::Unclear, "opaque"),
            (inspect, true, false, &http, "inspect"),
            (inspect, true, true, &http, "opaque"),
            (inspect, true, true, &other, "opaque"),
            (inspect, true, false, &other, "denied"),
            (inspect, true, false, &Hello::Unclear, "denied"),
            (inspect, true, false, &Hello::Maybe, "denied"),
            (inspect, true, false, &Hello::No, "opaque"),
            (inspect, false, false, &http, "opaque"),
            (inspect, false, false, &Hello::Unclear, "opaque"),
            (deny, false, false, &http, "denied"),
            (deny, true, true, &http, "denied"),
            (deny, false, false, &Hello::Unclear, "denied"),
            (deny, false, false, &Hello::Maybe, "denied"),
            (deny, false, false, &Hello::No, "opaque"),
        ];
        for (rule, opts_in, is_excluded, hello, expected) in table {
            let got = match tls(rule, opts_in, is_excluded, hello) {
                Handling::Opaque => "opaque",
                Handling::Inspect(_) => "inspect",
                Handling::Denied(_) => "denied",
            };
            assert_eq!(got, expected, "{rule:?} {opts_in} {is_excluded} {hello:?}");
        }
    }
}
