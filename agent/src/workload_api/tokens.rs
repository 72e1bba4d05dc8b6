//! JWT-SVIDs: for a process to show to others, and of others.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::answers::{Caller, Entitled, named, unavailable};
use super::messages::{
    JwtBundlesResponse, JwtSvid, JwtSvidRequest, JwtSvidResponse, ValidateJwtSvidRequest,
    ValidateJwtSvidResponse,
};
use super::stream::{BUNDLES_AGAIN, Streamed};
use crate::svid::{jwks, verify_jwt};

/// Audiences of one JWT-SVID, and the most bytes of each.
const AUDIENCES_MAX: usize = 16;
const AUDIENCE_BYTES_MAX: usize = 1_024;

type Answer<A> = Pin<Box<dyn Future<Output = Result<Response<A>, Status>> + Send>>;

/// `FetchJWTSVID`
pub(super) struct Fetch(pub(super) Arc<Caller>);

/// `ValidateJWTSVID`
pub(super) struct Validate(pub(super) Arc<Caller>);

impl UnaryService<JwtSvidRequest> for Fetch {
    type Response = JwtSvidResponse;
    type Future = Answer<JwtSvidResponse>;

    fn call(&mut self, request: Request<JwtSvidRequest>) -> Self::Future {
        let caller = Arc::clone(&self.0);
        Box::pin(async move {
            let fetched = fetched(&caller, request.into_inner()).await;
            caller.record(fetched.as_ref().err())?;
            Ok(Response::new(fetched?))
        })
    }
}

async fn fetched(caller: &Caller, wanted: JwtSvidRequest) -> Result<JwtSvidResponse, Status> {
    let Entitled { identities, .. } = caller.entitled().await?;
    let is_audience = |one: &String| !one.is_empty() && one.len() <= AUDIENCE_BYTES_MAX;
    let JwtSvidRequest { audience, spiffe_id } = wanted;
    if audience.is_empty() || audience.len() > AUDIENCES_MAX || !audience.iter().all(is_audience) {
        return Err(Status::invalid_argument("a JWT-SVID is for somebody: name from 1 to 16 audiences"));
    }
    let mut svids = Vec::new();
    for identity in &identities {
        let id = identity.spiffe_id();
        if spiffe_id.is_empty() || spiffe_id == id {
            let signed = caller.svids().jwt(identity, audience.clone()).await;
            svids.push(JwtSvid { spiffe_id: id, svid: signed.map_err(|error| unavailable(&error))? });
        }
    }
    if svids.is_empty() {
        return Err(Status::permission_denied("no identity issued"));
    }
    Ok(JwtSvidResponse { svids })
}

impl UnaryService<ValidateJwtSvidRequest> for Validate {
    type Response = ValidateJwtSvidResponse;
    type Future = Answer<ValidateJwtSvidResponse>;

    fn call(&mut self, request: Request<ValidateJwtSvidRequest>) -> Self::Future {
        let caller = Arc::clone(&self.0);
        Box::pin(async move {
            caller.entitled().await?;
            let ValidateJwtSvidRequest { audience, svid } = request.into_inner();
            let verified = verify_jwt(&svid, &audience, &*caller.trust().await?, SystemTime::now());
            let (id, claims) = verified.map_err(|error| Status::invalid_argument(error.to_string()))?;
            let claims = claims.into_iter().map(|(name, value)| (name, protobuf(value))).collect();
            let claims = Some(Struct { fields: claims });
            Ok(Response::new(ValidateJwtSvidResponse { spiffe_id: id.to_string(), claims }))
        })
    }
}

/// The same in the words of Protocol Buffers, which has no whole numbers.
fn protobuf(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(protobuf).collect() })
        }
        Json::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, protobuf(value))).collect();
            Kind::StructValue(Struct { fields })
        }
    };
    Value { kind: Some(kind) }
}

impl Streamed for JwtBundlesResponse {
    async fn now(caller: &Caller) -> Result<(Self, SystemTime), Status> {
        caller.entitled().await?;
        let trust = caller.trust().await?;
        let bundles = trust.jwt_keys.iter();
        let bundles = bundles.map(|(name, keys)| (named(name), jwks(keys).into_bytes())).collect();
        Ok((Self { bundles }, SystemTime::now() + BUNDLES_AGAIN))
    }
}
