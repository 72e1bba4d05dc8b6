//! Pins: one meaning, one digest; any change, another; and what was seen and approved decides what is shown and called.

use std::collections::HashSet;

use serde_json::{Map, Number, Value as Json, json};
use toolgate_core::identity::Identity;
use toolgate_core::mcp::json::{JsonLimits, Scratch, validate};
use toolgate_core::pin::{
    Definition, Digest, HiddenCharacters, Kind, Limited, Limits, Mode, Pinning, Pins, Seen, Verdict, hidden,
};

fn read(text: &str) -> Definition {
    let value = validate(text.as_bytes(), &mut Scratch::new(), &JsonLimits::default());
    Definition::read(value.unwrap_or_else(|error| panic!("{text}: {error}")))
}

#[test]
fn canonical_forms() {
    let table = [
        (r#" { "b" : 1 , "a" : [ true , null , "x" ] } "#, r#"{"a":[true,null,"x"],"b":1}"#),
        (r#"{"name":"\u0061\/\u00e9\ud83d\ude00"}"#, "{\"name\":\"a/\u{e9}\u{1f600}\"}"),
        (r#""\u0000\u001f\b\f\n\r\t\"\\""#, r#""\u0000\u001f\b\f\n\r\t\"\\""#),
        (r#"{"":{},"\"":[],"a":[[]]}"#, r#"{"":{},"\"":[],"a":[[]]}"#),
        ("[0,-0,0.0,0e9,-0.0e-5]", "[0,0,0,0,0]"),
        ("[1,1.0,10e-1,0.1e1,1E0]", "[1,1,1,1,1]"),
        ("[100,1e2,-12.25,-1225e-2,0.5,5e-1]", "[100,100,-12.25,-12.25,0.5,0.5]"),
        ("[9007199254740993,9007199254740992]", "[9007199254740993,9007199254740992]"),
        (
            "[1e20,1e21,15e30,1.5e31,1e-20,1e-22]",
            "[100000000000000000000,1e21,15e30,15e30,0.00000000000000000001,1e-22]",
        ),
    ];
    for (text, expected) in table {
        let got = read(text);
        assert_eq!(got.text, expected, "{text}");
        assert_eq!(read(&got.text), got, "canonical is canonical: {text}");
        assert_eq!(got.digest, Digest::of(expected));
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128;
        usize::try_from(wide >> 64).expect("below the bound")
    }

    fn text(&mut self) -> String {
        const CHARACTERS: [char; 16] = [
            'a',
            'b',
            'Z',
            ' ',
            '"',
            '\\',
            '/',
            '\n',
            '\t',
            '\u{1}',
            '\u{7f}',
            '\u{e9}',
            '\u{202e}',
            '\u{20ac}',
            '\u{1f600}',
            '\u{e0041}',
        ];
        (0..self.below(6)).map(|_| CHARACTERS[self.below(CHARACTERS.len())]).collect()
    }

    fn value(&mut self, depth: usize) -> Json {
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => Json::Null,
            1 => Json::Bool(self.below(2) == 0),
            2 => Json::Number(Number::from(self.below(1 << 40) as i64 - (1 << 39))),
            3 => json!(self.below(100_000) as f64 / 64.0),
            4 => Json::String(self.text()),
            5 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => {
                let members = (0..self.below(5)).map(|_| (self.text(), self.value(depth - 1)));
                Json::Object(members.collect::<Map<_, _>>())
            }
        }
    }

    /// The same value in other words: order, white space, escapes, numbers.
    fn respelled(&mut self, value: &Json, out: &mut String) {
        out.push_str(["", " ", "\n\t"][self.below(3)]);
        match value {
            Json::Object(members) => {
                let mut order: Vec<_> = members.iter().collect();
                for index in (1..order.len()).rev() {
                    order.swap(index, self.below(index + 1));
                }
                out.push('{');
                for (index, (key, value)) in order.into_iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { " ," });
                    self.spelled(key, out);
                    out.push_str([":", " : "][self.below(2)]);
                    self.respelled(value, out);
                }
                out.push('}');
            }
            Json::Array(elements) => {
                out.push('[');
                for (index, value) in elements.iter().enumerate() {
                    out.push_str(if index == 0 { "" } else { "," });
                    self.respelled(value, out);
                }
                out.push(']');
            }
            Json::String(text) => self.spelled(text, out),
            Json::Number(number) => {
                let text = number.to_string();
                let has_point = text.contains('.');
                out.push_str(&match self.below(3) {
                    0 if has_point => format!("{text}00e0"),
                    0 => format!("{text}.0"),
                    1 if !has_point => format!("{text}0e-1"),
                    _ => text,
                });
            }
            Json::Null | Json::Bool(_) => out.push_str(&value.to_string()),
        }
        out.push_str(["", " "][self.below(2)]);
    }

    fn spelled(&mut self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            let must = matches!(character, '"' | '\\' | '\0'..='\u{1f}');
            if must || self.below(3) == 0 {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&if self.below(2) == 0 {
                        format!("\\u{unit:04x}")
                    } else {
                        format!("\\u{unit:04X}")
                    });
                }
            } else {
                out.push(character);
            }
        }
        out.push('"');
    }

    /// Another value: one place in it is changed.
    fn changed(&mut self, value: &Json) -> Json {
        match value {
            Json::Object(members) if !members.is_empty() => {
                let mut members = members.clone();
                let key = members.keys().nth(self.below(members.len())).expect("one of them").clone();
                match self.below(3) {
                    0 => drop(members.remove(&key)),
                    1 => {
                        let value = members.remove(&key).expect("it is there");
                        members.insert(format!("{key}~"), value);
                    }
                    _ => {
                        let other = self.changed(&members[&key]);
                        members.insert(key, other);
                    }
                }
                Json::Object(members)
            }
            Json::Array(elements) if !elements.is_empty() => {
                let mut elements = elements.clone();
                let place = self.below(elements.len());
                elements[place] = self.changed(&elements[place]);
                Json::Array(elements)
            }
            Json::String(text) => json!(format!("{text}\u{200b}")),
            Json::Number(number) => json!(number.as_f64().expect("a double") + 1.0),
            Json::Bool(value) => json!(!value),
            Json::Null => json!(0),
            Json::Object(_) => json!([]),
            Json::Array(_) => json!({}),
        }
    }
}

