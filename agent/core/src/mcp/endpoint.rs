//! The endpoint that a server names on its stream, where the client sends its messages (MCP 2024-11-05, HTTP with SSE).
//!
//! Clients resolve what is written by RFC 3986 or by WHATWG's URL, which do not agree on everything: only what both read in
//! the same way, and send as it is written, is taken.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use crate::http1::{self, HttpError};

/// The most bytes of an endpoint.
const BYTES_MAX: usize = 2_048;

/// Where messages are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<'d> {
    /// Host and port, the port also where it is the scheme's own. `None`: those of the stream.
    pub authority: Option<Cow<'d, str>>,
    /// Path and query, as a request has them.
    pub target: Cow<'d, str>,
}

/// What is no endpoint, or not one for every client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Nothing is named.
    #[error("it is empty")]
    Empty,
    /// It would have to be kept whole.
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLong,
    /// A character that clients encode, each in its own way, or that no URI has.
    #[error("it has a character, or an escape, that clients do not send as it is written")]
    Character,
    /// Another scheme than the stream's.
    #[error("its scheme is not `http`")]
    Scheme,
    /// No host and port.
    #[error("its host is not clear")]
    Authority,
    /// A relative path that begins like a scheme.
    #[error("it could be a path or a scheme")]
    Colon,
    /// A `?` with nothing behind it.
    #[error("its query is empty, which some clients leave out")]
    Query,
    /// No path that servers read in one way alone. It is not shown: who knows an endpoint can send to it.
    #[error("its path has {has}")]
    Path {
        /// What is in it.
        has: &'static str,
    },
}

/// Reads the data of an `endpoint` event of a stream that was opened at `path`.
///
/// # Errors
/// [`EndpointError`]: two clients could send to two places.
pub fn endpoint<'d>(data: &'d [u8], path: &str) -> Result<Endpoint<'d>, EndpointError> {
    let text = readable(data)?;
    let (authority, target) = match (text.split_once("://"), text.strip_prefix("//")) {
        (_, Some(rest)) => absolute(rest)?,
        (Some((scheme, rest)), None) if !scheme.contains(['/', '?']) => {
            if !scheme.eq_ignore_ascii_case("http") {
                return Err(EndpointError::Scheme);
            }
            absolute(rest)?
        }
        (_, None) => (None, relative(text, path)?),
    };
    match http1::split_target("POST", &target) {
        Ok((_, Some(""))) => Err(EndpointError::Query),
        Ok((_, Some(_) | None)) => Ok(Endpoint { authority, target }),
        Err(HttpError::AmbiguousPath { has, .. }) => Err(EndpointError::Path { has }),
        Err(_) => Err(EndpointError::Character),
    }
}

/// The text, of characters and escapes that every client sends as they are.
fn readable(data: &[u8]) -> Result<&str, EndpointError> {
    if data.is_empty() {
        return Err(EndpointError::Empty);
    }
    if data.len() > BYTES_MAX {
        return Err(EndpointError::TooLong);
    }
    let text = std::str::from_utf8(data).map_err(|_| EndpointError::Character)?;
    // Unreserved, reserved in paths and queries (RFC 3986, 3.3 and 3.4) without the apostrophe, and those of IPv6 literals.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&()*+,;=:@/?%[]".contains(&byte);
    let is_escape = |rest: &str| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if text.bytes().all(is_plain) && text.split('%').skip(1).all(is_escape) {
        Ok(text)
    } else {
        Err(EndpointError::Character)
    }
}

type Absolute<'d> = (Option<Cow<'d, str>>, Cow<'d, str>);

/// What follows `//`.
fn absolute(text: &str) -> Result<Absolute<'_>, EndpointError> {
    let end = text.find(['/', '?']).unwrap_or(text.len());
    let (authority, target) = text.split_at_checked(end).ok_or(EndpointError::Authority)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    let literal = authority.find(']').map_or(0, |bracket| bracket + 1);
    let colon = authority.bytes().skip(literal).position(|byte| byte == b':');
    let (host, port) =
        authority.split_at_checked(colon.map_or(authority.len(), |at| literal + at)).unwrap_or_default();
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match inner {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['[', ']']),
    };
    let is_port = match port.strip_prefix(':') {
        Some(port) => !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()),
        None => true,
    };
    if !is_host || !is_port || !authority.bytes().all(is_plain) {
        return Err(EndpointError::Authority);
    }
    let authority = if port.is_empty() { Cow::Owned(format!("{host}:80")) } else { Cow::Borrowed(authority) };
    Ok((Some(authority), rooted(target)?))
}

fn rooted(target: &str) -> Result<Cow<'_, str>, EndpointError> {
    bracketless(target)?;
    Ok(if target.starts_with('/') { Cow::Borrowed(target) } else { Cow::Owned(format!("/{target}")) })
}

/// What has no authority, beside the path of its stream (RFC 3986, 5.2).
fn relative<'d>(text: &'d str, path: &str) -> Result<Cow<'d, str>, EndpointError> {
    if text.starts_with('/') {
        return rooted(text);
    }
    bracketless(text)?;
    if text.starts_with('?') {
        return Ok(Cow::Owned(format!("{path}{text}")));
    }
    let segment = text.split(['/', '?']).next().unwrap_or_default();
    if segment.contains(':') {
        return Err(EndpointError::Colon);
    }
    let folder = path.rfind('/').and_then(|slash| path.get(..=slash)).unwrap_or("/");
    Ok(Cow::Owned(format!("{folder}{text}")))
}

/// Only IPv6 literals have brackets.
fn bracketless(target: &str) -> Result<(), EndpointError> {
    if target.contains(['[', ']']) { Err(EndpointError::Character) } else { Ok(()) }
}
