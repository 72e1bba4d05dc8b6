//! The shapes of the files, as serde reads them. What they mean is checked where it is used.
//!
//! Every key is read by [`given`], so that `key:` without a value is an error: a condition that was left empty
//! must not become no condition.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;
use toolgate_core::policy::Literal;

/// A key that may be left out.
pub(super) type Given<T> = Option<Spanned<T>>;

/// A key whose value is not looked at: it is designed but not built yet.
pub(super) type Later = Given<serde::de::IgnoredAny>;

fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A struct of keys that may all be left out, unknown ones refused. `as`: how the file has it.
macro_rules! keys {
    ($($(#[doc = $doc:literal])+ struct $name:ident { $($field:ident $(as $key:literal)?: $type:ty,)+ })+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Default, serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            pub(super) struct $name {
                $(
                    #[serde(default, deserialize_with = "given" $(, rename = $key)?)]
                    pub(super) $field: $type,
                )+
            }
        )+
    };
}

keys! {
    /// `toolgate.yaml`.
    struct AgentFile {
        trust_domain: Given<String>,
        capture: Option<CaptureFile>,
        identity: Option<IdentityFile>,
        listen: Option<ListenFile>,
        store: Option<StoreFile>,
        audit: Option<AuditFile>,
        limits: Given<Pairs<Spanned<String>>>,
    }

    /// `capture:`
    struct CaptureFile {
        cgroups: Option<Vec<Spanned<String>>>,
        destinations: Given<Words>,
        exclude: Option<Vec<Spanned<String>>>,
        unrecognised: Given<String>,
        undeclared: Given<String>,
        tls: Given<String>,
        tls_exclude: Given<Vec<Spanned<String>>>,
        tls_roots: Given<String>,
        agent_loss: Given<String>,
        existing: Given<String>,
        canary: Given<String>,
    }

    /// `identity:`
    struct IdentityFile {
        source: Given<String>,
        svid_ttl: Given<String>,
        issuing_ttl: Given<String>,
        root_ttl: Given<String>,
        overlap: Given<String>,
        clock_skew: Given<String>,
        root_key: Given<String>,
        token_file: Given<String>,
        socket: Given<String>,
    }

    /// `listen:`
    struct ListenFile {
        outbound: Given<u16>,
        peer: Given<Scalar>,
        authority: Given<String>,
        invoke: Given<String>,
        workload_api: Given<String>,
        admin: Given<String>,
        metrics: Given<String>,
        ready: Given<String>,
    }

    /// `store:`
    struct StoreFile {
        embedded: Given<String>,
    }

    /// `audit:`
    struct AuditFile {
        file: Given<String>,
        on_failure: Given<String>,
        sync: Given<String>,
    }

    /// `spec:` of a Workload.
    struct WorkloadSpec {
        selectors: Option<SelectorsSpec>,
        agent_for: Option<Vec<Spanned<String>>>,
        configuration: Later,
        tls: Given<String>,
    }

    /// `selectors:`
    struct SelectorsSpec {
        unit: Given<String>,
        cgroup: Given<String>,
        user: Given<String>,
        exe: Given<String>,
        exe_sha256: Given<String>,
        container: Given<ContainerSpec>,
    }

    /// `container:`
    struct ContainerSpec {
        id: Given<String>,
        machine: Given<String>,
        image: Given<String>,
    }

    /// `spec:` of a Server.
    struct ServerSpec {
        app_id: Given<String>,
        local: Given<LocalSpec>,
        peer: Given<PeerSpec>,
        external: Given<Outside>,
        hosts: Option<Vec<Spanned<String>>>,
        path: Given<String>,
        transport: Given<String>,
        configuration: Later,
        pins: Given<String>,
        hidden_characters: Given<String>,
        opaque: Given<String>,
        enforcement: Given<String>,
    }

    /// `local:`
    struct LocalSpec {
        address: Given<String>,
        workload: Given<String>,
        unix: Later,
    }

    /// `peer:`
    struct PeerSpec {
        address: Given<String>,
        endpoints: Given<Vec<Spanned<String>>>,
    }

    /// `external:`
    struct ExternalSpec {
        url: Given<String>,
        http_port: Given<u16>,
        allow_private: Given<bool>,
        ca_file: Given<String>,
        pins: Given<Vec<Spanned<String>>>,
        certificate_file: Given<String>,
        key_file: Given<String>,
        endpoints: Given<Vec<Spanned<String>>>,
    }

    /// One of `headers:`
    struct HeaderSpec {
        name: Given<String>,
        value: Given<String>,
        secret_key_ref as "secretKeyRef": Later,
        env_ref as "envRef": Later,
    }

    /// A text of `clientTLS:`
    struct TextSpec {
        value: Given<String>,
        secret_key_ref as "secretKeyRef": Later,
    }

    /// `clientTLS:`
    struct ClientTlsSpec {
        root_ca as "rootCA": Given<TextSpec>,
        certificate: Given<TextSpec>,
        private_key as "privateKey": Given<TextSpec>,
        renegotiation: Given<String>,
    }

    /// `spec:` of Dapr's HTTPEndpoint.
    struct EndpointSpec {
        base_url as "baseUrl": Given<String>,
        headers: Given<Vec<Spanned<HeaderSpec>>>,
        client_tls as "clientTLS": Given<ClientTlsSpec>,
    }

    /// `spec:` of a Policy.
    struct PolicySpec {
        mode: Given<String>,
        at: Given<String>,
        rules: Given<Vec<Spanned<RuleSpec>>>,
    }

    /// One of `rules:`
    struct RuleSpec {
        name: Given<String>,
        effect: Given<String>,
        callers: Given<Vec<Spanned<String>>>,
        servers: Given<Vec<Spanned<String>>>,
        tools: Given<Vec<Spanned<String>>>,
        methods: Given<Vec<Spanned<String>>>,
        resources: Given<Vec<Spanned<String>>>,
        prompts: Given<Vec<Spanned<String>>>,
        server_requests: Given<Vec<Spanned<String>>>,
        list: Given<bool>,
        arguments: Given<Pairs<PredicateSpec>>,
        other_arguments: Given<String>,
        token: Later,
        when: Later,
    }

    /// What is asked of one argument.
    struct PredicateSpec {
        equals: Given<Scalar>,
        r#in: Given<Vec<Spanned<Scalar>>>,
        prefix: Given<String>,
        suffix: Given<String>,
        glob: Given<String>,
        regex: Given<String>,
        within: Given<String>,
        min: Given<f64>,
        max: Given<f64>,
        max_length: Given<u64>,
        r#type: Given<String>,
        absent: Given<bool>,
        any: Option<Box<PredicateSpec>>,
        every: Option<Box<PredicateSpec>>,
    }
}

