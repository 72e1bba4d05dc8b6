//! The authority as peers see it: what it issues is believed, whatever rotates, and nothing else is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

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
    Trust { generation: 1, bundles, revoked: revoked.into(), ..Trust::default() }
}

fn issue(authority: &Authority, now: SystemTime) -> Issued {
    let id = SpiffeId::parse(NAME).unwrap();
    authority.issue(&id, IssuedTo::default(), &new_key().unwrap(), now).unwrap()
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

/// Two minutes in steps of a second: SVIDs are renewed at half life, and a peer learns of the bundle every five seconds.
#[test]
fn whatever_rotates_the_peers_of_the_moment_believe_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = Authority::open(plan(folder.path(), lives(8, 20, 60, 6)), at(0)).unwrap();
    let (mut roots, mut issuers, mut serials) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut peer = trust(&authority);
    let mut shown: Vec<Issued> = Vec::new();
    for second in 0..=120 {
        authority.rotate(at(second)).unwrap();
        // Never in the second in which something rotates by itself.
        if second % 5 == 3 {
            peer = trust(&authority);
        }
        if second % 4 == 0 {
            shown.push(issue(&authority, at(second)));
        }
        // The last one, and the one before it, which opened connections that still live.
        for issued in shown.iter().rev().take(2) {
            proven(issued, &peer, at(second)).unwrap_or_else(|error| panic!("at {second}: {error}"));
            serials.insert(issued.serial.clone());
            issuers.insert(issued.chain[1].to_vec());
        }
        roots.extend(authority.state.roots.iter().map(|root| root.id.clone()));
        assert!(authority.state.roots.len() <= 3, "at {second}: {:?}", authority.state.roots);
    }
    println!("{} roots, {} issuing certificates, {} serials", roots.len(), issuers.len(), serials.len());
    assert!(roots.len() >= 4 && issuers.len() >= 10 && serials.len() == 31);
    let keys = fs::read_dir(folder.path().join(FOLDER)).unwrap();
    let keys =
        keys.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "key"));
    let held = authority.state.all().filter(|(_, entry)| entry.stage != Stage::Retired).count();
    assert_eq!(keys.count(), held, "the keys of what signs nothing any more are gone");
}

#[test]
fn a_clock_that_is_set_makes_new_certificates_and_no_new_root_without_need() {
    let hour = 3600;
    // Where the clock is, one step after the other; how many roots there have been then.
    let table: &[(&str, &[u64], usize)] = &[
        ("an hour back", &[2 * hour, hour], 1),
        ("an hour back and forth", &[2 * hour, hour, 2 * hour, 3 * hour], 1),
        ("years back", &[1_000_000, 0], 1),
        ("beyond the root's end", &[0, 700_000], 2),
        ("beyond the root's end and back", &[0, 700_000, 10], 2),
    ];
    for (name, clock, roots) in table {
        let folder = tempfile::tempdir().unwrap();
        let lives = lives(60, 6 * hour, 600_000, 10);
        let mut authority = Authority::open(plan(folder.path(), lives), at(clock[0])).unwrap();
        let mut seen = BTreeSet::new();
        for now in *clock {
            authority.rotate(at(*now)).unwrap();
            seen.extend(authority.state.roots.iter().map(|root| root.id.clone()));
            let issued = issue(&authority, at(*now));
            assert!(proven(&issued, &trust(&authority), at(*now)).is_ok(), "{name}, at {now}");
        }
        assert_eq!(seen.len(), *roots, "{name}");
        // The next start is no different.
        let again = Authority::open(authority.plan.clone(), at(*clock.last().unwrap())).unwrap();
        assert_eq!(again.state, authority.state, "{name}");
    }
}

