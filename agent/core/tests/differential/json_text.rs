//! JSON texts and messages that are mostly valid.

use super::random::Random;

const TELLING: &[u8] = b"\"\\{}[],:-+.0129eEunltr \t\n\r\0\x1f\x7f\xc3\xa9\xed\xa0\xff";

/// Every letter takes its turn at every place of a word.
const LETTERS: &[&str] = &[
    "A", "B", "C", "D", "E", "F", "Z", "a", "b", "d", "e", "z", "0", "9", " ", "!", "#", "[", "]", "^", "~",
    "\u{7f}", "\u{80}", "\u{e9}",
];

fn space(random: &mut Random) -> &'static str {
    if random.one_in(5) { random.one(&[" ", "\n", "\t\r ", "      "]) } else { "" }
}

fn letters(random: &mut Random) -> String {
    (0..random.below(20)).map(|_| random.one(LETTERS)).collect()
}

fn string(random: &mut Random) -> String {
    let parts = [
        "a",
        "B",
        "key",
        "a text of more than eight",
        "of more than sixty-four bytes, which is searched in another way than shorter ones",
        "\u{e9}",
        "\u{1f600}",
        r"\n",
        r#"\""#,
        r"\\",
        r"\/",
        r"\u0061",
        r"\ud83d\ude00",
        "{",
        "]",
        ",",
        "\u{7f}",
        "\u{2028}",
    ];
    let text: String = (0..random.below(4)).map(|_| random.one(&parts)).collect();
    let text = if random.one_in(2) { letters(random) } else { text };
    let text = if random.one_in(60) {
        text + random.one(&[r"\ud83d", r"\udc00", r"\x", r"\u00g0", "\n", "\0"])
    } else {
        text
    };
    format!("\"{text}\"")
}

fn number(random: &mut Random) -> &'static str {
    random.one(&[
        "0",
        "-1",
        "12.50",
        "1e5",
        "9007199254740993",
        "-0.0",
        "1E-7",
        "18446744073709551616",
        "-0",
        "1e308",
        "1e-400",
        "0.1",
        "123456789012345678901234567890",
        "2E+3",
    ])
}

fn value(random: &mut Random, depth: usize) -> String {
    match random.below(if depth == 0 { 4 } else { 8 }) {
        0 => random.one(&["null", "true", "false"]).to_owned(),
        1 if random.one_in(60) => {
            random.one(&["01", "1.", ".5", "1e", "-", "NaN", "1e309", "0x1"]).to_owned()
        }
        1 => number(random).to_owned(),
        2 | 3 => string(random),
        4 | 5 => {
            let elements: Vec<_> = (0..random.below(4)).map(|_| value(random, depth - 1)).collect();
            format!("[{}{}]", space(random), elements.join(random.one(&[",", " ,", ", "])))
        }
        _ => object(random, depth),
    }
}

/// Keys are numbered in most objects, so that most have none twice; a few have many.
fn object(random: &mut Random, depth: usize) -> String {
    let numbered = !random.one_in(8);
    let count = if random.one_in(50) { 20 + random.below(40) } else { random.below(5) };
    let members: Vec<_> = (0..count)
        .map(|at| {
            let key = string(random);
            let key = if numbered { format!("\"{at}{}", &key[1..]) } else { key };
            format!("{key}{}:{}{}", space(random), space(random), value(random, depth - 1))
        })
        .collect();
    format!("{{{}{}}}", members.join(random.one(&[",", " ,", ", "])), space(random))
}

/// A text, one in four damaged.
pub(crate) fn text(random: &mut Random) -> Vec<u8> {
    let mut text = format!("{}{}{}", space(random), value(random, 5), space(random)).into_bytes();
    if random.one_in(4) {
        random.damage(&mut text, TELLING);
    }
    text
}

/// Escapes the first letter of a name.
fn spelled(random: &mut Random, name: &str) -> String {
    match name.bytes().next() {
        Some(first) if first.is_ascii() && random.one_in(12) => format!("\\u{:04x}{}", first, &name[1..]),
        _ => name.to_owned(),
    }
}

fn members(random: &mut Random, all: Vec<(&str, String)>) -> String {
    let mut all: Vec<_> = all
        .into_iter()
        .map(|(name, value)| format!("\"{}\"{}:{value}", spelled(random, name), space(random)))
        .collect();
    for at in (1..all.len()).rev() {
        all.swap(at, random.below(at + 1));
    }
    format!("{{{}}}", all.join(random.one(&[",", ", "])))
}

fn params(random: &mut Random) -> String {
    let mut all = Vec::new();
    for (name, one_in) in [
        ("name", 1),
        ("arguments", 2),
        ("uri", 3),
        ("_meta", 3),
        ("task", 8),
        ("ref", 6),
        ("cursor", 8),
        ("other", 6),
    ] {
        if !random.one_in(one_in) {
            continue;
        }
        let value = match name {
            "name" | "uri" if !random.one_in(30) => string(random),
            "ref" => random
                .one(&[r#"{"type":"ref/prompt","name":"a"}"#, r#"{"type":"ref/resource","uri":"a:b"}"#, "{}"])
                .to_owned(),
            "arguments" | "_meta" if !random.one_in(30) => object(random, 3),
            _ => value(random, 2),
        };
        all.push((name, value));
    }
    if random.one_in(25) {
        all.push((random.one(&["Name", "arguments", "name", "NAME", "_Meta", "\u{212a}ey"]), "1".to_owned()));
    }
    members(random, all)
}

/// A message of a client, one in six damaged.
pub(crate) fn message(random: &mut Random) -> Vec<u8> {
    let version =
        if random.one_in(40) { "\"1.0\"" } else { random.one(&["\"2.0\"", "\"2.0\"", r#""2\u002e0""#]) };
    let mut all = vec![("jsonrpc", version.to_owned())];
    if !random.one_in(5) {
        let id = if random.one_in(30) {
            number(random).to_owned()
        } else {
            random.one(&["1", "-7", "\"a\"", r#""\u0061""#, "9007199254740992"]).to_owned()
        };
        all.push(("id", id));
    }
    if random.one_in(8) {
        all.push((random.one(&["result", "error"]), object(random, 2)));
    } else {
        let methods = [
            "tools/call",
            "tools/call",
            "tools/list",
            "ping",
            "resources/read",
            "prompts/get",
            "completion/complete",
            "a/b",
            "initialize",
        ];
        all.push((
            "method",
            format!("\"{}\"", {
                let name = random.one(&methods);
                spelled(random, name)
            }),
        ));
        if !random.one_in(5) {
            all.push(("params", params(random)));
        }
    }
    if random.one_in(25) {
        all.push((random.one(&["Method", "extra", "id", "METHOD", "x"]), "1".to_owned()));
    }
    let mut text = members(random, all).into_bytes();
    if random.one_in(6) {
        random.damage(&mut text, TELLING);
    }
    text
}
