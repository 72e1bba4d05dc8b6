//! What other readers of JSON make of a message: servers are written in many languages. Each reads the whole message; what
//! it would act on must be what was decided on, numbers as they are written.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Formatter};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use simd_json::StaticNode;
use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _};
use toolgate_core::mcp::json::{JsonLimits, Kind, Scratch, Value};
use toolgate_core::mcp::{Id, Message, parse};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

/// A value as a reader has it.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    /// Of a reader that keeps integers.
    Whole(i128),
    /// Of a reader that keeps doubles.
    Double(f64),
    Text(String),
    Array(Vec<Tree>),
    Object(BTreeMap<String, Tree>),
}

/// What a server acts on.
#[derive(Debug)]
pub(crate) struct Reading {
    method: Option<String>,
    name: Option<String>,
    id: Option<Tree>,
    arguments: Option<Tree>,
}

impl Tree {
    fn get(&self, key: &str) -> Option<&Self> {
        if let Self::Object(members) = self { members.get(key) } else { None }
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// Whether another reader has the same; `self` has its numbers as they are written.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(one), Self::Bool(other)) => one == other,
            (Self::Text(one), Self::Text(other)) | (Self::Number(one), Self::Number(other)) => one == other,
            (Self::Number(text), Self::Whole(whole)) => text.parse() == Ok(*whole),
            (Self::Number(text), Self::Double(double)) => {
                text.parse::<f64>().is_ok_and(|exact| exact.to_bits() == double.to_bits())
            }
            (Self::Array(one), Self::Array(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.is(other))
            }
            (Self::Object(one), Self::Object(other)) => {
                one.len() == other.len()
                    && one.iter().zip(other).all(|(one, other)| one.0 == other.0 && one.1.is(other.1))
            }
            _ => false,
        }
    }

    /// Whether there is a whole number beyond 64 bits.
    pub(crate) fn has_big(&self) -> bool {
        match self {
            Self::Number(text) => {
                text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit())
                    && text.parse::<u64>().is_err()
                    && text.parse::<i64>().is_err()
            }
            Self::Array(items) => items.iter().any(Self::has_big),
            Self::Object(members) => members.values().any(Self::has_big),
            Self::Null | Self::Bool(_) | Self::Whole(_) | Self::Double(_) | Self::Text(_) => false,
        }
    }

    /// What a server that looks for exact names acts on.
    pub(crate) fn reading(&self) -> Reading {
        let params = self.get("params");
        Reading {
            method: self.get("method").and_then(Self::text).map(str::to_owned),
            name: params.and_then(|params| params.get("name")?.text()).map(str::to_owned),
            id: self.get("id").cloned(),
            arguments: params.and_then(|params| params.get("arguments")).cloned(),
        }
    }
}

impl Reading {
    /// Whether another reader acts on the same; `self` has its numbers as they are written.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same = |one: &Option<Tree>, other: &Option<Tree>| match (one, other) {
            (Some(one), Some(other)) => one.is(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.method == other.method
            && self.name == other.name
            && same(&self.id, &other.id)
            && same(&self.arguments, &other.arguments)
    }

    pub(crate) fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }
}

/// What is decided on; none: it is refused.
pub(crate) fn ours(text: &[u8]) -> Option<Reading> {
    SCRATCH.with_borrow_mut(|scratch| {
        let message = parse(text, scratch, &JsonLimits::default()).ok()?;
        let id = |id: &Id<'_>| match id {
            Id::Number { .. } => Tree::Number(id.raw().to_owned()),
            Id::String { value, .. } => Tree::Text(value.to_string()),
        };
        Some(match &message {
            Message::Request(call) | Message::Notification(call) => {
                // `completion/complete` has its names elsewhere.
                let params = || call.params.and_then(|params| params.get("name")?.as_str()).map(Into::into);
                let is_elsewhere = &*call.method_name == "completion/complete";
                Reading {
                    method: Some(call.method_name.to_string()),
                    name: if is_elsewhere { params() } else { call.name.as_deref().map(str::to_owned) },
                    id: call.id.as_ref().map(id),
                    arguments: call.arguments.map(tree),
                }
            }
            Message::Response(response) => {
                Reading { method: None, name: None, id: Some(id(&response.id)), arguments: None }
            }
        })
    })
}

fn tree(value: Value<'_>) -> Tree {
    match value.kind() {
        Kind::Null => Tree::Null,
        Kind::Bool => Tree::Bool(value.as_bool() == Some(true)),
        Kind::String => Tree::Text(value.as_str().unwrap_or_default().into_owned()),
        Kind::Number => Tree::Number(value.number_text().unwrap_or_default().to_owned()),
        Kind::Array => Tree::Array(value.elements().map(tree).collect()),
        Kind::Object => {
            Tree::Object(value.members().map(|(key, value)| (key.into_owned(), tree(value))).collect())
        }
    }
}

/// The members of an object in the order in which they stand, all of them.
struct Members<'b>(Vec<(String, &'b RawValue)>);