#[test]
fn the_same_meaning_has_the_same_digest_and_any_change_another() {
    let mut random = Random(4711);
    let mut forms = HashSet::new();
    let (mut respelled, mut changed) = (0, 0);
    for _ in 0..3_000 {
        let value = random.value(4);
        let spelled = value.to_string();
        let one = read(&spelled);
        for _ in 0..3 {
            let mut text = String::new();
            random.respelled(&value, &mut text);
            let other = read(&text);
            assert_eq!(other, one, "{text}");
            respelled += usize::from(text != spelled);
        }
        let mut other = value.clone();
        for _ in 0..3 {
            let next = random.changed(&other);
            assert_ne!(read(&next.to_string()).digest, read(&other.to_string()).digest, "{other} -> {next}");
            changed += 1;
            other = next;
        }
        // What it says is what was said, by another reader.
        let back: Json = serde_json::from_str(&one.text).expect("JSON");
        assert_eq!(read(&back.to_string()).text, one.text);
        forms.insert(one.text);
    }
    assert!(forms.len() > 1_000 && respelled > 5_000 && changed == 9_000, "{} {respelled}", forms.len());
}

#[test]
fn hidden_characters_are_found_and_shown() {
    let table = [
        ("plain text, caf\u{e9}, \u{4e2d}\u{6587}\n\ttabbed\r\n", false),
        (
            "warning \u{26a0}\u{fe0f}, key 1\u{fe0f}\u{20e3}, \u{1f469}\u{200d}\u{1f4bb}, \u{2764}\u{fe0f}\u{200d}\u{1f525}",
            false,
        ),
        ("bidi \u{202e}override", true),
        ("isolate \u{2066}x\u{2069}", true),
        ("mark \u{200f}", true),
        ("zero\u{200b}width", true),
        ("join\u{200d}er", true),
        ("\u{26a0}\u{200d}a joiner before a letter", true),
        ("letter\u{fe0f}", true),
        ("two \u{26a0}\u{fe0f}\u{fe0f}", true),
        ("tags \u{e0041}\u{e007f}", true),
        ("selector \u{1f600}\u{e0101}", true),
        ("soft\u{ad}hyphen", true),
        ("byte order \u{feff}mark", true),
        ("filler \u{3164}", true),
        ("line\u{2028}separator", true),
        ("escape \u{1b}[2J", true),
        ("c1 \u{9b}2J", true),
        ("nul \u{0}", true),
        ("a backslash before \\u and \\b", false),
    ];
    for (text, is_hiding) in table {
        assert_eq!(hidden::characters(text).any(|(_, hidden)| hidden), is_hiding, "{text:?}");
        let definition = read(&json!({ "name": "t", "description": text }).to_string());
        assert_eq!(definition.is_hiding, is_hiding, "{text:?}");
        assert_eq!(read(&json!({ text: 1 }).to_string()).is_hiding, is_hiding, "as a key: {text:?}");
        let shown = hidden::escaped(text);
        assert!(!hidden::characters(&shown).any(|(_, hidden)| hidden), "{shown:?}");
        assert_eq!(shown == text, !is_hiding && !text.contains('\r'), "{shown:?}");
        let shown = hidden::escaped_json(&json!(text).to_string());
        assert!(!hidden::characters(&shown).any(|(_, hidden)| hidden), "{shown:?}");
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
    }
    assert_eq!(hidden::escaped("a\u{202e}b\u{e0041}"), "a\\u{202e}b\\u{e0041}");
    assert_eq!(hidden::escaped_json("\"\u{e0041}\""), "\"\\udb40\\udc41\"");
}

