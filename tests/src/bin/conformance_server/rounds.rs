//! Results that ask for input (MRTR, 2026-07-28): what is asked next, and whether all is answered.

use rmcp::ErrorData;
use rmcp::model::{
    ClientCapabilities, InputRequests, InputRequiredResult, InputResponses, RequestStateCodec,
};
use serde_json::{Value, json};

use crate::catalogue::Rounds;

/// What the client came back with.
pub(crate) struct Given<'r> {
    pub(crate) responses: Option<&'r InputResponses>,
    pub(crate) state: Option<&'r str>,
    pub(crate) able: ClientCapabilities,
}

/// What comes next.
pub(crate) enum Next {
    Ask(InputRequiredResult),
    /// All is answered.
    Done,
}

impl Rounds {
    pub(crate) fn next(&self, given: &Given<'_>, codec: &RequestStateCodec) -> Result<Next, ErrorData> {
        let round = match given.state {
            Some(state) => opened(state, codec)?,
            None => 0,
        };
        let answers_count = !self.sealed || given.state.is_some();
        let round = if answers_count && self.answered(round, given) { round + 1 } else { round };
        let asked = self.asked(round, &given.able)?;
        if asked.is_empty() {
            return Ok(Next::Done);
        }
        let sealed = self.sealed.then(|| codec.seal_json(&json!(round))).transpose();
        let sealed = sealed.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        Ok(Next::Ask(InputRequiredResult::new(Some(asked), sealed)))
    }

    /// Every answer is an object, of whatever kind.
    fn answered(&self, round: usize, given: &Given<'_>) -> bool {
        let Some(responses) = given.responses else { return false };
        let is_there = |key: &String| responses.get(key).is_some_and(Value::is_object);
        self.rounds.get(round).is_some_and(|asked| {
            asked.iter().all(|(key, request)| is_there(key) || !self.may_ask(request, &given.able))
        })
    }

    fn asked(&self, round: usize, able: &ClientCapabilities) -> Result<InputRequests, ErrorData> {
        let all = self.rounds.get(round).into_iter().flatten();
        let some = all.filter(|(_, request)| self.may_ask(request, able));
        some.map(|(key, request)| {
            let request = serde_json::from_value(request.clone());
            let request = request.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
            Ok((key.clone(), request))
        })
        .collect()
    }

    fn may_ask(&self, request: &Value, able: &ClientCapabilities) -> bool {
        let can = match request.get("method").and_then(Value::as_str) {
            Some("elicitation/create") => able.elicitation.is_some(),
            Some("sampling/createMessage") => able.sampling.is_some(),
            Some("roots/list") => able.roots.is_some(),
            Some(_) | None => false,
        };
        can || !self.only_what_client_can
    }
}

/// What comes back from a client is believed only under the seal.
fn opened(state: &str, codec: &RequestStateCodec) -> Result<usize, ErrorData> {
    codec
        .open_json(state)
        .map_err(|_| ErrorData::invalid_params("requestState failed integrity verification", None))
}
