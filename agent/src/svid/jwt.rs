//! JWT-SVIDs: whose one is, and whether it is for who asks (JWT-SVID 3 and 4). ES256 alone: what the authority signs by.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use toolgate_core::spiffe::{InvalidSpiffeId, SpiffeId};

use super::Trust;

/// The most bytes of a token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// How far the clock of who signed may be ahead.
const AHEAD_MAX: Duration = Duration::from_secs(60);
/// Before the coordinates of a point that is not compressed (SEC 1, 2.3.3).
const UNCOMPRESSED: u8 = 4;
/// Bytes of a coordinate of P-256.
const COORDINATE: usize = 32;

/// What verifies JWT-SVIDs: a point on P-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtKey {
    kid: String,
    x: String,
    y: String,
}

impl JwtKey {
    /// Of a point that is not compressed.
    pub(crate) fn new(kid: &str, point: &[u8]) -> Option<Self> {
        let (first, rest) = point.split_first()?;
        let (x, y) = rest.split_at_checked(COORDINATE)?;
        let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        let is_point = *first == UNCOMPRESSED && y.len() == COORDINATE;
        is_point.then(|| Self { kid: kid.to_owned(), x: encode(x), y: encode(y) })
    }

    fn point(&self) -> Option<Vec<u8>> {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let point = [vec![UNCOMPRESSED], part(&self.x)?, part(&self.y)?].concat();
        (point.len() == 1 + 2 * COORDINATE).then_some(point)
    }
}

/// The bundle as a JWK Set (SPIFFE Trust Domain and Bundle, 4).
pub(crate) fn jwks(keys: &[JwtKey]) -> String {
    let key = |JwtKey { kid, x, y }: &JwtKey| json!({ "kty": "EC", "use": "jwt-svid", "kid": kid, "crv": "P-256", "alg": "ES256", "x": x, "y": y });
    json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }).to_string()
}