#[test]
fn of_two_agents_that_hand_over_neither_forgets_what_the_other_did() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(folder.path(), lives(60, 600, 6000, 10));
    let mut old = Authority::open(plan.clone(), at(0)).unwrap();
    let mut new = Authority::open(plan, at(0)).unwrap();
    old.rotate_now(Level::Issuing, at(1)).unwrap();
    new.rotate_now(Level::Root, at(2)).unwrap();
    assert_eq!((new.state.issuing.len(), new.state.roots.len()), (2, 2));
    let prepared = old.rotate_now(Level::Root, at(3)).unwrap_err().to_string();
    assert!(prepared.contains("is prepared already"), "{prepared}");
}

#[test]
fn a_backup_is_the_whole_authority_and_overwrites_nothing() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lives = lives(60, 600, 6000, 10);
    let authority = Authority::open(plan(folder.path(), lives), at(0)).unwrap();
    let file = other.path().join("backup.json");
    let backup = authority.backup(at(1)).unwrap();
    let keep = |text: &str| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let refused = |plan: &Plan| restore(plan, &file).unwrap_err().to_string();
    let there = plan(other.path(), lives);
    keep(&backup);
    let elsewhere = Plan { trust_domain: "other.org".to_owned(), ..there.clone() };
    assert!(refused(&elsewhere).contains("is of trust domain `example.org`"));
    keep(&backup[..backup.len() / 2]);
    assert!(refused(&there).contains("is no backup of an authority"));
    keep(&backup.replacen("root-", "../root-", 1));
    assert!(refused(&there).contains("is no file of an authority"));
    keep(&backup);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&there).contains("has mode 644"));
    assert!(!there.folder().exists(), "what was refused left nothing");
    keep(&backup);
    restore(&there, &file).unwrap();
    let restored = Authority::open(there.clone(), at(2)).unwrap();
    assert_eq!(restored.state, authority.state);
    assert!(proven(&issue(&restored, at(2)), &trust(&authority), at(2)).is_ok());
    assert!(refused(&there).contains("exists, and is left as it is"));
}

/// The file of the authority that begins so.
fn file(folder: &Path, begins: &str) -> PathBuf {
    let all = fs::read_dir(folder.join(FOLDER)).unwrap().map(|entry| entry.unwrap().path());
    let mut fits = all.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(begins));
    fits.next().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Every file with its bytes and permissions.
fn all(folder: &Path) -> BTreeMap<PathBuf, (Option<Vec<u8>>, u32)> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode();
    entries.map(|path| (path.clone(), (fs::read(&path).ok(), mode(&path)))).collect()
}

#[test]
fn what_is_damaged_or_open_to_others_is_refused_and_left_as_it_is() {
    type Damage = fn(&Path);
    let table: &[(&str, Damage, &str)] = &[
        (
            "truncated root key",
            |f| cut(&file(f, "root-")),
            "key` of the authority is damaged: it is no P-256 key",
        ),
        ("truncated issuing key", |f| cut(&file(f, "issuing-")), "is damaged: it is no P-256 key"),
        ("empty key", |f| fs::write(file(f, "root-"), "").unwrap(), "is damaged"),
        (
            "key of another certificate",
            |f| fs::write(file(f, "root-"), fs::read(file(f, "issuing-")).unwrap()).unwrap(),
            "is not that of certificate",
        ),
        ("no root key", |f| fs::remove_file(file(f, "root-")).unwrap(), "is missing beside other files"),
        ("no state", |f| fs::remove_file(file(f, "auth")).unwrap(), "is missing beside other files"),
        ("truncated state", |f| cut(&file(f, "auth")), "authority.json` of the authority is damaged"),
        (
            "another version's state",
            |f| {
                let text = fs::read_to_string(file(f, "auth")).unwrap();
                fs::write(file(f, "auth"), text.replace("\"format\": 1", "\"format\": 9")).unwrap();
            },
            "has the format 9, and this version reads 1",
        ),
        (
            "another trust domain",
            |f| {
                let text = fs::read_to_string(file(f, "auth")).unwrap();
                fs::write(file(f, "auth"), text.replacen("example.org", "other.org", 1)).unwrap();
            },
            "is of trust domain `other.org`, and `trust_domain` says `example.org`",
        ),
        (
            "key that all may read",
            |f| set_mode(&file(f, "root-"), 0o644),
            "has mode 644, which others may use",
        ),
        ("key that a group may read", |f| set_mode(&file(f, "issuing-"), 0o640), "has mode 640"),
        ("state that all may write", |f| set_mode(&file(f, "auth"), 0o666), "has mode 666"),
        ("folder that all may write", |f| set_mode(&f.join(FOLDER), 0o777), "has mode 777"),
        (
            "key elsewhere",
            |f| {
                let (key, other) = (file(f, "root-"), f.join("elsewhere.key"));
                fs::rename(&key, &other).unwrap();
                symlink(other, key).unwrap();
            },
            "cannot use",
        ),
        (
            "a file in the folder's place",
            |f| {
                fs::remove_dir_all(f.join(FOLDER)).unwrap();
                fs::write(f.join(FOLDER), "x").unwrap();
            },
            "Not a directory",
        ),
    ];
    for (name, damage, expected) in table {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan(folder.path(), lives(60, 600, 6000, 10));
        drop(Authority::open(plan.clone(), at(0)).unwrap());
        damage(folder.path());
        let before = (all(folder.path()), all(&folder.path().join(FOLDER)));
        // Much later: a rotation would be due.
        let error = Authority::open(plan, at(5000)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.contains(expected) && error.contains(&*folder.path().to_string_lossy()),
            "{name}: {error}"
        );
        assert_eq!((all(folder.path()), all(&folder.path().join(FOLDER))), before, "{name}");
    }
}

