//! The target of a request: the path alone, and no path that some server takes for another.

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