/// Why a JWT-SVID is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtError {
    #[error("it is no JWT: {problem}")]
    Unreadable { problem: &'static str },
    #[error("it is signed by `{algorithm}`, and JWT-SVIDs are by ES256 here")]
    Algorithm { algorithm: String },
    #[error(transparent)]
    Id(#[from] InvalidSpiffeId),
    #[error("trust domain `{trust_domain}` has no such key here")]
    Key { trust_domain: String },
    #[error("its signature is not that of the key that it names")]
    Signature,
    #[error("it has ended")]
    Expired,
    #[error("it is of a time that is not yet: a clock is wrong")]
    NotYet,
    #[error("it is for others, and not for `{audience}`")]
    Audience { audience: String },
    #[error("`{id}` was revoked")]
    Revoked { id: SpiffeId },
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    typ: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
    #[serde(default)]
    iat: Option<f64>,
}

/// Whose a token is, and all that it claims, if it is for `audience`.
pub(crate) fn verify_jwt(
    token: &str,
    audience: &str,
    trust: &Trust,
    now: SystemTime,
) -> Result<(SpiffeId, Map<String, Value>), JwtError> {
    let unreadable = |problem| JwtError::Unreadable { problem };
    if token.len() > TOKEN_BYTES_MAX {
        return Err(unreadable("it is too long"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(unreadable("it has no signature"))?;
    let (header, claims) = signed.split_once('.').ok_or(unreadable("it has no claims"))?;
    let decoded = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part);
    let not_base64 = |_| unreadable("a part is not base64url");
    let (header, text) = (decoded(header).map_err(not_base64)?, decoded(claims).map_err(not_base64)?);
    let header: Header = serde_json::from_slice(&header).map_err(|_| unreadable("its header"))?;
    if header.alg != "ES256" {
        return Err(JwtError::Algorithm { algorithm: header.alg.chars().take(16).collect() });
    }
    if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
        return Err(unreadable("its `typ`"));
    }
    let claims: Claims = serde_json::from_slice(&text).map_err(|_| unreadable("its claims"))?;
    let id = SpiffeId::parse(&claims.sub)?;
    let foreign = || JwtError::Key { trust_domain: id.trust_domain().to_owned() };
    let keys = trust.jwt_keys.get(id.trust_domain()).ok_or_else(foreign)?;
    let key = keys.iter().find(|key| key.kid == header.kid).ok_or_else(foreign)?;
    let point = key.point().ok_or(unreadable("the key that it names"))?;
    let signature = decoded(signature).map_err(not_base64)?;
    let verified =
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &signature);
    verified.map_err(|_| JwtError::Signature)?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    if claims.exp <= now.as_secs_f64() {
        return Err(JwtError::Expired);
    }
    let latest = (now + AHEAD_MAX).as_secs_f64();
    if [claims.nbf, claims.iat].into_iter().flatten().any(|time| time > latest) {
        return Err(JwtError::NotYet);
    }
    let is_for = match &claims.aud {
        Audience::One(one) => one == audience,
        Audience::Several(several) => several.iter().any(|one| one == audience),
    };
    if audience.is_empty() || !is_for {
        return Err(JwtError::Audience { audience: audience.to_owned() });
    }
    if trust.revoked.ids.contains(&id) {
        return Err(JwtError::Revoked { id });
    }
    let all = serde_json::from_slice(&text).map_err(|_| unreadable("its claims"))?;
    Ok((id, all))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ca::{Authority, Lives, Plan};

    const HOUR: Duration = Duration::from_secs(3600);
    const READER: &str = "spiffe://example.org/ns/default/reader";

    fn authority(folder: &Path) -> Authority {
        let [svid, issuing, root, overlap] = [24, 24 * 30, 24 * 365, 48].map(|hours| HOUR * hours);
        let skew = Duration::from_secs(60);
        let lives = Lives { svid, issuing, root, overlap, skew, root_is_credential: false };
        let (state_directory, trust_domain) = (folder.to_owned(), "example.org".to_owned());
        Authority::open(Plan { state_directory, trust_domain, lives, credentials: None }, SystemTime::now())
            .unwrap()
    }

    #[test]
    fn tokens_are_believed_for_whom_they_are_by_the_key_that_signed_them() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut own = authority(folders[0].path());
        let mut same_name = authority(folders[1].path());
        let id = SpiffeId::parse(READER).unwrap();
        let now = SystemTime::now();
        let audience = ["docs".to_owned(), "search".to_owned()];
        let token = own.jwt_svid(&id, &audience, now).unwrap();
        let foreign = same_name.jwt_svid(&id, &audience, now).unwrap();
        let trust = Trust { jwt_keys: [("example.org".into(), own.jwt_bundle())].into(), ..Trust::default() };
        let [header, claims, signature] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let encode = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let kid = {
            let text = BASE64_URL_SAFE_NO_PAD.decode(header).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()["kid"].as_str().unwrap().to_owned()
        };
        let other_claims =
            encode(r#"{"sub":"spiffe://example.org/ns/default/admin","aud":"docs","exp":99999999999}"#);
        let none = encode(r#"{"alg":"none"}"#);
        let none_with_key = encode(&format!(r#"{{"alg":"none","kid":"{kid}"}}"#));
        let hmac = encode(&format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#));
        let later = now + Duration::from_secs(301);
        type Case<'c> = (&'c str, String, &'c str, SystemTime, Option<&'c str>);
        let table: Vec<Case<'_>> = vec![
            ("whole", token.clone(), "docs", now, None),
            ("for the other audience", token.clone(), "search", now, None),
            ("for somebody else", token.clone(), "billing", now, Some("and not for `billing`")),
            ("for nobody", token.clone(), "", now, Some("and not for ``")),
            ("over", token.clone(), "docs", later, Some("it has ended")),
            ("of tomorrow", token.clone(), "docs", now - HOUR, Some("a clock is wrong")),
            ("another authority of the same name", foreign, "docs", now, Some("has no such key here")),
            (
                "other claims",
                format!("{header}.{other_claims}.{signature}"),
                "docs",
                now,
                Some("its signature"),
            ),
            ("alg none", format!("{none}.{claims}."), "docs", now, Some("signed by `none`")),
            (
                "alg none with a key",
                format!("{none_with_key}.{claims}.{signature}"),
                "docs",
                now,
                Some("signed by `none`"),
            ),
            (
                "alg of a secret",
                format!("{hmac}.{claims}.{signature}"),
                "docs",
                now,
                Some("signed by `HS256`"),
            ),
            ("no signature", format!("{header}.{claims}."), "docs", now, Some("its signature")),
            ("no token", "x".to_owned(), "docs", now, Some("it is no JWT")),
            ("two parts", format!("{header}.{claims}"), "docs", now, Some("it is no JWT")),
        ];
        for (name, token, audience, now, expected) in table {
            let verified = verify_jwt(&token, audience, &trust, now).map(|(id, _)| id);
            match (expected, verified) {
                (None, Ok(found)) => assert_eq!(found, id, "{name}"),
                (Some(words), Err(error)) => assert!(error.to_string().contains(words), "{name}: {error}"),
                (_, verified) => panic!("{name}: {verified:?}"),
            }
        }
    }
}