const LIMITS: Limits = Limits {
    per_server_max: 8,
    per_name_max: 3,
    bytes_max: 200,
    per_server_bytes_max: 1_000,
    callers_max: 3,
};

fn identity(name: &str) -> Identity {
    Identity::new("example.org", "default", name).expect("a name")
}

fn seen(name: &str, description: &str) -> Seen {
    Seen::of(Kind::Tool, name, read(&json!({ "name": name, "description": description }).to_string()))
}

/// A server, its pins, and what its callers are given.
struct Scene {
    pins: Pins,
    server: Identity,
    pinning: Pinning,
}

impl Scene {
    fn new(mode: Mode) -> Self {
        let pinning = Pinning { mode, hidden: HiddenCharacters::Deny };
        Self { pins: Pins::default(), server: identity("docs"), pinning }
    }

    fn lists(&mut self, caller: &str, description: &str) -> Vec<Limited> {
        let all = vec![seen("t", description)];
        self.pins.observe(&self.server, &identity(caller), all, self.pinning, &LIMITS).1
    }

    fn approve(&mut self, description: &str, approved: bool) {
        let digest = seen("t", description).digest;
        assert!(self.pins.set(&self.server, Kind::Tool, "t", digest, approved), "{description}");
    }

    fn call(&self, caller: &str) -> Verdict {
        self.pins.call(&self.server, &identity(caller), (Kind::Tool, "t"), self.pinning.hidden)
    }

    fn shown(&self, description: &str) -> Verdict {
        self.pins.shown(&self.server, &seen("t", description), self.pinning.hidden)
    }
}

#[test]
fn nothing_is_called_or_shown_before_it_is_approved() {
    let mut scene = Scene::new(Mode::Enforce);
    assert_eq!((scene.call("x"), scene.shown("one")), (Verdict::NotApproved, Verdict::NotApproved));
    scene.lists("x", "one");
    assert_eq!((scene.call("x"), scene.shown("one")), (Verdict::NotApproved, Verdict::NotApproved));
    scene.approve("one", true);
    assert_eq!((scene.call("x"), scene.shown("one")), (Verdict::Approved, Verdict::Approved));
    assert_eq!(scene.call("who-never-listed"), Verdict::Approved);
    scene.approve("one", false);
    assert_eq!((scene.call("x"), scene.shown("one")), (Verdict::NotApproved, Verdict::NotApproved));
}

#[test]
fn what_has_changed_is_nobodys_until_it_is_approved_or_as_before() {
    let mut scene = Scene::new(Mode::FirstUse);
    scene.lists("x", "one");
    scene.lists("y", "one");
    assert_eq!((scene.call("x"), scene.shown("one")), (Verdict::Approved, Verdict::Approved));
    scene.lists("y", "two");
    for caller in ["x", "y", "who-never-listed"] {
        assert_eq!(scene.call(caller), Verdict::Changed, "{caller}");
    }
    assert_eq!((scene.shown("one"), scene.shown("two")), (Verdict::Changed, Verdict::Changed));
    // It changes again: it is still not what y was shown.
    scene.lists("y", "three");
    assert_eq!(scene.call("x"), Verdict::Changed);
    let as_before = {
        let mut scene = Scene { pins: scene.pins.clone(), server: scene.server.clone(), ..scene };
        scene.lists("y", "one");
        scene
    };
    assert_eq!((as_before.call("x"), as_before.shown("one")), (Verdict::Approved, Verdict::Approved));
    scene.approve("three", true);
    assert_eq!((scene.call("x"), scene.call("y")), (Verdict::Approved, Verdict::Approved));
    scene.pins.forget(&scene.server.clone(), Kind::Tool, "t", seen("t", "two").digest);
    assert_eq!(scene.call("who-never-listed"), Verdict::Approved);
}

