//! The table of methods, held against the specification's schemas, of which the Python SDK carries the last two as models that
//! are generated from them, and against the official SDKs' own lists: the Python SDK has one for each revision, without tasks,
//! and the TypeScript SDK one for 2025-11-25 with them.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_core::mcp::{Method, Revision};
use toolgate_tests::Scene;
use toolgate_tests::packages;
use toolgate_tests::scene::{message, text};

const PYTHON: &str = "
import json
from mcp_types import methods as m
sides = {'clients': (m.CLIENT_REQUESTS, m.CLIENT_NOTIFICATIONS), 'servers': (m.SERVER_REQUESTS, m.SERVER_NOTIFICATIONS)}
rows = [[side, version, method] for side, maps in sides.items() for one in maps for method, version in one]
print(json.dumps(rows))
";
/// What the schemas say, whichever side may: a method is a constant there.
const SCHEMAS: &str = r#"
import json, pathlib, re, mcp_types
folder = pathlib.Path(mcp_types.__file__).parent
rows = []
for version in ['2025-11-25', '2026-07-28']:
    models = (folder / ('_v' + version.replace('-', '_')) / '__init__.py').read_text()
    assert 'Generated; do not edit' in models
    rows += [['either', version, method] for method in re.findall(r'method: Literal\["([^"]+)"\]', models)]
print(json.dumps(rows))
"#;
const TYPESCRIPT: &str = "
const types = await import(process.argv[1]);
const sides = { clients: ['ClientRequest', 'ClientNotification'], servers: ['ServerRequest', 'ServerNotification'] };
const rows = Object.entries(sides).flatMap(([side, unions]) => unions.flatMap((union) =>
  types[union + 'Schema'].options.map((one) => [side, types.LATEST_PROTOCOL_VERSION, one.shape.method.value])));
console.log(JSON.stringify(rows));
";

/// Side, revision and method.
type Row = (String, String, String);

fn told(command: &mut Command) -> Result<BTreeSet<Row>> {
    let output = command.output().context("cannot ask an SDK")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice::<Vec<Row>>(&output.stdout)?.into_iter().collect())
}

/// Our table, of these methods and revisions.
fn ours(is_meant: impl Fn(Method, Revision) -> bool) -> BTreeSet<Row> {
    let row = |side: &str, revision: Revision, method: Method| {
        (side.to_owned(), revision.as_str().to_owned(), method.as_str().to_owned())
    };
    let of = |&method: &Method| {
        let clients = method.clients().iter().map(move |&revision| ("clients", revision, method));
        clients.chain(method.servers().iter().map(move |&revision| ("servers", revision, method)))
    };
    let all = Method::ALL.iter().flat_map(of).filter(|&(_, revision, method)| is_meant(method, revision));
    all.map(|(side, revision, method)| row(side, revision, method)).collect()
}

#[test]
fn the_table_is_that_of_the_official_sdks() -> Result<()> {
    let python = told(Command::new(packages("python2/bin/python")?).args(["-c", PYTHON]))?;
    assert_eq!(python, ours(|method, _| !method.as_str().contains("tasks")), "Python SDK");
    let revisions: BTreeSet<_> = python.iter().map(|(_, revision, _)| revision.as_str()).collect();
    assert_eq!(revisions, Revision::ALL.map(Revision::as_str).into(), "every revision has methods there");

    let types = packages("node/node_modules/@modelcontextprotocol/sdk/dist/esm/types.js")?;
    let mut node = Command::new("node");
    let typescript = told(node.args(["--input-type=module", "-e", TYPESCRIPT]).arg(types))?;
    assert_eq!(typescript, ours(|_, revision| revision == Revision::November2025), "TypeScript SDK");
    Ok(())
}

#[test]
fn the_table_is_that_of_the_specifications_schemas() -> Result<()> {
    let schemas = told(Command::new(packages("python2/bin/python")?).args(["-c", SCHEMAS]))?;
    // Of 2026-07-28 tasks are an extension, with a schema of its own.
    let has_schema = |method: Method, revision| match revision {
        Revision::November2025 => true,
        Revision::July2026 => !method.as_str().contains("tasks"),
        Revision::November2024 | Revision::March2025 | Revision::June2025 => false,
    };
    // What servers ask there within an answer alone, as `inputRequests`, is no message of either side.
    let within = ["sampling/createMessage", "elicitation/create", "roots/list"];
    let within = within.map(|method| (Revision::July2026.as_str().to_owned(), method.to_owned()));
    let ours = ours(has_schema).into_iter().map(|(_, revision, method)| (revision, method));
    let ours: BTreeSet<_> = ours.chain(within).collect();
    let schemas: BTreeSet<_> = schemas.into_iter().map(|(_, revision, method)| (revision, method)).collect();
    assert_eq!(schemas, ours);
    Ok(())
}

#[test]
fn a_method_in_no_table_is_denied_and_counted_as_other() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    let methods = ["of/its_own", "tools/Call", "other", "notifications/made_up"];
    for ((number, method), lines_min) in (1..).zip(methods).zip(1..) {
        let told = connection.post(&message(number, method, &json!({})))?.message()?;
        assert_eq!(told.pointer("/error/code"), Some(&json!(-31403)), "{method}");
        let is_it = |line: &Value| text(line, "method") == method && text(line, "reason") == "method_unknown";
        let lines = scene.agent.audit_until(method, |lines| lines.len() >= lines_min)?;
        ensure!(lines.iter().any(is_it), "{lines:#?}");
    }
    let labels = [r#"method="other""#, r#"decision="deny""#, r#"reason="method_unknown""#];
    scene.agent.counts("toolgate_requests_total{", &labels, 4.0)?;
    scene.nothing_reached_the_server(&mut connection)
}
