//! Bodies that a lenient reader could take for JSON-RPC though a strict one does not: for traffic to servers that are
//! not declared, where everything else passes.

use super::json::{JsonLimits, Kind, Scratch, Value, validate};

/// What JSON-RPC cannot do without.
const NAME: &str = "JSONRPC";

/// Charsets in which ASCII is what it is elsewhere, so that the name can be found.
const CHARSETS: &[&str] = &["utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1", "windows-1252"];

/// Whether a content type is JSON's, or something like it.
#[must_use]
pub fn says_json(content_type: &str) -> bool {
    content_type.to_ascii_lowercase().contains("json")
}

/// Whether some reader could take a body that is no valid message for JSON-RPC.
///
/// JSON that every reader reads alike is JSON-RPC by its keys alone. Of other text it is enough that it could spell
/// the name, and of text in UTF-16 or UTF-32, which some readers detect by themselves, that it begins like JSON.
#[must_use]
pub fn could_be_json_rpc(
    body: &[u8],
    content_type: &str,
    scratch: &mut Scratch,
    limits: &JsonLimits,
) -> bool {
    let says_json = says_json(content_type);
    if says_json && !body.is_empty() && names_other_charset(content_type) {
        return true;
    }
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let begins_like_json = matches!(text.trim_ascii_start().first(), Some(b'{' | b'['));
    if begins_wide(body) || (text.contains(&0) && (says_json || begins_like_json)) {
        return true;
    }
    if !says_json && !begins_like_json {
        return false;
    }
    match validate(text, scratch, limits) {
        Ok(value) => is_named(value) || value.elements().any(is_named),
        Err(_) => spells_name(&String::from_utf8_lossy(text)),
    }
}

/// Whether a content type says that the text is in a charset in which not even ASCII is what it is in UTF-8.
#[must_use]
pub fn names_other_charset(content_type: &str) -> bool {
    let named = content_type.split([';', ',']).filter_map(|part| {
        let (name, value) = part.trim().split_at_checked("charset".len())?;
        name.eq_ignore_ascii_case("charset").then(|| value.trim_matches([' ', '\t', '=', '"', '\'']))
    });
    let is_known = |charset: &str| CHARSETS.iter().any(|known| known.eq_ignore_ascii_case(charset));
    named.into_iter().any(|charset| !is_known(charset))
}

/// Whether an object has the member, in any case.
fn is_named(value: Value<'_>) -> bool {
    value.kind() == Kind::Object && value.members().any(|(key, _)| is_name(&key))
}

/// Folded by way of upper case, which also takes the long s for an s, as some readers do.
fn is_name(key: &str) -> bool {
    key.chars().flat_map(char::to_uppercase).eq(NAME.chars())
}

/// Whether it begins like JSON in UTF-16 or UTF-32, in either order of bytes, with or without a byte order mark.
fn begins_wide(body: &[u8]) -> bool {
    fn begins<const WIDTH: usize>(body: &[u8], unit: fn([u8; WIDTH]) -> u32) -> bool {
        let mut units = body.as_chunks::<WIDTH>().0.iter().copied().map(unit);
        let first = units.find(|unit| !matches!(unit, 0xfeff | 0x20 | 0x09 | 0x0a | 0x0d));
        // A length before a message of gRPC-Web may look like a bracket; what follows it then is no character.
        matches!(first, Some(0x5b | 0x7b)) && units.next().is_none_or(|unit| unit <= u32::from(char::MAX))
    }
    begins(body, |unit| u16::from_le_bytes(unit).into())
        || begins(body, |unit| u16::from_be_bytes(unit).into())
        || begins(body, u32::from_le_bytes)
        || begins(body, u32::from_be_bytes)
}

/// Whether text that is no JSON to a strict reader has the name anywhere, or as a key that is spelled with escapes.
fn spells_name(text: &str) -> bool {
    let letters = text.as_bytes().windows(NAME.len());
    letters.into_iter().any(|letters| letters.eq_ignore_ascii_case(NAME.as_bytes())) || has_escaped_key(text)
}

/// Whether a string with a `\u` escape, or a letter beyond ASCII that folds into it, stands before a colon and is the
/// name. Every quote that is not escaped may begin a string: where a broken text has its strings is up to the reader.
fn has_escaped_key(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('"') {
        if let Some((key, behind)) = after.split_once('"')
            && behind.trim_ascii_start().starts_with(':')
            && is_name(&unescaped(key))
        {
            return true;
        }
        rest = after;
    }
    false
}