#[test]
fn a_root_whose_key_is_a_credential_is_nowhere_else() {
    let (folder, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lives = Lives { root_is_credential: true, ..lives(60, 600, 6000, 10) };
    let plan = Plan { credentials: Some(given.path().to_owned()), ..plan(folder.path(), lives) };
    let refused = |plan: &Plan| Authority::open(plan.clone(), at(0)).err().unwrap().to_string();
    assert!(refused(&plan).contains("LoadCredentialEncrypted=toolgate-root.key:FILE"));
    assert!(!plan.folder().exists());
    let give = |key: &KeyPair| {
        fs::write(given.path().join(CREDENTIAL), key.serialize_pem()).unwrap();
        set_mode(&given.path().join(CREDENTIAL), 0o400);
    };
    give(&new_key().unwrap());
    let mut authority = Authority::open(plan.clone(), at(0)).unwrap();
    assert!(proven(&issue(&authority, at(1)), &trust(&authority), at(1)).is_ok());
    authority.rotate(at(4000)).unwrap();
    assert_eq!(authority.state.roots.len(), 1, "its root does not change by itself");
    assert!(fs::read_dir(plan.folder()).unwrap().all(|entry| {
        let name = entry.unwrap().file_name();
        !name.to_string_lossy().starts_with("root-")
    }));
    give(&new_key().unwrap());
    assert!(refused(&plan).contains("is not that of certificate"));
    set_mode(&given.path().join(CREDENTIAL), 0o644);
    assert!(refused(&plan).contains("has mode 644"));
}

/// A chain whose leaf is what `change` makes of an SVID.
fn forged(
    authority: &Authority,
    change: impl FnOnce(&mut CertificateParams),
) -> Vec<CertificateDer<'static>> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(NAME.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let validity = Validity::new(at(0), Duration::from_secs(60), Duration::ZERO, None);
    (params.not_before, params.not_after) = (validity.not_before.into(), validity.not_after.into());
    change(&mut params);
    let leaf = params.signed_by(&new_key().unwrap(), authority.signer.issuer()).unwrap();
    vec![leaf.into(), authority.signer.certificate.clone()]
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn what_is_no_svid_of_its_trust_domain_is_not_believed() {
    type Forge = fn(&mut CertificateParams);
    let table: &[(&str, Forge, Result<(), &str>)] = &[
        ("an SVID", |_| {}, Ok(())),
        (
            "with a DNS name",
            |p| p.subject_alt_names.push(SanType::DnsName("a.b".try_into().unwrap())),
            Ok(()),
        ),
        ("two names", |p| p.subject_alt_names.push(uri("spiffe://example.org/b")), Err("has 2 URIs")),
        ("no name", |p| p.subject_alt_names.clear(), Err("has 0 URIs")),
        (
            "no SPIFFE ID",
            |p| p.subject_alt_names = vec![uri("https://example.org/a")],
            Err("is no SPIFFE ID"),
        ),
        (
            "a crooked one",
            |p| p.subject_alt_names = vec![uri("spiffe://example.org/../a")],
            Err("is no SPIFFE ID"),
        ),
        (
            "a trust domain's own",
            |p| p.subject_alt_names = vec![uri("spiffe://example.org")],
            Err("not a workload"),
        ),
        (
            "a trust domain that nobody knows",
            |p| p.subject_alt_names = vec![uri("spiffe://nobody.org/a")],
            Err("is neither ours nor federated"),
        ),
        (
            "a federated trust domain's, under our root",
            |p| p.subject_alt_names = vec![uri("spiffe://other.org/a")],
            Err("signed by no root of trust domain `other.org`"),
        ),
        (
            "one that signs others",
            |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            Err("it may sign other certificates"),
        ),
        ("no key usage", |p| p.key_usages.clear(), Err("it has no key usage")),
        (
            "a key that may not sign",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
            Err("its key may not sign"),
        ),
        (
            "a key that may sign certificates",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Err("its key may sign certificates"),
        ),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            Err("does not hold"),
        ),
        (
            "for neither end of TLS",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            Err("does not hold"),
        ),
        ("expired", |p| p.not_after = at(5).into(), Err("it was not renewed, or a clock is wrong")),
        ("not yet valid", |p| p.not_before = at(20).into(), Err("a clock is wrong")),
    ];
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lives = lives(60, 600, 6000, 10);
    let authority = Authority::open(plan(here.path(), lives), at(0)).unwrap();
    let other = Plan { trust_domain: "other.org".to_owned(), ..plan(there.path(), lives) };
    let other = Authority::open(other, at(0)).unwrap();
    let mut trust = trust(&authority);
    trust.bundles.insert("other.org".into(), Arc::clone(other.bundle()));
    for (name, forge, expected) in table {
        let chain = forged(&authority, forge);
        let proven =
            verify(&chain, &trust, Role::Client, at(10)).map(drop).map_err(|error| error.to_string());
        match expected {
            Ok(()) => assert_eq!(proven, Ok(()), "{name}"),
            Err(text) => {
                assert!(proven.as_ref().is_err_and(|error| error.contains(text)), "{name}: {proven:?}")
            }
        }
    }
    // The right name under another root: of a second authority of this name, and of a federated one.
    for elsewhere in
        [&other, &Authority::open(plan(tempfile::tempdir().unwrap().path(), lives), at(0)).unwrap()]
    {
        let error = verify(&forged(elsewhere, |_| {}), &trust, Role::Client, at(10)).unwrap_err();
        assert!(error.to_string().contains("another authority of that name signed it"), "{error}");
    }
    assert_eq!(verify(&[], &trust, Role::Client, at(10)), Err(VerifyError::None));
    // A leaf that signs another.
    let (id, key) = (SpiffeId::parse(NAME).unwrap(), new_key().unwrap());
    let leaf = authority.issue(&id, IssuedTo::default(), &key, at(0)).unwrap();
    let signer = Signer::new(leaf.chain[0].clone(), key).unwrap();
    let validity = Validity::new(at(0), Duration::from_secs(60), Duration::ZERO, None);
    let (below, _) = certify::svid(&id, IssuedTo::default(), &new_key().unwrap(), &signer, validity).unwrap();
    let chain = [vec![below], leaf.chain].concat();
    assert!(verify(&chain, &trust, Role::Client, at(10)).is_err());
}

