//! The target of a request: the path alone, and no path that some server takes for another. To a proxy: whose path.

use super::error::{HttpError, shortened};

/// The path and the query of a target in origin form.
///
/// # Errors
/// Another form, a byte that no target may have, or a path with more than one reading.
pub fn split<'b>(method: &str, target: &'b str) -> Result<(&'b str, Option<&'b str>), HttpError> {
    let shown = || shortened(target.as_bytes());
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(HttpError::AuthorityForm { target: shown() });
    }
    if is_simple(target) {
        return Ok((target, None)); // as nearly always
    }
    if target == "*" {
        return Err(HttpError::AsteriskForm);
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(HttpError::Target { target: shown(), problem: "it has bytes beyond visible ASCII" });
    }
    if target.contains(['"', '<', '>', '`']) {
        return Err(HttpError::Target { target: shown(), problem: "it has a character that no URI has" });
    }
    if target.contains('#') {
        return Err(HttpError::Target {
            target: shown(),
            problem: "it has a fragment, which stays with the client",
        });
    }
    if !target.starts_with('/') {
        if has_scheme(target) {
            return Err(HttpError::AbsoluteForm { target: shown() });
        }
        return Err(HttpError::Target { target: shown(), problem: "it does not begin with `/`" });
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match ambiguity(path) {
        Some(has) => Err(HttpError::AmbiguousPath { target: shown(), has }),
        None => Ok((path, query)),
    }
}

/// Before an App ID in a path, and behind it.
pub(super) const BY_PATH: [&str; 2] = ["/v1.0/invoke/", "/method/"];

/// The same of a request by App ID, which may have a whole URL in its path where the App ID is: what that is must be
/// looked at before anything is made of it.
///
/// # Errors
/// As [`split`], of all but that URL.
pub(super) fn split_invoked<'b>(
    method: &str,
    target: &'b str,
) -> Result<(&'b str, Option<&'b str>), HttpError> {
    let Some((app, rest)) = by_path(target).filter(|(app, _)| app.contains([':', '%'])) else {
        return split(method, target);
    };
    if !app.bytes().all(|byte| byte.is_ascii_graphic()) || app.contains(['"', '<', '>', '`', '#', '\\']) {
        let problem = "it has a character that no URI has";
        return Err(HttpError::Target { target: shortened(target.as_bytes()), problem });
    }
    let (_, query) = split(method, rest)?;
    let path = query.map_or(target.len(), |query| target.len().saturating_sub(query.len() + 1));
    Ok((target.get(..path).unwrap_or_default(), query))
}

/// The App ID, or URL, in a target, and the target behind it, which begins with `/`.
pub(super) fn by_path(target: &str) -> Option<(&str, &str)> {
    let [before, behind] = BY_PATH;
    let rest = target.strip_prefix(before)?;
    let path = rest.split('?').next().unwrap_or_default();
    let end = path.find(behind)?;
    let (app, method) = rest.split_at_checked(end)?;
    Some((app, method.get(behind.len() - 1..)?))
}

/// Whether it is a path of segments that are letters, digits, `-` and `_` alone: none of what follows can be found in it.
fn is_simple(target: &str) -> bool {
    let mut before = 0;
    let fits = target.bytes().all(|byte| {
        let is_segment = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_separator = byte == b'/' && before != b'/';
        before = byte;
        is_segment || is_separator
    });
    fits && target.starts_with('/')
}

/// Whom a proxy is asked for, and which part of the target is the path with its query: none of CONNECT.
///
/// # Errors
/// It is no target as a proxy gets one, or one with more than one reading.
pub(super) fn for_proxy<'b>(method: &str, target: &'b str) -> Result<(Authority<'b>, &'b str), HttpError> {
    let refused = |problem| HttpError::Target { target: shortened(target.as_bytes()), problem };
    let (text, rest, default) = if method.eq_ignore_ascii_case("CONNECT") {
        if method != "CONNECT" {
            return Err(refused("its method is not `CONNECT`, as it is written"));
        }
        (target, target.get(target.len()..).unwrap_or_default(), None)
    } else {
        let (scheme, rest) = target.split_once("://").ok_or_else(|| refused("it names no host"))?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(refused("its scheme is not `http`, which a proxy can be asked for alone"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        (authority, path, Some(HTTP_PORT))
    };
    let authority = Authority::read(text, default);
    let authority = authority.ok_or_else(|| refused("its host is no name or address with a port"))?;
    let is_path = rest.is_empty() || rest.starts_with(['/', '?']);
    if !is_path || !rest.bytes().all(|byte| byte.is_ascii_graphic()) || rest.contains('#') {
        return Err(refused("its path has what no path has"));
    }
    Ok((authority, rest))
}

/// Of `http` (RFC 9110 4.2.1).
const HTTP_PORT: u16 = 80;

/// Whom a proxy is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'b> {
    /// A name, or an address; of IPv6 in brackets.
    pub host: &'b str,
    /// The port.
    pub port: u16,
}

impl<'b> Authority<'b> {
    /// Of a text without user information, which readers split in two ways.
    pub(super) fn read(text: &'b str, default: Option<u16>) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                (host, digits.then(|| port.parse().ok())??)
            }
            Some(_) | None => (text, default?),
        };
        let is_v6 = |host: &str| {
            let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            literal.is_some_and(|literal| literal.parse::<std::net::Ipv6Addr>().is_ok())
        };
        let is_name = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        (is_name(host) || is_v6(host)).then_some(Self { host, port })
    }
}

impl std::fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

fn has_scheme(target: &str) -> bool {
    target.split_once("://").is_some_and(|(scheme, _)| {
        scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

fn ambiguity(path: &str) -> Option<&'static str> {
    if path.contains("//") {
        return Some("an empty segment (`//`)");
    }
    if path.contains('\\') {
        return Some("a backslash");
    }
    // `..;x` is `..` to servers that know path parameters.
    let dotted = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if path.split('/').any(dotted) {
        return Some("a dot segment");
    }
    path.split('%').skip(1).find_map(|rest| match rest.as_bytes() {
        [b'2', b'e' | b'E' | b'f' | b'F', ..] => Some("an encoded dot or slash"),
        [b'5', b'c' | b'C', ..] => Some("an encoded backslash"),
        [b'0' | b'1', low, ..] if low.is_ascii_hexdigit() => Some("an encoded control character"),
        [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => None,
        _ => Some("a `%` that begins no escape"),
    })
}