#[test]
fn who_is_given_another_definition_from_the_start_waits_alone() {
    let mut scene = Scene::new(Mode::FirstUse);
    scene.lists("x", "for x");
    scene.lists("y", "for y");
    assert_eq!((scene.call("x"), scene.call("y")), (Verdict::Approved, Verdict::NotApproved));
    assert_eq!((scene.shown("for x"), scene.shown("for y")), (Verdict::Approved, Verdict::Changed));
    assert_eq!(scene.call("who-never-listed"), Verdict::Changed, "which they have is not known");
    scene.approve("for y", true);
    for caller in ["x", "y", "who-never-listed"] {
        assert_eq!(scene.call(caller), Verdict::Approved, "{caller}");
    }
    // Each of them may be given either: both are approved.
    scene.lists("x", "for y");
    assert_eq!(scene.call("x"), Verdict::Approved);
}

#[test]
fn first_use_is_once() {
    let mut scene = Scene::new(Mode::FirstUse);
    scene.lists("x", "one");
    scene.approve("one", false);
    scene.lists("x", "one");
    scene.lists("y", "two");
    assert_eq!((scene.call("x"), scene.call("y")), (Verdict::NotApproved, Verdict::NotApproved));
}

#[test]
fn hidden_characters_are_denied_whoever_approved_them() {
    let hiding = "one\u{200b}";
    let mut scene = Scene::new(Mode::FirstUse);
    scene.lists("x", hiding);
    assert_eq!((scene.call("x"), scene.shown(hiding)), (Verdict::NotApproved, Verdict::Hidden));
    scene.approve(hiding, true);
    assert_eq!((scene.call("x"), scene.shown(hiding)), (Verdict::Hidden, Verdict::Hidden));
    scene.pinning.hidden = HiddenCharacters::Allow;
    assert_eq!((scene.call("x"), scene.shown(hiding)), (Verdict::Approved, Verdict::Approved));
}

#[test]
fn what_cannot_be_kept_is_not_approved_and_a_change_all_the_same() {
    let large = "x".repeat(LIMITS.bytes_max);
    let table: [(&[&str], Limited); 2] =
        [(&[&large], Limited::Bytes), (&["two", "three", "four"], Limited::PerName)];
    for (descriptions, limit) in table {
        let mut scene = Scene::new(Mode::FirstUse);
        scene.lists("x", "one");
        let limited: Vec<_> =
            descriptions.iter().flat_map(|description| scene.lists("x", description)).collect();
        assert_eq!(limited, [limit]);
        assert_eq!((scene.call("x"), scene.call("y")), (Verdict::Changed, Verdict::Changed), "{limit:?}");
        // A caller's own, from the start.
        let mut scene = Scene::new(Mode::FirstUse);
        scene.lists("x", "one");
        assert_eq!(scene.lists("y", &large), [Limited::Bytes]);
        assert_eq!((scene.call("x"), scene.call("y")), (Verdict::Approved, Verdict::NotApproved));
    }
}

#[test]
fn callers_beyond_the_limit_are_not_told_from_a_change() {
    let mut scene = Scene::new(Mode::FirstUse);
    for caller in ["x", "y", "z"] {
        assert_eq!(scene.lists(caller, "one"), []);
    }
    assert_eq!(scene.lists("one-more", "one"), [Limited::Callers]);
    assert_eq!(scene.call("one-more"), Verdict::Approved);
    scene.lists("one-more", "two");
    assert_eq!(scene.call("x"), Verdict::Changed);
}

#[test]
fn renaming_on_every_list_fills_no_more_than_its_share() {
    let (docs, other) = (identity("docs"), identity("other"));
    let pinning = Pinning { mode: Mode::FirstUse, hidden: HiddenCharacters::Deny };
    let mut pins = Pins::default();
    for round in 0..100 {
        let all = (0..5).map(|tool| seen(&format!("t-{round}-{tool}"), "x")).collect();
        let (news, limited) = pins.observe(&docs, &identity("x"), all, pinning, &LIMITS);
        assert!(news.len() <= LIMITS.per_server_max);
        assert_eq!(limited.is_empty(), round == 0, "{round}: {limited:?}");
    }
    assert_eq!((pins.of_server(&docs).count(), pins.room(&docs, &LIMITS)), (LIMITS.per_server_max, 0));
    assert_eq!(pins.room(&other, &LIMITS), LIMITS.per_server_max, "another server has its own");
    let (name, digest) = {
        let (_, name, pin) = pins.of_server(&docs).next().expect("one of them");
        (name.clone(), pin.known()[0].digest)
    };
    pins.forget(&docs, Kind::Tool, &name, digest);
    assert_eq!(pins.room(&docs, &LIMITS), 1);
}
