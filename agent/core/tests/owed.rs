//! Replies: what a server may say to a request, and what is refused.

use toolgate_core::mcp::json::{JsonLimits, Scratch};
use toolgate_core::mcp::{Envelope, NotOwed, Owed, reply_envelope};

const OWN: Owed<'static> = Owed::Answer { id: "7" };
const RESUMED: Owed<'static> = Owed::Resumed { id: "7" };

fn read(members: &str, look: impl FnOnce(&Envelope<'_>) -> Result<(), NotOwed>) -> Result<(), NotOwed> {
    let text = format!(r#"{{"jsonrpc":"2.0",{members}}}"#);
    let (mut scratch, limits) = (Scratch::new(), JsonLimits::default());
    let (envelope, ..) = reply_envelope(text.as_bytes(), &mut scratch, &limits).expect("a message");
    look(&envelope)
}

/// A reply that is one message, with a status of success and with one of failure.
fn check(owed: Owed<'_>, members: &str, succeeded: Result<(), NotOwed>, failed: Result<(), NotOwed>) {
    let found = [false, true].map(|failed| read(members, |message| owed.admits(message, failed)));
    assert_eq!(found, [succeeded, failed], "{owed:?}: {members}");
}

/// The same, whatever the status.
fn always(owed: Owed<'_>, members: &str, expected: Result<(), NotOwed>) {
    check(owed, members, expected, expected);
}

#[test]
fn a_request_is_owed_its_own_answer() {
    always(OWN, r#""id":7,"result":{}"#, Ok(()));
    always(OWN, r#""id":7,"error":{"code":1,"message":"m"}"#, Ok(()));
    always(OWN, r#""id":null,"error":{}"#, Ok(()));
    always(OWN, r#""error":{}"#, Ok(()));
    for id in ["8", "77", "-7", "\"7\"", "\"\""] {
        always(OWN, &format!(r#""id":{id},"result":{{}}"#), Err(NotOwed::OtherId));
        always(OWN, &format!(r#""id":{id},"error":{{}}"#), Err(NotOwed::OtherId));
    }
    // An error of no request's, as the official Python SDK says it: never a result, and never with 200.
    check(OWN, r#""id":"server-error","error":{}"#, Err(NotOwed::OtherId), Ok(()));
    always(OWN, r#""id":"server-error","result":{}"#, Err(NotOwed::OtherId));
    always(OWN, r#""id":7,"method":"sampling/createMessage""#, Err(NotOwed::Request));
    always(OWN, r#""method":"notifications/progress""#, Err(NotOwed::Notification));
}

#[test]
fn ids_are_equal_by_kind_and_value() {
    for (own, id, expected) in [
        (r#""ab""#, r#""ab""#, Ok(())),
        (r#""ab""#, r#""a\u0062""#, Ok(())),
        (r#""a\u0062""#, r#""ab""#, Ok(())),
        (r#""a\/b""#, r#""a/b""#, Ok(())),
        (r#""a\u0062""#, r#""a\u0063""#, Err(NotOwed::OtherId)),
        (r#""ab""#, r#""aB""#, Err(NotOwed::OtherId)),
        (r#""""#, r#""0""#, Err(NotOwed::OtherId)),
        (r#""1""#, "1", Err(NotOwed::OtherId)),
        ("1", r#""1""#, Err(NotOwed::OtherId)),
        ("9007199254740992", "9007199254740992", Ok(())),
        ("9007199254740991", "9007199254740992", Err(NotOwed::OtherId)),
    ] {
        always(Owed::Answer { id: own }, &format!(r#""id":{id},"result":{{}}"#), expected);
    }
}

#[test]
fn what_was_no_request_is_owed_nothing() {
    // What resumes a stream is answered by one, if at all.
    for owed in [Owed::Nothing, Owed::Stream, RESUMED] {
        always(owed, r#""id":7,"result":{}"#, Err(NotOwed::NoRequest));
        always(owed, r#""id":7,"error":{}"#, Err(NotOwed::NoRequest));
        // Why it failed.
        check(owed, r#""id":null,"error":{}"#, Err(NotOwed::NoRequest), Ok(()));
        check(owed, r#""error":{}"#, Err(NotOwed::NoRequest), Ok(()));
        check(owed, r#""id":"server-error","error":{}"#, Err(NotOwed::NoRequest), Ok(()));
        always(owed, r#""id":7,"method":"ping""#, Err(NotOwed::Request));
        always(owed, r#""method":"notifications/message""#, Err(NotOwed::Notification));
    }
}

#[test]
fn what_is_answered_elsewhere_is_owed_no_message() {
    let owed = Owed::Elsewhere;
    always(owed, r#""id":7,"result":{}"#, Err(NotOwed::Misplaced));
    always(owed, r#""id":7,"error":{}"#, Err(NotOwed::Misplaced));
    check(owed, r#""id":null,"error":{}"#, Err(NotOwed::Misplaced), Ok(()));
    always(owed, r#""id":7,"method":"ping""#, Err(NotOwed::Request));
    always(owed, r#""method":"notifications/message""#, Err(NotOwed::Notification));
    for members in
        [r#""method":"notifications/progress""#, r#""id":7,"method":"ping""#, r#""id":7,"result":{}"#]
    {
        assert_eq!(read(members, |message| owed.admits_event(message, false)), Err(NotOwed::Misplaced));
    }
}

#[test]
fn a_stream_ends_with_the_one_answer() {
    let event = |owed: Owed<'_>, members: &str, before: Result<(), NotOwed>| {
        let found =
            [false, true].map(|answered| read(members, |message| owed.admits_event(message, answered)));
        assert_eq!(found, [before, Err(NotOwed::AfterAnswer)], "{owed:?}: {members}");
    };
    event(OWN, r#""id":7,"result":{}"#, Ok(()));
    event(OWN, r#""id":7,"error":{}"#, Ok(()));
    event(OWN, r#""error":{}"#, Ok(()));
    event(OWN, r#""id":8,"result":{}"#, Err(NotOwed::OtherId));
    event(OWN, r#""id":"server-error","error":{}"#, Err(NotOwed::OtherId));
    // The same of the stream that is resumed in its place.
    event(RESUMED, r#""id":7,"result":{}"#, Ok(()));
    event(RESUMED, r#""id":8,"result":{}"#, Err(NotOwed::OtherId));
    for owed in [OWN, RESUMED, Owed::Nothing, Owed::Stream] {
        event(owed, r#""method":"notifications/progress""#, Ok(()));
        event(owed, r#""id":7,"method":"roots/list""#, Ok(()));
    }
    for owed in [Owed::Nothing, Owed::Stream] {
        event(owed, r#""id":7,"result":{}"#, Err(NotOwed::NoRequest));
        event(owed, r#""error":{}"#, Err(NotOwed::NoRequest));
    }
}
