//! Every error that a file can cause, with its place, and what good files become.

mod agent_file;
mod endpoint;
mod kinds;
mod rules;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::diagnostic::Severity;
use super::source::Source;
use super::words::Findings;
use super::*;

/// Long enough for any machine; a test waits so long only when it fails.
const WAIT_MAX: Duration = Duration::from_secs(20);

fn source(text: &str) -> Source {
    Source { file: "x.yaml".into(), text: text.to_owned(), mode: 0o600 }
}

fn compile(text: &str) -> Result<Resources, Vec<Diagnostic>> {
    resources::compile(&[source(text)], &AgentConfig::default(), Findings::default())
}

/// `line:column message` of each finding of one severity.
fn shown(findings: &[Diagnostic], severity: Severity) -> Vec<String> {
    let chosen = findings.iter().filter(|finding| finding.severity == severity);
    chosen.map(|finding| format!("{}:{} {}", finding.line, finding.column, finding.message)).collect()
}

/// Each text with the beginnings of the errors that it must cause, in the order of the report. Each shows its line where no
/// secret may stand there.
fn check(table: &[(String, Vec<String>)], read: impl Fn(&str) -> Vec<Diagnostic>) {
    let mut failed = Vec::new();
    for (text, expected) in table {
        let errors = read(text);
        let got = shown(&errors, Severity::Error);
        let fits =
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, want)| got.starts_with(want));
        let has_line = !source(text).may_hold_secrets();
        if !fits || errors.iter().any(|error| error.line > 0 && error.excerpt.is_some() != has_line) {
            failed.push(format!("{text}\n  got      {got:#?}\n  expected {expected:#?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn owned(table: &[(&str, &[&str])], whole: impl Fn(&str) -> String) -> Vec<(String, Vec<String>)> {
    table
        .iter()
        .map(|(text, errors)| (whole(text), errors.iter().map(|&one| one.to_owned()).collect()))
        .collect()
}

fn refused(text: &str) -> Vec<Diagnostic> {
    compile(text).expect_err(text)
}

const HEAD: &str = "apiVersion: toolgate/v1\nkind: ";

/// A server, a workload, and a policy with this rule on line 14, its keys from column 7.
fn with_rule(rule: &str) -> String {
    format!(
        "{HEAD}Server\nmetadata: {{ name: docs }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }} }}\n---\n\
         {HEAD}Workload\nmetadata: {{ name: agent }}\nspec: {{}}\n---\n\
         {HEAD}Policy\nmetadata: {{ name: p }}\nspec: {{ rules: [\n    {{ {rule} }},\n  ] }}\n"
    )
}

#[test]
fn default_file_states_the_defaults() {
    assert_eq!(agent::parse(&source(DEFAULT)), Ok(AgentConfig::default()));
    assert_eq!(agent::parse(&source("# nothing\n")), Ok(AgentConfig::default()));
}

#[test]
fn warnings_do_not_stop() {
    let table: &[(&str, &[&str])] = &[
        (
            "name: r, effect: allow, callers: [agnet], servers: [docs], tools: [a]",
            &["15:41 no Workload is called `agnet`"],
        ),
        (
            "name: r, effect: allow, callers: [agent], servers: [docs, \"x*\"], tools: [a]",
            &["15:65 no Server has the App ID `x*`"],
        ),
        (
            "name: r, effect: allow, callers: [\"*\", spiffe://other.org/ns/a/b], servers: [\"*\"], tools: [a]",
            &[],
        ),
    ];
    for (rule, expected) in table {
        let resources = compile(&with_rule(rule)).unwrap_or_else(|findings| panic!("{rule}: {findings:#?}"));
        let got = shown(&resources.warnings, Severity::Warning);
        assert!(got.len() == expected.len(), "{rule}: {got:?}");
        assert!(
            got.iter().zip(*expected).all(|(got, expected)| got.starts_with(expected)),
            "{rule}: {got:?}"
        );
    }
    let lonely = format!(
        "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}, enforcement: dangerous_observe }}\n"
    );
    let got = shown(&compile(&lonely).unwrap().warnings, Severity::Warning);
    let expected = [
        "3:19 no policy names `s`: every call to it is denied",
        "4:57 what policy would deny on this server passes",
    ];
    assert_eq!(got, expected);
    let exe =
        format!("{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ exe: /no/such/file }} }}\n");
    let resources = compile(&exe).unwrap();
    assert_eq!(shown(&resources.warnings, Severity::Warning).len(), 1);
    assert_eq!(resources.workloads[0].selectors.exe.as_ref().unwrap().file, None);
}

#[test]
fn pins_are_read_and_explained() {
    use toolgate_core::pin::{HiddenCharacters, Mode, Pinning};
    let (deny, allow) = (HiddenCharacters::Deny, HiddenCharacters::Allow);
    let table = [
        ("", Mode::Off, allow, ""),
        (", pins: off", Mode::Off, allow, ""),
        (", pins: warn", Mode::Warn, allow, "what nobody approved passes and is recorded (pins: warn)"),
        (", pins: enforce", Mode::Enforce, deny, "called (pins: enforce), nothing with hidden characters"),
        (", pins: first_use", Mode::FirstUse, deny, "first seen is (pins: first_use), nothing with hidden"),
        (", pins: enforce, hidden_characters: allow", Mode::Enforce, allow, "also with hidden characters"),
    ];
    for (keys, mode, hidden, expected) in table {
        let text = format!(
            "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}{keys} }}\n"
        );
        let resources = compile(&text).unwrap_or_else(|findings| panic!("{keys}: {findings:#?}"));
        assert_eq!(resources.servers[0].pinning, Pinning { mode, hidden }, "{keys}");
        let explained = explain(&AgentConfig::default(), &resources);
        assert!(explained.contains(expected), "{keys}: {explained}");
        assert_eq!(explained.contains("pins"), mode != Mode::Off, "{keys}: {explained}");
    }
}

#[test]
fn a_transport_is_read_with_its_own_path_and_explained() {
    use toolgate_core::decision::Transport;
    let table = [
        ("", Transport::Streamable, "path /mcp;"),
        (", transport: streamable", Transport::Streamable, "path /mcp;"),
        (", transport: sse", Transport::Sse, "path /sse (HTTP with SSE);"),
        (", transport: sse, path: /events", Transport::Sse, "path /events (HTTP with SSE);"),
    ];
    for (keys, transport, expected) in table {
        let text = format!(
            "{HEAD}Server\nmetadata: {{ name: s }}\nspec: {{ local: {{ address: \"127.0.0.1:1\" }}{keys} }}\n"
        );
        let resources = compile(&text).unwrap_or_else(|findings| panic!("{keys}: {findings:#?}"));
        assert_eq!(resources.servers[0].transport, transport, "{keys}");
        let explained = explain(&AgentConfig::default(), &resources);
        assert!(explained.contains(expected), "{keys}: {explained}");
    }
}

/// The warnings of one Workload with these selectors.
fn warned(selectors: &str) -> Vec<Diagnostic> {
    let text = format!("{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ {selectors} }} }}\n");
    compile(&text).unwrap_or_else(|findings| panic!("{selectors}: {findings:#?}")).warnings
}

#[test]
fn interpreters_and_scripts_are_warned_of() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("python3.12"), "\x7fELF").unwrap();
    symlink(at("python3.12"), at("agent")).unwrap();
    std::fs::write(at("tool"), "\x7fELF").unwrap();
    std::fs::write(at("script"), "#! /usr/bin/env python3\nprint()\n").unwrap();
    let (any, narrow) = ("runs whatever it is given", "add the `unit`, `cgroup`, `user` or `container`");
    let digest = "0".repeat(64);
    let table: &[(String, Option<(&str, &str)>)] = &[
        (format!("exe: {}", at("python3.12")), Some((any, narrow))),
        (format!("exe: {}", at("agent")), Some((any, narrow))),
        (format!("exe: {}, exe_sha256: \"{digest}\"", at("agent")), Some((any, narrow))),
        (format!("exe: {}, unit: a.service", at("agent")), None),
        (format!("exe: {}, cgroup: a", at("agent")), None),
        (format!("exe: {}, user: 1", at("agent")), None),
        (format!("exe: {}, container: {{ machine: a }}", at("agent")), None),
        (format!("exe: {}", at("tool")), None),
        (
            format!("exe: {}, user: 1", at("script")),
            Some(("is a script, so no process fits", "write `exe: /usr/bin/env`")),
        ),
    ];
    for (selectors, expected) in table {
        let warnings = warned(selectors);
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{selectors}: {warnings:#?}");
        if let (Some((message, help)), [warning]) = (expected, warnings.as_slice()) {
            assert!(warning.message.contains(message), "{selectors}: {warning}");
            assert!(warning.help.as_ref().is_some_and(|text| text.contains(help)), "{selectors}: {warning}");
            assert_eq!((warning.line, warning.column), (4, 27), "{selectors}: {warning}");
        }
    }
}

#[test]
fn findings_look_like_those_of_rustc() {
    let text = with_rule("name: r, effect: allow, callers: [agent], servers: [dosc], tools: [a]");
    let errors = compile(&text).unwrap_err();
    let expected = "\
error: no Server has the App ID `dosc`
  --> x.yaml:15:59
   |
15 |     { name: r, effect: allow, callers: [agent], servers: [dosc], tools: [a] },
   |                                                           ^^^^
   = help: did you mean `docs`?
";
    assert_eq!(errors[0].to_string(), expected);
}

#[test]
fn a_directory_is_read_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let agent = AgentConfig::default();
    assert_eq!(load_resources(dir.path(), &agent).unwrap().servers.len(), 0);
    let server = |name: &str, port: u16| {
        format!(
            "{HEAD}Server\nmetadata: {{ name: {name} }}\nspec: {{ local: {{ address: \"127.0.0.1:{port}\" }} }}\n"
        )
    };
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
    write("b.yaml", &server("b", 2));
    write("a.yml", &server("a", 1));
    write(".hidden.yaml", "nonsense: [");
    write("README", "nonsense: [");
    let good = load_resources(dir.path(), &agent).unwrap();
    let names: Vec<&str> = good.servers.iter().map(|server| server.identity.app_id()).collect();
    assert_eq!(names, ["a", "b"]);
    write("c.yaml", "nonsense: [");
    assert_eq!(load_resources(dir.path(), &agent).unwrap_err().len(), 1);
    write("c.yaml", "");
    assert!(load_resources(dir.path(), &agent).unwrap().generation > good.generation);
    let missing = load_resources(&dir.path().join("missing"), &agent).unwrap_err();
    assert!(missing[0].to_string().contains("cannot read the directory"), "{}", missing[0]);
    assert!(load_agent(&dir.path().join("missing")).is_err());
    assert_eq!(load_agent(dir.path()), Ok(agent));
}

