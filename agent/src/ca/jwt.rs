//! The keys by which the authority signs JWT-SVIDs (ES256), apart from those of certificates: `jwt.json`. They are made when
//! the first is asked for, and rotate by age: a new key is in everybody's bundle for `overlap` before it signs, and the one
//! before stays there until all that it signed has ended.

use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toolgate_core::spiffe::SpiffeId;

use super::certify::CertifyError;
use super::folder::Kind;
use super::state::{new_id, seconds};
use super::{Authority, CaError, json as text_of};
use crate::svid::{JwtKey, hex};

pub(super) const FILE: &str = "jwt.json";
const FORMAT: u32 = 1;
/// How long a JWT-SVID lives: whoever sees one may use it until then.
const LIFE: Duration = Duration::from_secs(300);

/// `jwt.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    format: u32,
    /// The oldest first.
    keys: Vec<Kept>,
}

impl Default for Keys {
    fn default() -> Self {
        Self { format: FORMAT, keys: Vec::new() }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// Its name in tokens and bundles.
    id: String,
    /// In seconds since 1970.
    made_at: u64,
    /// What verifies.
    public: JwtKey,
    /// PKCS#8 in hexadecimal digits; none: it signs no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private: Option<String>,
}

impl Keys {
    /// The one that signs: the newest that everybody has had the time to learn of; the first one has nothing before it.
    fn signing(&self, overlap: Duration, now: SystemTime) -> Option<usize> {
        let known = |kept: &Kept| kept.made_at + overlap.as_secs() <= seconds(now);
        self.keys.iter().rposition(known).or_else(|| (!self.keys.is_empty()).then_some(0))
    }

    /// Makes what is due, and forgets what verifies nothing any more.
    fn rotate(&mut self, (overlap, life): (Duration, Duration), now: SystemTime) -> Result<(), CaError> {
        let age = |kept: &Kept| Duration::from_secs(seconds(now).saturating_sub(kept.made_at));
        if self.keys.last().is_none_or(|newest| age(newest) >= life / 2) {
            self.keys.push(Kept::new(now)?);
        }
        let Some(signing) = self.signing(overlap, now) else { return Ok(()) };
        for retired in &mut self.keys[..signing] {
            retired.private = None;
        }
        // What the one before signed has ended.
        if age(&self.keys[signing]) >= overlap + LIFE * 2 {
            self.keys.drain(..signing);
        }
        Ok(())
    }
}

impl Kept {
    fn new(now: SystemTime) -> Result<Self, CaError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(CertifyError::from)?;
        let document = pair.to_pkcs8v1().map_err(CertifyError::from)?;
        let id = new_id()?;
        let public = JwtKey::new(&id, pair.public_key().as_ref()).ok_or(CertifyError::no_key())?;
        Ok(Self { id, made_at: seconds(now), public, private: Some(hex(document.as_ref())) })
    }

    fn stage(&self, at: usize, signing: Option<usize>) -> &'static str {
        match signing {
            Some(signing) if at < signing => "retired",
            Some(signing) if at == signing => "active",
            Some(_) | None => "prepared",
        }
    }
}

impl Authority {
    /// What is written of them; none: no JWT-SVID was asked for yet.
    pub(super) fn read_jwt_keys(&self) -> Result<Keys, CaError> {
        let Some(text) = self.folder.read(FILE, Kind::Secret)? else { return Ok(Keys::default()) };
        let path = self.folder.file(FILE);
        let keys: Keys = serde_json::from_str(&text)
            .map_err(|problem| CaError::Damaged { path: path.clone(), problem: problem.to_string() })?;
        if keys.format != FORMAT {
            return Err(CaError::Version { path, found: keys.format, expected: FORMAT });
        }
        Ok(keys)
    }

    /// What is due of them, where there are any; `make`: or where there are none. True: something changed.
    pub(super) fn rotate_jwt_keys(&mut self, make: bool, now: SystemTime) -> Result<bool, CaError> {
        let read = self.read_jwt_keys()?;
        if read.keys.is_empty() && !make {
            return Ok(false);
        }
        let lives = (self.plan.lives.overlap, self.plan.lives.issuing);
        let mut keys = read.clone();
        keys.rotate(lives, now)?;
        if keys != read {
            // Another agent may be at it, as in a hand-over.
            let _lock = self.folder.lock()?;
            keys = self.read_jwt_keys()?;
            keys.rotate(lives, now)?;
            self.folder.write(FILE, Kind::Secret, &text_of(&keys))?;
        }
        let is_new = keys != self.jwt_keys;
        self.jwt_keys = keys;
        Ok(is_new)
    }

    /// What verifies its JWT-SVIDs.
    pub(crate) fn jwt_bundle(&self) -> Vec<JwtKey> {
        self.jwt_keys.keys.iter().map(|kept| kept.public.clone()).collect()
    }

    /// Signs a JWT-SVID. Who may have it was decided before.
    pub(crate) fn jwt_svid(
        &mut self,
        id: &SpiffeId,
        audience: &[String],
        now: SystemTime,
    ) -> Result<String, CaError> {
        self.rotate_jwt_keys(true, now)?;
        let path = self.folder.file(FILE);
        let damaged = |problem: &str| CaError::Damaged { path: path.clone(), problem: problem.to_owned() };
        let signing = self.jwt_keys.signing(self.plan.lives.overlap, now);
        let kept =
            signing.and_then(|at| self.jwt_keys.keys.get(at)).ok_or_else(|| damaged("no key signs"))?;
        let private = kept.private.as_deref().and_then(super::unhex);
        let private = private.ok_or_else(|| damaged("the key that signs is not there"))?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private)
            .map_err(|_| damaged("the key that signs cannot be read"))?;
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": kept.id });
        let ends = now + LIFE.min(self.plan.lives.svid);
        let claims =
            json!({ "sub": id.as_str(), "aud": audience, "iat": seconds(now), "exp": seconds(ends) });
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(CertifyError::from)?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Its keys, for the operator.
    pub(super) fn jwt_status(&self, now: SystemTime) -> Vec<Value> {
        let signing = self.jwt_keys.signing(self.plan.lives.overlap, now);
        let told = |(at, kept): (usize, &Kept)| {
            let made = super::registry::time(kept.made_at);
            json!({ "id": kept.id, "stage": kept.stage(at, signing), "made_at": made })
        };
        self.jwt_keys.keys.iter().enumerate().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_before_it_signs_and_until_what_it_signed_has_ended() {
        let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second);
        let lives = (Duration::from_secs(100), Duration::from_secs(10_000));
        let mut keys = Keys::default();
        let mut ids = Vec::new();
        // When, how many keys there are, and which of all signs.
        for (second, count, signs) in [
            (0, 1, 0),
            (4_999, 1, 0),
            (5_000, 2, 0),
            (5_099, 2, 0),
            (5_100, 2, 1),
            (5_699, 2, 1),
            (5_700, 1, 1),
            (10_000, 2, 1),
        ] {
            keys.rotate(lives, at(second)).unwrap();
            for kept in &keys.keys {
                if !ids.contains(&kept.id) {
                    ids.push(kept.id.clone());
                }
            }
            let signing = keys.signing(lives.0, at(second)).unwrap();
            assert_eq!((keys.keys.len(), &keys.keys[signing].id), (count, &ids[signs]), "{second}");
            assert!(keys.keys[..signing].iter().all(|kept| kept.private.is_none()), "{second}");
            assert!(keys.keys[signing..].iter().all(|kept| kept.private.is_some()), "{second}");
        }
    }
}
