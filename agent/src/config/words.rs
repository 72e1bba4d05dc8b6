//! Reading single values: choices, addresses, destinations, durations, names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde_saphyr::Spanned;
use toolgate_core::policy::Literal;

use super::diagnostic::Diagnostic;
use super::schema::{Given, Later, Scalar};
use super::source::{Source, did_you_mean};

/// Where traffic goes: a network and a port, `None` = every port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The network; one address is a network of one.
    pub net: IpNet,
    /// The port.
    pub port: Option<u16>,
}

/// Collects what is wrong while reading goes on.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) all: Vec<Diagnostic>,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Diagnostic) {
        self.all.push(finding);
    }

    /// The value, or its error kept.
    pub(super) fn keep<T>(&mut self, result: Result<T, Diagnostic>) -> Option<T> {
        result.map_err(|finding| self.push(finding)).ok()
    }

    /// Refuses keys that are designed but not built yet.
    pub(super) fn refuse_later(&mut self, source: &Source, keys: &[(&str, &Later)]) {
        for (name, value) in keys {
            if let Some(value) = value {
                self.push(later(source, value, name));
            }
        }
    }
}

/// A key that is designed but not built yet.
pub(super) fn later<T>(source: &Source, at: &Spanned<T>, name: &str) -> Diagnostic {
    source.error(at, format!("`{name}` is designed but not built yet")).help("leave it out for now")
}

/// One of a few words; those that are designed but not built yet are refused as such.
pub(super) fn choice<T: Copy>(
    source: &Source,
    given: &Given<String>,
    (key, default): (&str, T),
    built: &[(&str, T)],
    later_words: &[&str],
) -> Result<T, Diagnostic> {
    let Some(word) = given else { return Ok(default) };
    if let Some((_, value)) = built.iter().find(|(name, _)| *name == word.value) {
        return Ok(*value);
    }
    if later_words.contains(&word.value.as_str()) {
        return Err(later(source, word, &format!("{key}: {}", word.value)));
    }
    let names: Vec<&str> = built.iter().map(|(name, _)| *name).collect();
    let message = format!("`{}` is no value of `{key}`", word.value);
    Err(source.error(word, message).help(did_you_mean(&word.value, &names)))
}

/// An address with a port that one can connect to.
/// Where to listen: a port of every address, or an address with a port.
pub(super) fn listening(source: &Source, word: &Spanned<Scalar>) -> Result<SocketAddr, Diagnostic> {
    let told = match &word.value.0 {
        // All there are, IPv4 too.
        Literal::Number(port) => {
            let port = (1..=u16::MAX).find(|one| f64::from(*one) == *port);
            port.map(|port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        }
        Literal::Text(text) => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0),
        Literal::Bool(_) | Literal::Null => None,
    };
    told.ok_or_else(|| {
        let fault = source.error(word, "this is neither a port nor an address with a port".to_owned());
        fault.help("write `15008` for every address of this host, or `\"10.0.0.2:15008\"` for one")
    })
}

pub(super) fn address(source: &Source, word: &Spanned<String>) -> Result<SocketAddr, Diagnostic> {
    let fault = |message: String, help: &str| Err(source.error(word, message).help(help));
    let text = &word.value;
    let Ok(address) = text.parse::<SocketAddr>() else {
        return fault(
            format!("`{text}` is no address with a port"),
            "write `127.0.0.1:8000` or `\"[::1]:8000\"`",
        );
    };
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        let help = "write the address that clients connect to, also where the server binds to all";
        return fault(format!("nobody can connect to `{text}`"), help);
    }
    Ok(address)
}

/// `10.0.0.2:5432`, `10.0.0.0/8`, `10.0.0.0/8:443`, `[fd00::/8]:443`, `fd00::1`.
pub(super) fn destination(source: &Source, word: &Spanned<String>) -> Result<Destination, Diagnostic> {
    let text = word.value.as_str();
    read_destination(text).ok_or_else(|| {
        source
            .error(word, format!("`{text}` is no network with an optional port"))
            .help("write `10.0.0.2:5432`, `10.0.0.0/8`, `10.0.0.0/8:443` or `\"[fd00::/8]:443\"`")
    })
}

fn read_destination(text: &str) -> Option<Destination> {
    let (net, port) = if let Some(rest) = text.strip_prefix('[') {
        let (net, port) = rest.split_once(']')?;
        (net, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else if text.matches(':').count() == 1 {
        let (net, port) = text.split_once(':')?;
        (net, Some(port))
    } else {
        (text, None)
    };
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
        None => None,
    };
    let net = net.parse::<IpNet>().ok().or_else(|| net.parse::<IpAddr>().ok().map(IpNet::from))?;
    // Bits beyond the prefix are a slip of the pen: 10.0.0.2/8 could be meant either way.
    (net == net.trunc()).then_some(Destination { net, port })
}

/// `100ms`, `2s`, `5m`, `24h`; longer than nothing.
pub(super) fn duration(source: &Source, word: &Spanned<String>) -> Result<Duration, Diagnostic> {
    let text = word.value.as_str();
    read_duration(text)
        .filter(|length| !length.is_zero())
        .ok_or_else(|| source.error(word, format!("`{text}` is no length of time")).help(DURATION_HELP))
}

pub(super) const DURATION_HELP: &str = "write `100ms`, `2s`, `5m` or `24h`";

pub(super) fn read_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(milliseconds).map(Duration::from_millis)
}

pub(super) const SIZE_HELP: &str = "write bytes, or `64KiB`, `4MiB`, `1GiB`";

/// `4194304`, `64KiB`, `4MiB`, `1GiB`.
pub(super) fn read_size(text: &str) -> Option<usize> {
    let (number, unit) = number_and_unit(text);
    let bytes = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(bytes)
}

fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// A name of the server in a Host header.
pub(super) fn host(source: &Source, word: &Spanned<String>) -> Result<String, Diagnostic> {
    let text = word.value.as_str();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '[' | ']');
    if text.is_empty() || !text.chars().all(allowed) {
        let fault = source.error(word, format!("`{text}` is no value of a Host header"));
        return Err(fault.help("write a name or an address, with or without port: `docs.internal`"));
    }
    Ok(text.to_ascii_lowercase())
}

/// An absolute path of the file system.
pub(super) fn file_path(source: &Source, word: &Spanned<String>) -> Result<std::path::PathBuf, Diagnostic> {
    if word.value.starts_with('/') {
        return Ok(word.value.clone().into());
    }
    Err(source.error(word, format!("`{}` is no absolute path", word.value)).help("begin with `/`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_networks_with_ports() {
        let table = [
            ("10.0.0.2:5432", Some(("10.0.0.2/32", Some(5432)))),
            ("10.0.0.2", Some(("10.0.0.2/32", None))),
            ("10.0.0.0/8", Some(("10.0.0.0/8", None))),
            ("10.0.0.0/8:443", Some(("10.0.0.0/8", Some(443)))),
            ("[fd00::/8]:443", Some(("fd00::/8", Some(443)))),
            ("[fd00::1]", Some(("fd00::1/128", None))),
            ("fd00::1", Some(("fd00::1/128", None))),
            ("10.0.0.2/8", None),
            ("10.0.0.2:0", None),
            ("10.0.0.2:x", None),
            ("example.org:443", None),
            ("[fd00::1]443", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(net, port)| Destination { net: net.parse().unwrap(), port });
            assert_eq!(read_destination(text), expected, "{text}");
        }
    }
}