/// With its `\u` escapes read; only what could be the name is read at all.
fn unescaped(key: &str) -> String {
    // Each letter takes at most six bytes.
    if key.len() > NAME.len() * 6 {
        return String::new();
    }
    let mut out = String::new();
    let mut rest = key;
    while let Some((plain, escape)) = rest.split_once("\\u") {
        out.push_str(plain);
        let code = escape.get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        out.push(code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER));
        rest = escape.get(4..).unwrap_or_default();
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(text: &str, unit: fn(u32) -> Vec<u8>) -> Vec<u8> {
        text.chars().flat_map(|character| unit(character.into())).collect()
    }

    const WIDE: [fn(u32) -> Vec<u8>; 4] = [
        |unit| u16::try_from(unit).unwrap().to_le_bytes().to_vec(),
        |unit| u16::try_from(unit).unwrap().to_be_bytes().to_vec(),
        |unit| unit.to_le_bytes().to_vec(),
        |unit| unit.to_be_bytes().to_vec(),
    ];

    fn check(body: &[u8], content_type: &str, expected: bool) {
        let got = could_be_json_rpc(body, content_type, &mut Scratch::new(), &JsonLimits::default());
        assert_eq!(got, expected, "{content_type}: {}", body.escape_ascii());
    }

    const JSON: &str = "application/json";
    const OTHER: &str = "text/plain";

    #[test]
    fn what_a_lenient_reader_could_take_for_json_rpc() {
        let escaped = r"\u006a\u0073\u006f\u006e\u0072\u0070\u0063";
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"tools/call"}"#.to_owned(),
            r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#.to_owned(),
            r#"[1,{"JSONRPC":"2.0"}]"#.to_owned(),
            r#"{"JsonRpc":"2.0","method":"ping"}"#.to_owned(),
            r#"{"jsonrpc":"1.0","method":"ping"}"#.to_owned(),
            r#"{"jsonrpc":2}"#.to_owned(),
            format!(r#"{{"{escaped}":"\u0032\u002e\u0030","a":1,"a":2}}"#),
            format!(r#"{{"{escaped}" : 2, "id":1, "id":2}}"#),
            format!(r#"{{"{escaped}":1}}"#),
            r#"{"j\u017fonrpc":"2.0"}"#.to_owned(),
            r#"{"jſonrpc":"2.0","a":1,"a":2}"#.to_owned(),
            format!(r#"{{"a":"odd \" quote","{escaped}":"2.0","a":2}}"#),
            format!(r#"{{"a":'"',"{escaped}":"2.0"}}"#),
            "{jsonrpc:'2.0'}".to_owned(),
            "{\"a\":1}\n{\"jsonrpc\":\"2.0\"}\n".to_owned(),
            "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}".to_owned(),
            " \r\n\t{\"jsonrpc\":\"2.0\",}".to_owned(),
            "{\"a\":\"\0\"}".to_owned(),
        ] {
            check(body.as_bytes(), OTHER, true);
            check(body.as_bytes(), JSON, true);
        }
        check(b"\"\0\"", JSON, true);
        check(b"'jsonrpc'", JSON, true);
        check(b"'jsonrpc'", OTHER, false);
        check(b"{\"+AGo-sonrpc\":1}", "application/json; charset=utf-7", true);
        check(b"\xc0\x7f", "application/x+json;CHARSET = \"ibm037\"", true);
        for unit in WIDE {
            for text in ["{\"jsonrpc\":\"2.0\"}", "\u{feff}{}", " \r\n\t[1]", "\u{feff} {"] {
                check(&wide(text, unit), OTHER, true);
            }
            for text in ["hello", "\u{feff}x", ""] {
                check(&wide(text, unit), OTHER, false);
            }
        }
    }

    #[test]
    fn other_apis_are_left_alone() {
        let large = format!(r#"{{"items":[{}1]}}"#, r#"{"text":"a jsonrpc call","n":1.5},"#.repeat(20_000));
        let deep = "[".repeat(100) + &"]".repeat(100);
        for body in [
            "",
            "{}",
            "[]",
            "3",
            "null",
            r#"{"model":"m","messages":[{"role":"user","content":"what is {\"jsonrpc\":\"2.0\"}?"}]}"#,
            r#"{"a":{"jsonrpc":"2.0"}}"#,
            r#"{"text":"jsonrpc"}"#,
            r#"{"gr\u00f6\u00dfe":1}"#,
            r#"[[{"jsonrpc":"2.0"}]]"#,
            "{\"index\":{}}\n{\"gr\\u00f6\\u00dfe\":\"\\u00e9\"}\n",
            "{\"a\":1}\r\n{\"a\":2}\r\n",
            r#"{"a":1,"a":2}"#,
            "{ not json",
            "\u{feff}{\"a\":1}",
            &large,
            &deep,
        ] {
            check(body.as_bytes(), JSON, false);
            check(body.as_bytes(), OTHER, false);
        }
        // Of gRPC-Web: a flag and a length of 91, which is a bracket.
        check(b"\0\0\0\0[\x0a\x59", OTHER, false);
        check(b"\0\0\0[\x01\x0a\x59ab", OTHER, false);
        check(b"\x1f\x8b\x08\0\0", OTHER, false);
        check(b"a=1&b=jsonrpc", OTHER, false);
        check(b"caf\xe9", JSON, false);
        for charset in ["utf-8", "\"UTF-8\"", "us-ascii", "ISO-8859-1"] {
            check(b"{}", &format!("application/json; charset={charset}"), false);
        }
        check(b"", "application/json; charset=utf-16", false);
        check(b"{}", "text/html; charset=utf-16", false);
    }
}
