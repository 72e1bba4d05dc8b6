//! `toolgate ca`: the authority as its operator sees it, and as OpenSSL does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toolgate::app::authority_plan;
use toolgate::ca::Authority;
use toolgate::config::AgentConfig;
use toolgate::svid::{JoinPlan, Joined, Source, Svids};
use toolgate_core::identity::Identity;
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Host, Setup, free_address, toolgate};

/// `toolgate ca WORDS --config DIR`.
fn ca(config: &Path, words: &[&str]) -> Result<Output> {
    toolgate().arg("ca").args(words).arg("--config").arg(config).output().context("cannot start it")
}

fn done(config: &Path, words: &[&str]) -> Result<Value> {
    let output = ca(config, &[words, &["--json"]].concat())?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("no JSON")
}

fn refused(config: &Path, words: &[&str]) -> Result<String> {
    let output = ca(config, words)?;
    ensure!(output.status.code() == Some(1), "{words:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn stages(status: &Value, key: &str) -> Vec<String> {
    list(status, key).iter().map(|one| text(one, "stage").to_owned()).collect()
}

#[test]
fn an_authority_is_made_rotated_backed_up_and_restored() -> Result<()> {
    let mut agent = Agent::start(Setup::default())?;
    let config = agent.config().to_owned();
    let folder = config.join("store/ca");
    ensure!(!folder.exists(), "nothing is made before it is needed");
    let first = done(&config, &["status"])?;
    ensure!(fs::metadata(&folder)?.mode() & 0o777 == 0o700);
    for file in fs::read_dir(&folder)? {
        let file = file?;
        let is_key = file.file_name().to_string_lossy().ends_with(".key");
        ensure!(!is_key || file.metadata()?.mode() & 0o777 == 0o600, "{file:?}");
    }
    ensure!(
        (stages(&first, "roots"), stages(&first, "issuing"))
            == (vec!["active".into()], vec!["active".into()])
    );
    let issuing = done(&config, &["rotate", "--issuing"])?;
    ensure!(stages(&issuing, "issuing") == ["retired", "active"], "{issuing:#}");
    let rotated = done(&config, &["rotate"])?;
    ensure!(stages(&rotated, "roots") == ["active", "prepared"], "{rotated:#}");
    ensure!(refused(&config, &["rotate"])?.contains("is prepared already, and signs from"));
    let words = String::from_utf8(ca(&config, &["status"])?.stdout)?;
    ensure!(words.contains("prepared") && words.contains("signs from"), "{words}");

    let safe = tempfile::tempdir()?;
    let file = safe.path().join("ca.json");
    let path = file.display().to_string();
    done(&config, &["backup", &path])?;
    ensure!(fs::metadata(&file)?.mode() & 0o777 == 0o600);
    ensure!(refused(&config, &["backup", &path])?.contains("File exists"));
    ensure!(refused(&config, &["restore", &path])?.contains("the agent runs"));
    let events: Vec<String> = agent.audit(4)?.iter().map(|line| text(line, "event").to_owned()).collect();
    ensure!(events.iter().filter(|event| *event == "authority_rotated").count() == 3, "{events:?}");
    ensure!(events.iter().any(|event| event == "authority_backed_up"), "{events:?}");

    agent.stop()?;
    ensure!(refused(&config, &["restore", &path])?.contains("exists, and is left as it is"));
    fs::rename(&folder, config.join("store/ca.before"))?;
    done(&config, &["restore", &path])?;
    let state = |folder: &Path| fs::read_to_string(folder.join("authority.json"));
    ensure!(state(&folder)? == state(&config.join("store/ca.before"))?);
    Ok(())
}

#[test]
fn a_node_joins_an_agent_and_openssl_believes_what_it_gets() -> Result<()> {
    let authority = free_address()?;
    let agent = Agent::start(Setup { authority: Some(authority), ..Setup::default() })?;
    let config = agent.config();
    let made = done(config, &["token", "--node", "node-a", "--app-ids", "docs,agent.team"])?;
    ensure!(list(&made, "app_ids").len() == 2 && text(&made, "token").ends_with(&format!("/{authority}")));
    ensure!(
        refused(config, &["token", "--node", "N", "--app-ids", "docs"])?.contains("`N` is no valid App ID")
    );
    ensure!(list(&done(config, &["nodes"])?, "tokens").len() == 1);

    let state = tempfile::tempdir()?;
    let token_file = state.path().join("token");
    fs::write(&token_file, text(&made, "token"))?;
    fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600))?;
    let plan = JoinPlan {
        state_directory: state.path().to_owned(),
        trust_domain: "example.org".to_owned(),
        token_file: Some(token_file),
    };
    let node = Svids::start(Source::Joined(Box::new(Joined::open(plan, SystemTime::now())?)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let obtain = |app_id: &str| {
        let identity = Identity::new("example.org", "default", app_id)?;
        Ok::<_, anyhow::Error>(runtime.block_on(node.obtain(&identity))?)
    };
    let svid = obtain("docs")?;
    ensure!(
        openssl_text(svid.chain().first().context("no leaf")?)?
            .contains("URI:spiffe://example.org/ns/default/docs")
    );
    let refused_id = obtain("agent").map(drop).err().context("a foreign App ID")?.to_string();
    ensure!(refused_id.contains("is registered for `agent.team`, `docs`, not for `agent`"), "{refused_id}");

    let words = String::from_utf8(ca(config, &["nodes"])?.stdout)?;
    ensure!(
        words.contains("node-a") && words.contains("joined") && words.contains("agent.team, docs"),
        "{words}"
    );
    ensure!(refused(config, &["revoke", "node-x"])?.contains("is neither a node"));
    let revoked = done(config, &["revoke", "node-a"])?;
    ensure!(
        list(&revoked, "nodes").iter().any(|node| node.get("revoked_at") != Some(&Value::Null)),
        "{revoked:#}"
    );
    let events: Vec<String> = agent.audit(4)?.iter().map(|line| text(line, "event").to_owned()).collect();
    for event in ["token_made", "node_joined", "node_refused", "revoked"] {
        ensure!(events.iter().any(|found| found == event), "no `{event}` in {events:?}");
    }
    Ok(())
}

/// What `openssl x509 -text` says.
fn openssl_text(der: &[u8]) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("leaf.der");
    fs::write(&file, der)?;
    let output = Command::new("openssl")
        .args(["x509", "-inform", "der", "-text", "-noout", "-in"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// The files of a folder, as they are.
fn everything(folder: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let files = fs::read_dir(folder)?.map(|file| {
        let path = file?.path();
        let mode = fs::metadata(&path)?.mode();
        let content = fs::read(&path)?;
        Ok((path, (mode, content)))
    });
    files.collect()
}

#[test]
fn an_agent_does_not_start_on_an_authority_that_is_not_its_own() -> Result<()> {
    let _turn = Host::turn()?;
    type Damage = fn(&Path) -> Result<()>;
    let key = |folder: &Path| -> Result<PathBuf> {
        let mut files = fs::read_dir(folder)?.filter_map(|file| Some(file.ok()?.path()));
        files.find(|file| file.to_string_lossy().contains("/root-")).context("no root key")
    };
    let store = tempfile::tempdir()?;
    let folder = store.path().join("ca");
    let begin = |trust_domain: &str| -> Result<String> {
        let settings = Agent::other_settings(store.path())?;
        let places = store.path().join("store").display().to_string();
        let settings = settings.replace(&places, &store.path().display().to_string());
        Ok(format!("trust_domain: {trust_domain}\n{settings}"))
    };
    let agent = AgentConfig { store: store.path().to_owned(), ..AgentConfig::default() };
    drop(Authority::open(authority_plan(&agent), SystemTime::now())?);
    let before = everything(&folder)?;
    let ended = Agent::refused(&begin("other.org")?, "")?;
    ensure!(everything(&folder)? == before, "another trust domain's: something was written");
    ensure!(
        ended.said.contains("is of trust domain `example.org`, and `trust_domain` says `other.org`"),
        "{}",
        ended.said
    );
    let whole = fs::read(key(&folder)?)?;
    let table: &[(&str, Damage, &str)] = &[
        ("foreign owner", |key| Ok(chown(key, Some(65_534), None)?), "belongs to uid 65534, not to 0"),
        ("wide mode", |key| Ok(fs::set_permissions(key, fs::Permissions::from_mode(0o604))?), "has mode 604"),
        ("truncated", |key| Ok(fs::write(key, "-----BEGIN PRIVATE KEY-----\nMIGH")?), "is no P-256 key"),
        ("gone", |key| Ok(fs::remove_file(key)?), "is missing beside other files"),
    ];
    for (name, damage, expected) in table {
        let key = key(&folder).with_context(|| (*name).to_owned())?;
        damage(&key)?;
        let before = everything(&folder)?;
        let ended = Agent::refused(&begin("example.org")?, "")?;
        ensure!(everything(&folder)? == before, "{name}: something was written");
        ensure!(!ended.status.success() && ended.said.contains(expected), "{name}: {}", ended.said);
        ensure!(ended.said.contains(&key.display().to_string()), "{name}: {}", ended.said);
        let _ = fs::remove_file(&key);
        fs::write(&key, &whole)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    }
    let joins = format!("identity: {{ source: join }}\n{}", begin("example.org")?);
    let ended = Agent::refused(&joins, "")?;
    ensure!(ended.said.contains("`toolgate ca token` on the authority makes one"), "{}", ended.said);
    Ok(())
}