impl<'b> Deserialize<'b> for Members<'b> {
    fn deserialize<D: Deserializer<'b>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'b> Visitor<'b> for All {
            type Value = Members<'b>;

            fn expecting(&self, to: &mut Formatter<'_>) -> fmt::Result {
                to.write_str("an object")
            }

            fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Members<'b>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(All)
    }
}

/// serde_json, the last of several keys.
pub(crate) fn serde_json(text: &[u8]) -> Result<Tree, String> {
    let whole: &RawValue = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    raw_tree(whole).map_err(|error| error.to_string())
}

fn raw_tree(raw: &RawValue) -> serde_json::Result<Tree> {
    let text = raw.get();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text)?;
            let members = members.into_iter().map(|(key, value)| Ok((key, raw_tree(value)?)));
            Tree::Object(members.collect::<serde_json::Result<_>>()?)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            Tree::Array(items.into_iter().map(raw_tree).collect::<serde_json::Result<_>>()?)
        }
        Some(b'"') => Tree::Text(serde_json::from_str(text)?),
        Some(b'n') => Tree::Null,
        Some(b't' | b'f') => Tree::Bool(text == "true"),
        _number => Tree::Number(text.to_owned()),
    })
}

/// As Go's encoding/json fills a struct: names in any case, the last one wins. Arguments are a map, with names as they are.
pub(crate) fn folding(text: &[u8]) -> Result<Reading, String> {
    let read = || -> serde_json::Result<Reading> {
        let message: Members<'_> = serde_json::from_slice(text)?;
        let params = message.last("params").map(RawValue::get).filter(|text| text.starts_with('{'));
        let params: Option<Members<'_>> = params.map(serde_json::from_str).transpose()?;
        let in_params = |name: &str| params.as_ref().and_then(|params| params.last(name));
        let text = |raw: Option<&RawValue>| raw.and_then(|raw| serde_json::from_str(raw.get()).ok());
        Ok(Reading {
            method: text(message.last("method")),
            name: text(in_params("name")),
            id: message.last("id").map(raw_tree).transpose()?,
            arguments: in_params("arguments").map(raw_tree).transpose()?,
        })
    };
    read().map_err(|error| error.to_string())
}

impl<'b> Members<'b> {
    fn last(&self, name: &str) -> Option<&'b RawValue> {
        let mut members = self.0.iter().rev();
        members.find(|(key, _)| key.chars().map(folded).eq(name.chars())).map(|(_, value)| *value)
    }
}

/// The folding of a single character that leads to a letter of a protocol's name.
fn folded(character: char) -> char {
    match character {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    }
}

/// simd-json, whose numbers are integers of 64 bits and doubles.
pub(crate) fn simd_json(text: &[u8]) -> Result<Tree, String> {
    fn tree(value: &simd_json::BorrowedValue<'_>) -> Tree {
        match value {
            simd_json::BorrowedValue::Static(StaticNode::Null) => Tree::Null,
            simd_json::BorrowedValue::Static(StaticNode::Bool(value)) => Tree::Bool(*value),
            simd_json::BorrowedValue::Static(StaticNode::I64(whole)) => Tree::Whole((*whole).into()),
            simd_json::BorrowedValue::Static(StaticNode::U64(whole)) => Tree::Whole((*whole).into()),
            simd_json::BorrowedValue::Static(StaticNode::F64(double)) => Tree::Double(*double),
            simd_json::BorrowedValue::String(text) => Tree::Text(text.to_string()),
            simd_json::BorrowedValue::Array(items) => Tree::Array(items.iter().map(tree).collect()),
            simd_json::BorrowedValue::Object(members) => {
                Tree::Object(members.iter().map(|(key, value)| (key.to_string(), tree(value))).collect())
            }
        }
    }
    let mut text = text.to_vec();
    let value = simd_json::to_borrowed_value(&mut text).map_err(|error| error.to_string())?;
    Ok(tree(&value))
}

/// sonic-rs, which keeps numbers as they are written where it is asked to.
pub(crate) fn sonic_rs(text: &[u8]) -> Result<Tree, String> {
    fn tree(value: &sonic_rs::Value) -> Tree {
        if let Some(number) = value.as_raw_number() {
            return Tree::Number(number.as_str().to_owned());
        }
        if let Some(items) = value.as_array() {
            return Tree::Array(items.iter().map(tree).collect());
        }
        if let Some(members) = value.as_object() {
            return Tree::Object(members.iter().map(|(key, value)| (key.to_owned(), tree(value))).collect());
        }
        let text = value.as_str().map(|text| Tree::Text(text.to_owned()));
        text.or_else(|| value.as_bool().map(Tree::Bool)).unwrap_or(Tree::Null)
    }
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let mut from = sonic_rs::Deserializer::from_str(text).use_rawnumber();
    let value = sonic_rs::Value::deserialize(&mut from).map_err(|error| error.to_string())?;
    Ok(tree(&value))
}
