//! The authority as peers see it: what it issues is believed, whatever rotates, and nothing else is.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::svid::{Peer, Revoked, Role, Trust, VerifyError, verify};

const NAME: &str = "spiffe://example.org/ns/default/agent";

fn lives(svid: u64, issuing: u64, root: u64, overlap: u64) -> Lives {
    let [svid, issuing, root, overlap] = [svid, issuing, root, overlap].map(Duration::from_secs);
    Lives { svid, issuing, root, overlap, skew: Duration::from_secs(1), root_is_credential: false }
}

fn plan(folder: &Path, lives: Lives) -> Plan {
    let (state_directory, trust_domain) = (folder.to_owned(), "example.org".to_owned());
    Plan { state_directory, trust_domain, lives, credentials: None }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

fn trust(authority: &Authority) -> Trust {
    let bundles = BTreeMap::from([(authority.trust_domain().into(), Arc::clone(authority.bundle()))]);
    let revoked = Revoked { trust_domain: "example.org".into(), ..Revoked::default() };
    Trust { generation: 1, bundles, revoked: revoked.into() }
}

fn issue(authority: &Authority, now: SystemTime) -> Issued {
    let id = SpiffeId::parse(NAME).unwrap();
    authority.issue(&id, None, &certify::key().unwrap(), now).unwrap()
}

fn proven(issued: &Issued, trust: &Trust, now: SystemTime) -> Result<Peer, VerifyError> {
    verify(&issued.chain, trust, Role::Client, now)?;
    verify(&issued.chain, trust, Role::Server, now)
}

#[test]
fn what_is_issued_is_believed_as_long_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(plan(folder.path(), lives(60, 600, 6000, 10)), at(0)).unwrap();
    let issued = issue(&authority, at(0));
    let trust = trust(&authority);
    let peer = proven(&issued, &trust, at(0)).unwrap();
    assert_eq!((peer.id.as_str(), &peer.serial), (NAME, &issued.serial));
    for (seconds, is_valid) in [(0, true), (59, true), (60, true), (61, false)] {
        assert_eq!(proven(&issued, &trust, at(seconds)).is_ok(), is_valid, "{seconds}");
    }
    let early = proven(&issued, &trust, at(0) - Duration::from_secs(2)).unwrap_err().to_string();
    assert!(early.contains("begins") && early.contains("a clock is wrong"), "{early}");
}
