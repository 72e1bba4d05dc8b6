//! SVIDs as their users see them: there without a wait, renewed in time, made by nobody before they are needed.
#![expect(clippy::unwrap_used, reason = "a test whose scene cannot be set fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use toolgate::ca::{Authority, Lives, Plan};
use toolgate::svid::{Operation, Role, Source, SvidError, Svids, verify};
use toolgate_core::identity::Identity;

/// Until what must happen has happened.
const PATIENCE: Duration = Duration::from_secs(30);

fn plan(folder: &Path) -> Plan {
    let [svid, issuing, root, overlap, skew] = [2, 60, 600, 10, 1].map(Duration::from_secs);
    let lives = Lives { svid, issuing, root, overlap, skew, root_is_credential: false };
    let (state_directory, trust_domain) = (folder.to_owned(), "example.org".to_owned());
    Plan { state_directory, trust_domain, lives, credentials: None }
}

fn identity(app_id: &str) -> Identity {
    Identity::new("example.org", "default", app_id).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn who_is_used_is_renewed_in_time_and_who_is_not_is_forgotten() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(plan(folder.path()), SystemTime::now()).unwrap();
        let svids = Svids::start(Source::Embedded(Box::new(authority))).unwrap();
        let (used, unused) = (identity("used"), identity("unused"));
        svids.obtain(&used).await.unwrap();
        svids.obtain(&unused).await.unwrap();
        let mut changed = svids.changed();
        let mut serials = BTreeSet::new();
        while serials.len() < 4 {
            let svid = svids.svid(&used).expect("there at any time, without a wait");
            assert!(verify(svid.chain(), &svids.trust(), Role::Client, SystemTime::now()).is_ok());
            serials.insert(svid.serial.clone());
            tokio::time::timeout(PATIENCE, changed.changed()).await.expect("not renewed").unwrap();
        }
        assert!(svids.svid(&unused).is_none());
        let status = svids.operate(Operation::Status).await.unwrap();
        let names: Vec<&str> = status["svids"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|svid| svid["spiffe_id"].as_str())
            .collect();
        assert_eq!(names, ["spiffe://example.org/ns/default/used"]);
    });
}

#[test]
fn an_authority_on_demand_is_made_when_it_is_needed_and_told_why_it_cannot_be() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (plan, place) = (plan(folder.path()), folder.path().join("ca"));
        let open = move || Ok(Source::Embedded(Box::new(Authority::open(plan.clone(), SystemTime::now())?)));
        let svids = Svids::on_demand(open).unwrap();
        assert!(svids.trust().bundles.is_empty() && !place.exists());
        std::fs::write(&place, "in the way").unwrap();
        let error = svids.obtain(&identity("agent")).await.unwrap_err();
        assert!(matches!(error, SvidError::Authority(_)) && error.to_string().contains("ca`"), "{error}");
        std::fs::remove_file(&place).unwrap();
        let svid = svids.obtain(&identity("agent")).await.unwrap();
        assert!(verify(svid.chain(), &svids.trust(), Role::Server, SystemTime::now()).is_ok());
        let foreign = Identity::new("other.org", "default", "agent").unwrap();
        let error = svids.obtain(&foreign).await.unwrap_err().to_string();
        assert!(
            error.contains("is of trust domain `other.org`, and SVIDs are issued here for `example.org`")
        );
    });
}