#[test]
fn what_was_revoked_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(plan(folder.path(), lives(60, 600, 6000, 10)), at(0)).unwrap();
    let id = SpiffeId::parse(NAME).unwrap();
    let issued = authority
        .issue(&id, IssuedTo { node: Some("node-a"), ..IssuedTo::default() }, &new_key().unwrap(), at(0))
        .unwrap();
    let ours: Box<str> = "example.org".into();
    let table = [
        ("nothing", Revoked::default(), true),
        ("its serial", Revoked { serials: [issued.serial.clone()].into(), ..Revoked::default() }, false),
        ("its name", Revoked { ids: [id.clone()].into(), ..Revoked::default() }, false),
        ("its node", Revoked { nodes: ["node-a".into()].into(), ..Revoked::default() }, false),
        ("another node", Revoked { nodes: ["node-b".into()].into(), ..Revoked::default() }, true),
    ];
    for (name, revoked, is_valid) in table {
        let revoked = Revoked { trust_domain: ours.clone(), ..revoked };
        let trust = Trust { revoked: revoked.into(), ..trust(&authority) };
        assert_eq!(proven(&issued, &trust, at(1)).is_ok(), is_valid, "{name}");
    }
    let foreign = Revoked { trust_domain: "other.org".into(), ids: [id].into(), ..Revoked::default() };
    let trust = Trust { revoked: foreign.into(), ..trust(&authority) };
    assert!(proven(&issued, &trust, at(1)).is_ok(), "another trust domain's list says nothing of ours");
}

