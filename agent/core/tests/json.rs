//! Strict JSON: a table of hostile texts with their accepted twins, the lazy view, and serde_json as the oracle.

use serde_json::Value as Oracle;
use toolgate_core::mcp::json::{JsonLimits, Kind, Malformed, Scratch, Value, validate};

const LIMITS: JsonLimits = JsonLimits { depth_max: 8, members_max: 40 };

/// `name@offset` of the error, or the text without white space around it.
fn check(text: impl AsRef<[u8]>, expected: &str) {
    let text = text.as_ref();
    let found = match validate(text, &mut Scratch::new(), &LIMITS) {
        Ok(value) => value.text().to_owned(),
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.ends_with('.') && !shown.starts_with(char::is_uppercase), "{shown}");
            let name = format!("{error:?}");
            format!("{}@{}", name.split([' ', '{']).next().unwrap_or_default(), error.offset())
        }
    };
    assert_eq!(found, expected, "{}", text.escape_ascii());
}

fn same(text: &str) {
    check(text, text);
}

#[test]
fn grammar() {
    for text in
        ["null", "true", "false", "0", "-0", "1.5e-3", "\"\"", "[]", "{}", "[1,2]", r#"{"a":{"b":[null]}}"#]
    {
        same(text);
        check(format!(" \t\r\n{text} \n"), text);
        check(format!("{text} x"), &format!("Syntax@{}", text.len() + 1));
    }
    for (text, offset) in [
        ("", 0),
        (" ", 1),
        ("nul", 0),
        ("nulL", 0),
        ("True", 0),
        ("NaN", 0),
        ("Infinity", 0),
        ("-Infinity", 1),
        ("-", 1),
        ("+1", 0),
        ("01", 1),
        ("-01", 2),
        ("1.", 2),
        (".5", 0),
        ("1.e5", 2),
        ("1e", 2),
        ("1e+", 3),
        ("0x10", 1),
        ("1_000", 1),
        ("'a'", 0),
        ("\"a", 2),
        ("[1", 2),
        ("[1,]", 3),
        ("[,1]", 1),
        ("[1 2]", 3),
        ("[1}", 2),
        ("{", 1),
        ("{\"a\"}", 4),
        ("{\"a\":}", 5),
        ("{\"a\":1,}", 7),
        ("{a:1}", 1),
        ("{1:1}", 1),
        ("{\"a\":1 \"b\":2}", 7),
        ("{\"a\" 1}", 5),
        ("// a\n1", 0),
        ("1/**/", 1),
        ("\u{a0}1", 0),
        ("\u{b}1", 0),
        ("1\0", 1),
        ("\u{2028}1", 0),
    ] {
        check(text, &format!("Syntax@{offset}"));
    }
}

#[test]
fn strings() {
    same(r#""\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00""#);
    same("\"\u{e9}\u{2028}\u{10ffff}\u{7f}\"");
    same(r#""\u0000""#);
    check("\"a\nb\"", "Control@2");
    check("\"a\tb\"", "Control@2");
    check("\"\0\"", "Control@1");
    check("\"\x1f\"", "Control@1");
    check(format!("\"{}\x1f\"", "a".repeat(100)), "Control@101");
    check(r#""\x41""#, "Syntax@2");
    check(r#""\'""#, "Syntax@2");
    check(r#""\U0041""#, "Syntax@2");
    check(r#""\u004""#, "Syntax@2");
    check(r#""\u00g0""#, "Syntax@2");
    check(r#""\u+041""#, "Syntax@2");
    check(r#""\"#, "Syntax@2");
    for lone in
        [r"\ud83d", r"\uDE00", r"\ud83dx", r"\ud83d\n", r"\ud83d\u0041", r"\ud83d\ud83d", r"\ude00\ud83d"]
    {
        check(format!("\"a{lone}\""), "LoneSurrogate@2");
        check(format!("{{\"a{lone}\":1}}"), "LoneSurrogate@3");
    }
    check(b"\"\xff\"", "NotUtf8@1");
    check(b"\"\xed\xa0\xbd\"", "NotUtf8@1");
    check(b"\"\xc0\xaf\"", "NotUtf8@1");
    check(b"{\"a\":\"\xe2\x82\"}", "NotUtf8@6");
    check(b"\xef\xbb\xbf{}", "ByteOrderMark@0");
    check(b"\xff\xfe{\0}\0", "NotUtf8@0");
    check(b"{\0}\0", "Syntax@1");
    // Every length around the steps of the scanner, with the end at every place.
    for length in 0..100 {
        for end in ["\"", "\\n\"", "\u{e9}\""] {
            same(&format!("\"{}{end}", "a".repeat(length)));
        }
        for byte in (b' '..=b'~').filter(|byte| !b"\"\\".contains(byte)) {
            let text = char::from(byte).to_string().repeat(length);
            same(&format!(r#"{{"{text}":"{text}"}}"#));
        }
        check(
            format!("\"{}\u{1}{}\"", "\u{e9}".repeat(length), "b".repeat(40)),
            &format!("Control@{}", 2 * length + 1),
        );
    }
}

#[test]
fn numbers() {
    same("1.7976931348623157e308");
    same("9007199254740993");
    same("-123456789012345678901234567890");
    same("1e-400");
    same("0e999999999999999999999");
    same(&"9".repeat(308));
    same(&format!("0.{}", "9".repeat(400)));
    check("1e309", "Number@0");
    check("[0,-1e309]", "Number@3");
    check("1.8e308", "Number@0");
    check("1e999999999999999999999", "Number@0");
    for (digits, exponent) in [(199, 99), (200, 99), (201, 99), (209, 99), (9, 299), (300, 8)] {
        same(&format!("{}.5e{exponent}", "9".repeat(digits)));
    }
    for (digits, exponent) in [(210, 99), (211, 99), (300, 9), (300, 99), (10, 299)] {
        check(format!("[{}.5E+{exponent}]", "9".repeat(digits)), "Number@1");
    }
    check("9".repeat(310), "Number@0");
    check(format!("{}e-10", "9".repeat(330)), "Number@0");
    same(&format!("{}e-100", "9".repeat(330)));
}

#[test]
fn keys() {
    check(r#"{"a":1,"a":1}"#, "DuplicateKey@8");
    check(r#"{"a":1,"\u0061":1}"#, "DuplicateKey@8");
    check(r#"{"\u0061":1,"b":2,"a":1}"#, "DuplicateKey@19");
    check(r#"{"\u0061":1,"\u0061":1}"#, "DuplicateKey@13");
    check(r#"{"":1,"":1}"#, "DuplicateKey@7");
    check(r#"{"a/":1,"a\/":1}"#, "DuplicateKey@9");
    check(r#"{"😀":1,"\uD83D\uDE00":1}"#, "DuplicateKey@11");
    check(r#"[{"x":[{"a":1,"a":2}]}]"#, "DuplicateKey@15");
    check(r#"{"a":{"b":1},"c":{"b":1,"d":1,"b":1}}"#, "DuplicateKey@31");
    check(r#"{"longer than eight a":1,"longer than eight a":1}"#, "DuplicateKey@26");
    same(r#"{"longer than eight a":1,"longer than eight b":1}"#);
    same(r#"{"a":1,"A":1,"\u0061\u0000":1,"aa":1,"":1,"\u0000":1}"#);
    same(r#"{"a":{"a":{"a":1}},"b":{"a":1}}"#);
    same("{\"\u{e9}\":1,\"e\u{301}\":1}");
    let object = |keys: &[String]| {
        format!("{{{}}}", keys.iter().map(|key| format!("\"{key}\":0")).collect::<Vec<_>>().join(","))
    };
    // Small objects are compared one by one, large ones sorted: both, with the second one at every place.
    for count in [2, 15, 31, 32, 33, 34, 40] {
        let keys: Vec<_> = (0..count).map(|n| format!("key number {n:02}")).collect();
        same(&object(&keys));
        for twice in 0..count - 1 {
            let mut keys = keys.clone();
            keys[count - 1] = keys[twice].replace('k', "\\u006b");
            let offset = object(&keys).rfind("\\u006b").unwrap_or_default();
            check(object(&keys), &format!("DuplicateKey@{offset}"));
        }
    }
    let keys: Vec<_> = (0..41).map(|n| n.to_string()).collect();
    check(object(&keys), &format!("Members@{}", object(&keys).len() - 6));
}

#[test]
fn depth() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let objects = |depth: usize| format!("{}0{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    same(&nested(8));
    same(&objects(8));
    check(nested(9), "Depth@8");
    check(objects(9), "Depth@40");
    check("[".repeat(1_000_000), "Depth@8");
    let unlimited = JsonLimits { depth_max: usize::MAX, members_max: usize::MAX };
    let error = validate(&[b'['; 1_000_000], &mut Scratch::new(), &unlimited).map(Value::text);
    assert_eq!(error, Err(Malformed::Depth { offset: 128, depth_max: 128 }));
    same(&format!("[{}]", vec!["[[]]"; 50].join(",")));
}

/// Hostile sizes end in time: quadratic work on these would take minutes.
#[test]
fn large_texts() {
    let limits = JsonLimits { depth_max: 64, members_max: usize::MAX };
    let mut scratch = Scratch::new();
    let mut object = "{".to_owned();
    for n in 0..300_000 {
        object.push_str(&format!("\"same prefix {n:06}\":0,"));
    }
    for (end, valid) in [("\"last\":0}", true), ("\"same prefix 000000\":0}", false)] {
        let text = format!("{object}{end}");
        assert_eq!(validate(text.as_bytes(), &mut scratch, &limits).is_ok(), valid);
    }
    let text = format!("[{}0]", "[[]],{\"a\":0},\"\\u0041\",".repeat(200_000));
    assert!(
        validate(text.as_bytes(), &mut scratch, &limits)
            .is_ok_and(|value| value.elements().count() == 600_001)
    );
}

fn view(text: &str) -> Value<'_> {
    validate(text.as_bytes(), &mut Scratch::new(), &JsonLimits::default()).expect("valid")
}

#[test]
fn views() {
    let text = r#" {"a/b" : [10, {"~x":null}, "\u00e9\n"] , "m~n":true,"\u0041":-1.50,"path":1,"e":{},"f":[ ],"":"" } "#;
    let value = view(text);
    assert_eq!((value.kind(), value.text(), value.offset()), (Kind::Object, text.trim(), 1));
    let keys: Vec<_> = value.members().map(|(key, _)| key.into_owned()).collect();
    assert_eq!(keys, ["a/b", "m~n", "A", "path", "e", "f", ""]);
    for (pointer, expected) in [
        ("", Some(text.trim())),
        ("/a~1b/0", Some("10")),
        ("/a~1b/1/~0x", Some("null")),
        ("/a~1b/2", Some(r#""\u00e9\n""#)),
        ("/a~1b/3", None),
        ("/a~1b/00", None),
        ("/a~1b/+0", None),
        ("/a~1b/-", None),
        ("/a~1b/", None),
        ("/m~0n", Some("true")),
        ("/A", Some("-1.50")),
        ("/a", None),
        ("/", Some("\"\"")),
        ("//", None),
        ("a", None),
        ("/e/x", None),
        ("/path/x", None),
    ] {
        assert_eq!(value.pointer(pointer).map(Value::text), expected, "{pointer:?}");
    }
    assert_eq!(value.pointer("/a~1b/2").and_then(Value::as_str).as_deref(), Some("\u{e9}\n"));
    assert_eq!(value.get("A").and_then(Value::number_text), Some("-1.50"));
    assert_eq!((value.get("m~n").and_then(Value::as_bool), value.as_bool()), (Some(true), None));
    assert!(value.as_str().is_none() && value.number_text().is_none());
    assert_eq!((value.elements().count(), view("[1]").members().count()), (0, 0));
    assert_eq!(
        view("[[],{},\"]\",\"\\\"\",1 , true]").elements().map(Value::text).collect::<Vec<_>>(),
        ["[]", "{}", "\"]\"", "\"\\\"\"", "1", "true"]
    );
}

#[test]
fn collisions() {
    for (text, key, expected) in [
        (r#"{"path":1}"#, "path", false),
        (r#"{"path":1,"PATH":1}"#, "path", true),
        (r#"{"Path":1}"#, "path", true),
        (r#"{"\u0050ath":1}"#, "path", true),
        (r#"{"pathx":1,"pat":1}"#, "path", false),
        ("{\"\u{212a}ey\":1}", "key", true),
        ("{\"clas\u{17f}\":1}", "class", true),
        ("{\"STRASSE\":1}", "stra\u{df}e", true),
        ("{\"\u{3a3}\":1}", "\u{3c2}", true),
        ("{\"\u{c9}\":1}", "\u{e9}", true),
        ("[\"Path\"]", "path", false),
    ] {
        assert_eq!(view(text).collides(key), expected, "{text} {key}");
    }
}

/// xorshift64*: the same texts in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).expect("small")]
    }

    fn space(&mut self) -> &'static str {
        self.one(&["", "", "", "", " ", "\n", "\t\r "])
    }

    fn string(&mut self) -> String {
        let parts = [
            "a",
            "B",
            "key",
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
        ];
        let text: String = (0..self.below(4)).map(|_| self.one(&parts)).collect();
        format!("\"{text}\"")
    }

    fn value(&mut self, depth: u64) -> String {
        let kinds = if depth == 0 { 4 } else { 8 };
        match self.below(kinds) {
            0 => self.one(&["null", "true", "false"]).to_owned(),
            1 => self
                .one(&["0", "-1", "12.50", "1e5", "9007199254740993", "-0.0", "1E-7", "18446744073709551615"])
                .to_owned(),
            2 | 3 => self.string(),
            4 | 5 => {
                let elements: Vec<_> = (0..self.below(4)).map(|_| self.value(depth - 1)).collect();
                format!("[{}{}]", self.space(), elements.join(self.one(&[",", " ,", ", "])))
            }
            _ => {
                let members: Vec<_> = (0..self.below(5))
                    .map(|_| {
                        format!("{}{}:{}{}", self.string(), self.space(), self.space(), self.value(depth - 1))
                    })
                    .collect();
                format!("{{{}{}}}", members.join(self.one(&[",", " ,", ", "])), self.space())
            }
        }
    }

    /// One byte more, fewer or other, at a random place.
    fn damage(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        let at = usize::try_from(self.below(bytes.len() as u64)).expect("small");
        let byte = self
            .one(&[
                "\"", "{", "}", "[", "]", ",", ":", "\\", "0", "-", "e", ".", "u", "\n", "\0", "\u{ff}", "t",
            ])
            .as_bytes();
        let byte = byte[byte.len() - 1];
        match self.below(3) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, byte),
            _ => bytes[at] = byte,
        }
        bytes
    }
}

/// The content of a view as serde_json's tree.
fn tree(value: Value<'_>) -> Oracle {
    match value.kind() {
        Kind::Null => Oracle::Null,
        Kind::Bool => value.as_bool().into(),
        Kind::String => value.as_str().map(|text| text.into_owned()).into(),
        Kind::Number => {
            value.number_text().and_then(|text| serde_json::from_str(text).ok()).expect("a number")
        }
        Kind::Array => value.elements().map(tree).collect(),
        Kind::Object => {
            Oracle::Object(value.members().map(|(key, value)| (key.into_owned(), tree(value))).collect())
        }
    }
}

#[test]
fn serde_json_agrees() {
    let mut random = Random(0x746f_6f6c_6761_7465);
    let mut scratch = Scratch::new();
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..50_000 {
        let text = random.value(4);
        let text = if case % 2 == 0 { text.into_bytes() } else { random.damage(&text) };
        let oracle = serde_json::from_slice::<Oracle>(&text);
        match (validate(&text, &mut scratch, &JsonLimits::default()), oracle) {
            (Ok(value), Ok(oracle)) => {
                assert_eq!(tree(value), oracle, "{}", text.escape_ascii());
                accepted += 1;
            }
            (Ok(_), Err(error)) => panic!("accepted, but {error}: {}", text.escape_ascii()),
            (Err(Malformed::DuplicateKey { .. }), Ok(_)) | (Err(_), Err(_)) => refused += 1,
            (Err(error), Ok(_)) => panic!("{error}: {}", text.escape_ascii()),
        }
    }
    assert!(accepted > 20_000 && refused > 10_000, "{accepted} accepted, {refused} refused");
}
