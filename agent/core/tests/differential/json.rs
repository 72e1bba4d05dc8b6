//! What the parser accepts, serde_json reads as the same values; what serde_json refuses, the parser refuses.

use serde_json::Value as Oracle;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use toolgate_core::mcp::json::{JsonLimits, Kind, Malformed, Scratch, Value, validate};
use toolgate_core::mcp::{Id, Message, parse};

thread_local! {
    /// Used again, as the agent does: nothing of one text may be left for the next.
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new());
}

fn name(error: &Malformed) -> String {
    format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// The content of a view as serde_json's tree.
fn tree(value: Value<'_>) -> Oracle {
    match value.kind() {
        Kind::Null => Oracle::Null,
        Kind::Bool => value.as_bool().into(),
        Kind::String => value.as_str().map(Cow::into_owned).into(),
        Kind::Number => {
            value.number_text().and_then(|text| serde_json::from_str(text).ok()).expect("a number")
        }
        Kind::Array => value.elements().map(tree).collect(),
        Kind::Object => {
            Oracle::Object(value.members().map(|(key, value)| (key.into_owned(), tree(value))).collect())
        }
    }
}

/// One text: the class that it falls into.
///
/// # Panics
/// Where serde_json reads something else.
pub(crate) fn text(text: &[u8]) -> String {
    let shown = || text.escape_ascii().to_string();
    let limits = JsonLimits::default();
    let oracle = serde_json::from_slice::<Oracle>(text);
    SCRATCH.with_borrow_mut(|scratch| match (validate(text, scratch, &limits), oracle) {
        (Ok(value), Ok(oracle)) => {
            assert_eq!(tree(value), oracle, "{}", shown());
            // Its bytes, without the white space around them, are the value's.
            let raw = serde_json::from_slice::<&RawValue>(text).map(RawValue::get).ok();
            assert_eq!(Some(value.text()), raw, "{}", shown());
            // What serde_json writes of it is read as that; its doubles may differ from those it read in the last bit.
            let written = oracle.to_string();
            let oracle = serde_json::from_str::<Oracle>(&written).ok();
            let again = validate(written.as_bytes(), scratch, &limits);
            assert_eq!(again.as_ref().map(|value| value.text()), Ok(&*written));
            assert_eq!(again.ok().map(tree), oracle, "{written}");
            "accepted".to_owned()
        }
        (Ok(_), Err(error)) => panic!("accepted, but {error}: {}", shown()),
        (Err(error), Err(_)) => format!("refused: {}", name(&error)),
        // Where serde_json is not strict, or has another limit.
        (
            Err(
                error
                @ (Malformed::DuplicateKey { .. } | Malformed::Depth { .. } | Malformed::Members { .. }),
            ),
            Ok(_),
        ) => format!("refused, not by serde_json: {}", name(&error)),
        (Err(error), Ok(_)) => panic!("{error}: {}", shown()),
    })
}

/// A message as serde reads it: numbers and arguments by their very bytes.
#[derive(serde::Deserialize)]
struct Envelope<'b> {
    jsonrpc: Cow<'b, str>,
    #[serde(borrow)]
    id: Option<&'b RawValue>,
    method: Option<String>,
    #[serde(borrow)]
    params: Option<&'b RawValue>,
    #[serde(borrow)]
    error: Option<&'b RawValue>,
}

/// One message: the class that it falls into.
///
/// # Panics
/// Where serde_json reads another one.
pub(crate) fn message(text: &[u8]) -> String {
    let shown = || text.escape_ascii().to_string();
    let limits = JsonLimits::default();
    SCRATCH.with_borrow_mut(|scratch| {
        let message = match parse(text, scratch, &limits) {
            Ok(message) => message,
            Err(error) => return format!("refused: {}", name(&error)),
        };
        let envelope: Envelope<'_> = match serde_json::from_slice(text) {
            Ok(envelope) => envelope,
            Err(error) => panic!("accepted, but {error}: {}", shown()),
        };
        assert_eq!(envelope.jsonrpc, "2.0", "{}", shown());
        let id = match &message {
            Message::Request(call) | Message::Notification(call) => call.id.as_ref(),
            Message::Response(response) => Some(&response.id),
        };
        assert_eq!(id.map(Id::raw), envelope.id.map(RawValue::get), "{}", shown());
        let value = match id {
            None => None,
            Some(Id::Number { value, .. }) => Some(Oracle::from(*value)),
            Some(Id::String { value, .. }) => Some(Oracle::from(&**value)),
        };
        let read = envelope.id.map(|id| serde_json::from_str(id.get()).expect("an id"));
        assert_eq!(value, read, "{}", shown());
        let call = match &message {
            Message::Request(call) | Message::Notification(call) => call,
            Message::Response(response) => {
                let found = (envelope.method, envelope.error.is_some());
                assert_eq!(found, (None, response.is_error), "{}", shown());
                return "accepted: a response".to_owned();
            }
        };
        assert_eq!(Some(&*call.method_name), envelope.method.as_deref(), "{}", shown());
        assert_eq!(call.params.map(Value::text), envelope.params.map(RawValue::get), "{}", shown());
        let Some(params) = envelope.params else { return "accepted: a call without params".to_owned() };
        let params: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(params.get()).expect("params");
        let raw = |name: &str| params.get(name).copied().map(RawValue::get);
        let string = |name: &str| raw(name).and_then(|raw| serde_json::from_str::<String>(raw).ok());
        assert_eq!(call.arguments.map(Value::text), raw("arguments"), "{}", shown());
        assert_eq!(call.task, raw("task").is_some(), "{}", shown());
        // `completion/complete` has its names elsewhere.
        if &*call.method_name != "completion/complete" {
            assert_eq!(call.name.as_deref(), string("name").as_deref(), "{}", shown());
            assert_eq!(call.uri.as_deref(), string("uri").as_deref(), "{}", shown());
        }
        "accepted: a call with params".to_owned()
    })
}