#[test]
fn a_list_of_revocations_is_the_authoritys_own_or_none() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let lives = lives(60, 600, 6000, 10);
    let mut authority = Authority::open(plan(here.path(), lives), at(0)).unwrap();
    let joined = |authority: &mut Authority| {
        let app_ids = ["docs".to_owned()];
        for address in ["", "15012", "a/b:1", ":15012", "host:0", "host:x", "a b:1"] {
            assert!(authority.token(("node-a", &app_ids), lives.svid, address.to_owned(), at(0)).is_err());
        }
        let address = "[::1]:15012".to_owned();
        let token = authority.token(("node-a", &app_ids), lives.svid, address, at(0)).unwrap();
        assert!(wire::JoinToken::parse(&token.to_string()).is_some_and(|read| read == token));
        let csr = nodes::csr(&new_key().unwrap()).unwrap();
        authority.join(&wire::JoinRequest { node: token.node, secret: token.secret, csr }, at(0)).unwrap();
        authority.revoke("0a0b", at(0)).unwrap();
        authority.trust_answer("node-a", at(1)).unwrap().revoked
    };
    let signed = joined(&mut authority);
    let trust = trust(&authority);
    let read = |signed: &wire::Signed, second| nodes::proven(signed, &trust, "example.org", at(second));
    assert_eq!(read(&signed, 1).unwrap().serials.len(), 1);
    let other = joined(&mut Authority::open(plan(there.path(), lives), at(0)).unwrap());
    // By a key that the authority has given to a workload.
    let key = new_key().unwrap();
    let issued = authority.issue(&SpiffeId::parse(NAME).unwrap(), IssuedTo::default(), &key, at(0)).unwrap();
    let workloads = wire::Signed {
        signature: svid_signature(&key, &signed.list),
        chain: issued.chain.iter().map(|one| pem("CERTIFICATE", one)).collect(),
        list: signed.list.clone(),
    };
    let table = [
        ("another list", wire::Signed { list: signed.list.replace("0a0b", "0a0c"), ..signed.clone() }, 1),
        (
            "without the serial",
            wire::Signed { list: signed.list.replace("\"0a0b\"", ""), ..signed.clone() },
            1,
        ),
        ("no signature", wire::Signed { signature: String::new(), ..signed.clone() }, 1),
        ("by another authority of this name", other, 1),
        ("by a workload", workloads, 1),
        ("by who signs no more", signed, 100),
    ];
    for (name, signed, second) in table {
        assert!(read(&signed, second).is_err(), "{name}");
    }
}

fn svid_signature(key: &KeyPair, list: &str) -> String {
    use rcgen::SigningKey as _;
    crate::svid::hex(&key.sign(format!("{}{list}", wire::SIGNED_AS).as_bytes()).unwrap())
}
