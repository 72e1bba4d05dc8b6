//! What is said there: the messages of the SPIFFE Workload API that are answered (`workload.proto`), in Protocol Buffers.

use std::collections::HashMap;

use prost::Message;

/// What calls without parameters ask.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

/// The answer of `FetchX509SVID`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<X509Svid>,
    /// In DER one after the other, by trust domain.
    #[prost(map = "string, bytes", tag = "3")]
    pub(super) federated_bundles: HashMap<String, Vec<u8>>,
}

/// One SVID of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct X509Svid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    /// In DER one after the other, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) x509_svid: Vec<u8>,
    /// PKCS#8
    #[prost(bytes = "vec", tag = "3")]
    pub(super) x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) bundle: Vec<u8>,
}

/// The answer of `FetchX509Bundles`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct X509BundlesResponse {
    #[prost(map = "string, bytes", tag = "2")]
    pub(super) bundles: HashMap<String, Vec<u8>>,
}

/// What `FetchJWTSVID` asks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvidRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) audience: Vec<String>,
    /// Of whom; empty: of all that who asks may have.
    #[prost(string, tag = "2")]
    pub(super) spiffe_id: String,
}

/// Its answer.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<JwtSvid>,
}

/// One SVID of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(string, tag = "2")]
    pub(super) svid: String,
}

/// The answer of `FetchJWTBundles`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtBundlesResponse {
    /// JWK Sets, by trust domain.
    #[prost(map = "string, bytes", tag = "1")]
    pub(super) bundles: HashMap<String, Vec<u8>>,
}

/// What `ValidateJWTSVID` asks.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValidateJwtSvidRequest {
    #[prost(string, tag = "1")]
    pub(super) audience: String,
    #[prost(string, tag = "2")]
    pub(super) svid: String,
}

/// Its answer.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValidateJwtSvidResponse {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) claims: Option<prost_types::Struct>,
}