#[test]
fn changes_are_seen_however_they_are_made() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("resources");
    for name in ["resources", "v1", "v2"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
    }
    let (v1, v2) = (root.path().join("v1"), root.path().join("v2"));
    std::fs::write(v1.join("linked.yaml"), "one").unwrap();
    std::fs::write(v2.join("linked.yaml"), "two").unwrap();
    let link = |target: &Path, name: &str| {
        let temporary = root.path().join("link.tmp");
        std::os::unix::fs::symlink(target, &temporary).unwrap();
        std::fs::rename(&temporary, dir.join(name)).unwrap();
    };
    link(&v1.join("linked.yaml"), "linked.yaml");
    let (changed, changes) = mpsc::channel();
    let watch = watch::watch(&dir, move || changed.send(()).unwrap()).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let steps: [(&str, &dyn Fn()); 6] = [
        ("created", &|| write("a.yaml", "one")),
        ("written", &|| write("a.yaml", "two")),
        ("renamed into place", &|| {
            std::fs::write(root.path().join("a.tmp"), "three").unwrap();
            std::fs::rename(root.path().join("a.tmp"), dir.join("a.yaml")).unwrap();
        }),
        ("written behind a link", &|| std::fs::write(v1.join("linked.yaml"), "three").unwrap()),
        ("link swapped", &|| link(&v2.join("linked.yaml"), "linked.yaml")),
        ("removed", &|| std::fs::remove_file(dir.join("a.yaml")).unwrap()),
    ];
    for (name, step) in steps {
        step();
        assert!(changes.recv_timeout(WAIT_MAX).is_ok(), "{name}");
        // One change may come as two where the machine is slow between its parts.
        while changes.try_recv().is_ok() {}
    }
    drop(watch);
    assert!(changes.recv().is_err());
}

/// Whether this process holds a file that has no name any more.
fn is_held(path: &Path) -> bool {
    let gone = format!("{} (deleted)", path.display());
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    descriptors.flatten().any(|one| std::fs::read_link(one.path()).is_ok_and(|link| link == Path::new(&gone)))
}

#[test]
fn another_file_never_gets_the_inode_of_a_selected_executable() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("agent");
    std::fs::write(&path, "the selected one").unwrap();
    let text = format!(
        "{HEAD}Workload\nmetadata: {{ name: w }}\nspec: {{ selectors: {{ exe: {} }} }}\n",
        path.display()
    );
    let resources = compile(&text).unwrap();
    let selected = resources.workloads[0].selectors.exe.as_ref().unwrap().file.unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(is_held(&path));
    for at in 0..16 {
        let other = dir.path().join(at.to_string());
        std::fs::write(&other, "made by someone else").unwrap();
        assert_ne!(std::fs::metadata(&other).unwrap().ino(), selected.ino);
    }
    drop(resources);
    assert!(!is_held(&path), "no longer than the resources live");
}