/// A server without an agent, as a Server has it or as Dapr does.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "gone as soon as the resources are read")]
pub(super) enum Outside {
    Ours(ExternalSpec),
    Daprs(EndpointSpec),
}

impl<'de> Deserialize<'de> for Outside {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ExternalSpec::deserialize(deserializer).map(Self::Ours)
    }
}

/// What says how to read the rest of a resource.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Head {
    #[serde(rename = "apiVersion")]
    pub(super) api_version: Spanned<String>,
    pub(super) kind: Spanned<String>,
}

/// A resource of a known kind.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resource<S> {
    #[serde(rename = "apiVersion")]
    #[expect(dead_code, reason = "read as part of the head; named here so that it is no unknown key")]
    pub(super) api_version: String,
    #[expect(dead_code, reason = "read as part of the head; named here so that it is no unknown key")]
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: S,
}

/// A resource of one of Dapr's kinds.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DaprResource<S> {
    #[serde(rename = "apiVersion")]
    #[expect(dead_code, reason = "read as part of the head; named here so that it is no unknown key")]
    pub(super) api_version: String,
    #[expect(dead_code, reason = "read as part of the head; named here so that it is no unknown key")]
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Spanned<S>,
    #[serde(default, deserialize_with = "given")]
    pub(super) auth: Later,
    #[serde(default, deserialize_with = "given")]
    pub(super) scopes: Later,
}

/// `metadata:`
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: Spanned<String>,
    #[serde(default, deserialize_with = "given")]
    pub(super) namespace: Given<String>,
}

/// A mapping in the order of the file, each key with its place.
#[derive(Debug)]
pub(super) struct Pairs<V>(pub(super) Vec<(Spanned<String>, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(std::marker::PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Pairs<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("keys and values")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

/// One word or a list of them.
#[derive(Debug)]
pub(super) enum Words {
    One(String),
    Many(Vec<Spanned<String>>),
}

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Words;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a word or a list")
            }
            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Words, E> {
                Ok(Words::One(word.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words::Many(words))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// A scalar of any JSON type: quoted it is text, plain what YAML 1.2 makes of it.
#[derive(Debug)]
pub(super) struct Scalar(pub(super) Literal);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyScalar;
        impl Visitor<'_> for AnyScalar {
            type Value = Scalar;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a number, true, false or null")
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Bool(value)))
            }
            #[expect(
                clippy::cast_precision_loss,
                reason = "what is beyond +-2^53 is refused when it is used"
            )]
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Number(value as f64)))
            }
            #[expect(
                clippy::cast_precision_loss,
                reason = "what is beyond +-2^53 is refused when it is used"
            )]
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Number(value as f64)))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Number(value)))
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Text(value.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar(Literal::Null))
            }
        }
        deserializer.deserialize_any(AnyScalar)
    }
}
