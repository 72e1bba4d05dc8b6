//! What a server asks of its caller within an answer or a notification: `inputRequests` of a result that is not complete
//! (MCP 2026-07-28, `InputRequiredResult`; of tasks too), and URLs to open (2025-11-25, `URLElicitationRequiredError`).

use std::borrow::Cow;

use super::json::{Kind, Malformed, Value};
use super::method::Method;

/// The code of an error that asks to open URLs.
const URL_ELICITATION_REQUIRED_CODE: f64 = -32042.0;

/// Members of a result, and of a notification's `params`, that ask: a key that differs from one of them only in case is
/// what a lenient reader would take for it.
pub(super) const RESULT: &[&str] = &["resultType", "inputRequests", "requestState"];

/// What is asked within a message, what the caller is to come back with, and whether it may be a task.
#[derive(Debug, Clone, Copy, Default)]
pub struct Input<'b> {
    pub(super) requests: Option<Value<'b>>,
    pub(super) state: Option<Value<'b>>,
    pub(super) error: Option<Value<'b>>,
    pub(super) names_task: bool,
}

impl<'b> Input<'b> {
    /// The method of each request.
    ///
    /// # Errors
    /// [`Malformed`]: what is asked cannot be told, or two readers would tell it in two ways.
    pub fn methods(&self) -> Result<Vec<Cow<'b, str>>, Malformed> {
        let mut methods = Vec::new();
        if let Some(requests) = self.requests {
            let refused = |value: Value<'_>| Malformed::Member {
                offset: value.offset(),
                member: "inputRequests",
                expected: "an object of requests, each with a `method`",
            };
            if requests.kind() != Kind::Object {
                return Err(refused(requests));
            }
            for (_, request) in requests.members() {
                let method = request.get("method").and_then(Value::as_str);
                let method = method.filter(|_| !request.collides("method"));
                methods.push(method.ok_or_else(|| refused(request))?);
            }
        }
        if self.error.is_some_and(asks_for_urls) {
            methods.push(Cow::Borrowed(Method::ElicitationCreate.as_str()));
        }
        Ok(methods)
    }

    /// What the caller is to come back with: its text.
    ///
    /// # Errors
    /// [`Malformed`]: it is no text.
    pub fn state(&self) -> Result<Option<Cow<'b, str>>, Malformed> {
        let Some(state) = self.state else { return Ok(None) };
        let expected = "a string";
        let refused = || Malformed::Member { offset: state.offset(), member: "requestState", expected };
        state.as_str().map(Some).ok_or_else(refused)
    }

    /// Whether the result has a member that may be a task, or name one.
    #[must_use]
    pub fn names_task(&self) -> bool {
        self.names_task
    }

    /// Whether nothing is asked, as nearly always.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.requests.is_none() && self.state.is_none() && self.error.is_none()
    }
}

fn asks_for_urls(error: Value<'_>) -> bool {
    let code = error.get("code").and_then(Value::number_text);
    let code: Option<f64> = code.and_then(|code| code.parse().ok());
    code == Some(URL_ELICITATION_REQUIRED_CODE) || error.collides("code")
}

#[cfg(test)]
mod tests {
    use super::super::{JsonLimits, Scratch, reply_envelope};

    /// Members of a message, the methods that it asks for and its state; none of it: it is refused.
    fn check(members: &str, expected: Option<(&[&str], Option<&str>)>) {
        let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
        let mut scratch = Scratch::new();
        let read = reply_envelope(text.as_bytes(), &mut scratch, &JsonLimits::default());
        let told = read.and_then(|(.., input)| Ok((input.methods()?, input.state()?)));
        let told = told.as_ref().ok();
        let told =
            told.map(|(methods, state)| (methods.iter().map(|m| &**m).collect::<Vec<_>>(), state.as_deref()));
        assert_eq!(told, expected.map(|(methods, state)| (methods.to_vec(), state)), "{text}");
    }

    #[test]
    fn what_is_asked_within_a_message() {
        let none: Option<(&[&str], Option<&str>)> = Some((&[], None));
        check(r#""id":1,"result":{}"#, none);
        check(r#""id":1,"result":{"resultType":"complete","content":[{"inputRequests":1}]}"#, none);
        check(
            r#""id":1,"result":{"inputRequests":{"a":{"method":"roots/list"},"b":{"method":"sampling\/createMessage"}},"requestState":"s\u0041"}"#,
            Some((&["roots/list", "sampling/createMessage"], Some("sA"))),
        );
        // Whatever type it says it has.
        check(
            r#""id":1,"result":{"resultType":"complete","inputRequests":{"a":{"method":"roots/list"}}}"#,
            Some((&["roots/list"], None)),
        );
        check(
            r#""method":"notifications/tasks","params":{"inputRequests":{"a":{"method":"roots/list"}}}"#,
            Some((&["roots/list"], None)),
        );
        for code in ["-32042", "-32042.0", "-3.2042e4"] {
            let asks = format!(r#""id":1,"error":{{"code":{code},"message":"m"}}"#);
            check(&asks, Some((&["elicitation/create"], None)));
        }
        check(r#""id":1,"error":{"code":-32041,"message":"m"}"#, none);
        check(r#""id":1,"error":{"code":0,"Code":-32042}"#, Some((&["elicitation/create"], None)));
        for refused in [
            r#""id":1,"result":{"inputRequests":[]}"#,
            r#""id":1,"result":{"inputRequests":{"a":{}}}"#,
            r#""id":1,"result":{"inputRequests":{"a":"roots/list"}}"#,
            r#""id":1,"result":{"inputRequests":{"a":{"method":"roots/list","Method":"x"}}}"#,
            r#""id":1,"result":{"InputRequests":{}}"#,
            r#""id":1,"result":{"ResultType":"input_required"}"#,
            r#""id":1,"result":{"inputRequests":{},"inputRequests":{}}"#,
            r#""id":1,"result":{"requestState":1}"#,
            r#""id":1,"result":{"REQUESTSTATE":"s"}"#,
        ] {
            check(refused, None);
        }
    }

    #[test]
    fn a_result_that_may_be_a_task_says_so() {
        let table = [
            (r#""id":1,"result":{"task":{"taskId":"a"}}"#, true),
            (r#""id":1,"result":{"ta\u0073k":{}}"#, true),
            (r#""id":1,"result":{"resultType":"task","task\u0049d":"a"}"#, true),
            (r#""id":1,"result":{"content":[{"task":{"taskId":"a"}}]}"#, false),
            (r#""id":1,"result":{"tasks":[]}"#, false),
            (r#""method":"x","params":{"task":{}}"#, false),
        ];
        for (members, expected) in table {
            let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
            let (.., input) =
                reply_envelope(text.as_bytes(), &mut Scratch::new(), &JsonLimits::default()).unwrap();
            assert_eq!(input.names_task(), expected, "{text}");
        }
    }
}
