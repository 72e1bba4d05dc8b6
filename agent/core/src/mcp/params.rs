//! `Mcp-Param-*`: headers that repeat arguments of a tool (MCP 2026-07-28, Streamable HTTP, `x-mcp-header`). Which argument
//! one repeats only the tool's schema says; that some argument says the same can be told without.

use super::json::{Kind, Value};
use super::mirror::{HeaderMismatch, spells};

const PREFIX: &str = "mcp-param-";
/// The integers that every reader has exactly.
const NUMBER_MAX: f64 = 9_007_199_254_740_992.0;

/// Whether a header is one of these.
#[must_use]
pub fn is_param(name: &str) -> bool {
    name.get(..PREFIX.len()).is_some_and(|front| front.eq_ignore_ascii_case(PREFIX))
}

/// Holds such headers, each once, to the arguments of their call.
///
/// # Errors
/// [`HeaderMismatch`]: one is there twice, or says what no argument says.
pub fn repeats(arguments: Option<Value<'_>>, headers: &[(&str, &[u8])]) -> Result<(), HeaderMismatch> {
    for (place, (name, value)) in headers.iter().enumerate() {
        let is_twice = headers.iter().take(place).any(|(other, _)| other.eq_ignore_ascii_case(name));
        // What is no text is no argument of anybody's.
        let value = std::str::from_utf8(value).ok();
        let says = |arguments| value.is_some_and(|value| is_said(arguments, value));
        if is_twice || !arguments.is_some_and(says) {
            return Err(HeaderMismatch { header: "Mcp-Param-*" });
        }
    }
    Ok(())
}

/// Arrays have no headers.
fn is_said(value: Value<'_>, header: &str) -> bool {
    match value.kind() {
        Kind::Object => value.members().any(|(_, member)| is_said(member, header)),
        Kind::String => value.as_str().is_some_and(|text| spells(header, &text)),
        Kind::Number => value.number_text().is_some_and(|number| is_number(number, header)),
        Kind::Bool => value.text() == header,
        Kind::Null | Kind::Array => false,
    }
}

/// `1.0` is 1; beyond 2^53 only the same digits are the same number to everybody.
fn is_number(number: &str, header: &str) -> bool {
    let is_plain = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'.'));
    let read = |text: &str| text.parse::<f64>().ok().filter(|number| number.abs() < NUMBER_MAX);
    number == header || (is_plain(header) && read(number).is_some_and(|number| read(header) == Some(number)))
}

#[cfg(test)]
mod tests {
    use super::super::{JsonLimits, Message, Scratch, parse};
    use super::*;

    #[test]
    fn headers_repeat_arguments() {
        let arguments = r#"{"region":"eu","n":1,"x":2.50,"big":9007199254740993,"on":true,"in":{"deep":"h\u00e9"},"all":["no"],"none":null}"#;
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#
        );
        let mut scratch = Scratch::new();
        let Ok(Message::Request(call)) = parse(text.as_bytes(), &mut scratch, &JsonLimits::default()) else {
            panic!("{text}")
        };
        let table: &[(&[(&str, &str)], bool)] = &[
            (&[], true),
            (&[("Mcp-Param-Region", "eu")], true),
            (&[("Mcp-Param-Region", "us")], false),
            (&[("Mcp-Param-Region", "EU")], false),
            (&[("Mcp-Param-Region", "")], false),
            (&[("Mcp-Param-Region", "=?base64?ZXU=?=")], true),
            (&[("Mcp-Param-Region", "=?base64?dXM=?=")], false),
            (&[("Mcp-Param-Region", "eu"), ("Mcp-Param-N", "1")], true),
            (&[("Mcp-Param-Region", "eu"), ("mcp-param-region", "eu")], false),
            (&[("Mcp-Param-N", "1.0")], true),
            (&[("Mcp-Param-N", "1e0")], false),
            (&[("Mcp-Param-N", "2")], false),
            (&[("Mcp-Param-X", "2.5")], true),
            (&[("Mcp-Param-Big", "9007199254740993")], true),
            (&[("Mcp-Param-Big", "9007199254740992")], false),
            (&[("Mcp-Param-On", "true")], true),
            (&[("Mcp-Param-On", "false")], false),
            (&[("Mcp-Param-Deep", "=?base64?aMOp?=")], true),
            (&[("Mcp-Param-All", "no")], false),
            (&[("Mcp-Param-None", "null")], false),
        ];
        for (headers, expected) in table {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            assert_eq!(repeats(call.arguments, &headers).is_ok(), *expected, "{headers:?}");
        }
        assert!(repeats(None, &[("Mcp-Param-A", b"a")]).is_err(), "no arguments at all");
        assert!(repeats(call.arguments, &[("Mcp-Param-A", b"\xff")]).is_err(), "no text");
        assert!(is_param("MCP-Param-X") && !is_param("Mcp-Params") && !is_param("Mcp-Param"));
    }
}
