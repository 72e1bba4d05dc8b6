//! The command line: `exec` is the command it starts, `check` says where, `status` says what, `detach` cleans up.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use nix::pty::openpty;
use nix::sys::signal::{SigHandler, Signal};
use nix::unistd::User;
use serde_json::{Value, json};
use toolgate_tests::scene::{call, initialize, is_result, resources};
use toolgate_tests::{
    Agent, Host, Process, Scene, Server, Setup, cgroup2, free_address, scene, toolgate, wait,
};

#[test]
fn exec_is_the_command_it_starts() -> Result<()> {
    let agent = Agent::start(Setup::default())?;
    let run = |script: &str| agent.exec("tester").args(["sh", "-c", script]).output().context("cannot start");

    assert_eq!(run("exit 7")?.status.code(), Some(7));
    let said = run("echo out; echo err >&2")?;
    assert_eq!((said.stdout.as_slice(), said.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));

    let mut process = Process::start(agent.exec("tester").args(["sh", "-c", "echo $$; exec cat"]))?;
    let pid = process.id().to_string();
    assert_eq!(process.line(&pid)?, pid, "the command has the pid of `toolgate exec`");
    process.say("its input is ours")?;
    process.line("its input is ours")?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    assert!(cgroup.contains("/toolgate.exec/tester."), "{cgroup}");
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.end()?.signal(), Some(Signal::SIGTERM as i32));
    Ok(())
}

#[test]
fn exec_leaves_the_terminal_to_the_command() -> Result<()> {
    let agent = Agent::start(Setup::default())?;
    let pty = openpty(None, None).context("no pseudo-terminal")?;
    let mut terminal = fs::File::from(pty.master);
    let mut command = agent.exec("tester");
    command.args(["sh", "-c", "test -t 0 && test -t 1 && echo a terminal; exec cat"]);
    let ends = [pty.slave.try_clone()?, pty.slave.try_clone()?, pty.slave];
    let [input, output, errors] = ends.map(Stdio::from);
    command.stdin(input).stdout(output).stderr(errors);
    // SAFETY: between fork and exec nothing is called but setsid(2), ioctl(2) and sigaction(2), which are
    // async-signal-safe; no handler is set.
    unsafe {
        command.pre_exec(|| {
            // A shell that runs the tests in the background has them, and what they start, ignore it.
            nix::sys::signal::signal(Signal::SIGINT, SigHandler::SigDfl)?;
            nix::unistd::setsid()?;
            nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start `toolgate exec`")?;
    // Its copies of the terminal's other end: with them open here, the end of the command would not be seen.
    drop(command);
    let mut said = String::new();
    let mut some = [0; 256];
    while !said.contains("a terminal") {
        let read = terminal.read(&mut some).with_context(|| format!("it said: {said}"))?;
        said += &String::from_utf8_lossy(some.get(..read).unwrap_or_default());
    }
    terminal.write_all(b"\x03").context("cannot type Ctrl-C")?;
    let status = wait::until("the end by Ctrl-C", || child.try_wait().context("cannot wait for it"));
    let _ended_already = child.kill();
    let _reaped = child.wait();
    assert_eq!(status?.signal(), Some(Signal::SIGINT as i32));
    Ok(())
}

#[test]
fn exec_runs_the_command_as_another_user_and_the_audit_says_so() -> Result<()> {
    let scene = Scene::set()?;
    let nobody = User::from_name("nobody")?.context("no user `nobody`")?;
    let exec = |script: &str| -> Result<String> {
        let mut command = scene.agent.toolgate("exec");
        command.args(["--app-id", "reader", "--user", "nobody", "--", "bash", "-c", script]);
        let output = command.current_dir("/").output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let expected = format!("{0} {0} {1} {1}\n", nobody.uid, nobody.gid);
    let said = exec("echo $(id -u) $(id -ru) $(id -g) $(id -rg)")?;
    assert_eq!(said, expected, "nothing of root is left");
    assert!(!exec("id -G")?.split_whitespace().any(|group| group == "0"), "nor its groups");

    let (host, body) = (scene.server.address, call(1, "delete_everything", &json!({})));
    let request = format!(
        "POST /mcp HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Type: application/json\\r\\nConnection: close\\r\\n\
         Content-Length: {}\\r\\n\\r\\n{}",
        body.len(),
        String::from_utf8_lossy(&body)
    );
    let port = host.port();
    let reply = exec(&format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3"))?;
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let line = scene.agent.audit(1)?.pop().context("no audit line")?;
    assert_eq!(line.pointer("/caller/uid"), Some(&json!(nobody.uid.as_raw())), "{line}");
    assert_eq!(scene::text(&line, "reason"), "no_rule", "{line}");
    Ok(())
}

#[test]
fn exec_says_what_is_wrong() -> Result<()> {
    let agent = Agent::start(Setup::default())?;
    let plain = agent.config().join("toolgate.yaml").display().to_string();
    let folder = agent.config().display().to_string();
    let absent = agent.config().join("absent").display().to_string();
    for (command, code) in
        [("no-such-command", 127), (absent.as_str(), 127), (plain.as_str(), 126), (folder.as_str(), 126)]
    {
        let output = agent.exec("tester").arg(command).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "as a shell says it of `{command}`: {said}");
        assert!(said.contains(&format!("`{command}`")), "{said}");
    }
    let name = agent.exec("not/a name").arg("true").output()?;
    assert!(!name.status.success() && String::from_utf8_lossy(&name.stderr).contains("`not/a name`"));
    let config = agent.config().to_owned();
    let mut agent = agent;
    agent.stop()?;
    let nobody =
        toolgate().args(["exec", "--app-id", "a", "--config"]).arg(config).args(["--", "true"]).output()?;
    assert!(!nobody.status.success() && String::from_utf8_lossy(&nobody.stderr).contains("toolgate run"));
    Ok(())
}

#[test]
fn exec_is_refused_for_an_app_id_whose_workload_does_not_fit() -> Result<()> {
    let workload = |name: &str, selectors: &str| {
        format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: {name} }}\nspec:\n  selectors: {selectors}\n---\n"
        )
    };
    let server = Server::start()?;
    let text = [
        workload("reader", "{ unit: research-agent.service }"),
        workload("writer", "{ cgroup: \"/toolgate.exec/writer.*\" }"),
        resources(server.address),
    ];
    let agent = Agent::start(Setup { resources: &text.concat(), ..Setup::default() })?;

    let refused = agent.exec("reader").arg("true").output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("`reader`"), "{said}");
    // The twin whose selectors fit.
    let reply = agent.caller("writer")?.http(server.address)?.post(&call(1, "echo", &json!({})))?;
    assert!(is_result(&reply)?, "{}", reply.text());
    Ok(())
}

#[test]
fn check_says_what_would_happen_or_where_it_is_wrong() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("resources"))?;
    let settings = Agent::other_settings(folder.path())?;
    let good = resources(free_address()?);
    let check = |settings: &str, resources: &str| -> Result<(bool, String)> {
        fs::write(folder.path().join("toolgate.yaml"), settings)?;
        fs::write(folder.path().join("resources/all.yaml"), resources)?;
        let output = toolgate().arg("check").arg("--config").arg(folder.path()).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };

    let (fine, said) = check(&settings, &good)?;
    assert!(fine, "{said}");
    for word in ["docs", "reader", "echo", "plain-tools", "at most 100"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    let cases = [
        (format!("{settings}unknown: 1\n"), good.clone(), "toolgate.yaml:4:1", "unknown"),
        (settings.clone(), good.replace("effect: allow", "effekt: allow"), "all.yaml:14:5", "effekt"),
        (settings.clone(), good.replace("kind: Policy", "kind: MCPServer"), "all.yaml:9:7", "MCPServer"),
        (settings, good.replace("max: 100", "maximum: 100"), "all.yaml:23:", "maximum"),
    ];
    for (settings, resources, place, word) in cases {
        let (fine, said) = check(&settings, &resources)?;
        assert!(!fine && said.contains(place) && said.contains(word), "{place}: {said}");
        assert!(said.contains('^'), "no excerpt: {said}");
    }
    Ok(())
}

/// Every command that a user sees.
const COMMANDS: [&str; 13] = [
    "run",
    "upgrade",
    "bypass",
    "exec",
    "check",
    "status",
    "discover",
    "tools",
    "ca",
    "inspect",
    "detach",
    "completions",
    "man",
];
/// Those of `tools`.
const TOOLS: [&str; 4] = ["list", "diff", "approve", "revoke"];
/// Those of `ca`.
const CA: [&str; 7] = ["status", "rotate", "token", "nodes", "revoke", "backup", "restore"];
/// Those of `inspect`.
const INSPECT: [&str; 1] = ["trust"];

/// Runs it to its end: exit code, output, errors.
fn said(arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = toolgate().args(arguments).output().context("cannot start it")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn the_exit_code_tells_usage_configuration_and_a_missing_agent_apart() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("resources"))?;
    let settings = Agent::other_settings(folder.path())?;
    let dir = folder.path().display().to_string();
    let good = resources(free_address()?);
    let bad = good.replace("effect: allow", "effekt: allow");
    let gone = good.replace("local: {", "local: { workload: nobody,");
    let cases: [(&str, &str, &[&str], i32, &str); 12] = [
        (&settings, &good, &["check", "--config", &dir], 0, ""),
        (&settings, &bad, &["check", "--config", &dir], 2, "effekt"),
        (&settings, &gone, &["check", "--config", &dir], 2, "nobody"),
        ("x: 1", &good, &["status", "--config", &dir], 2, "toolgate.yaml:1:1"),
        (&settings, &good, &["status", "--config", &dir], 3, "toolgate run"),
        (&settings, &good, &["upgrade", "--config", &dir], 3, "toolgate run"),
        (&settings, &good, &["exec", "--app-id", "a", "--config", &dir, "--", "true"], 3, "toolgate run"),
        (&settings, &good, &["upgrade", "--binary", "/no/such", "--config", &dir], 1, "/no/such"),
        (&settings, &good, &[], 2, "Usage"),
        (&settings, &good, &["statsu"], 2, "'status'"),
        (&settings, &good, &["status", "--jsno"], 2, "'--json'"),
        (&settings, &good, &["bypass", "--app-id", "a"], 2, "--for"),
    ];
    for (settings, resources, arguments, code, words) in cases {
        fs::write(folder.path().join("toolgate.yaml"), settings)?;
        fs::write(folder.path().join("resources/all.yaml"), resources)?;
        let (found, _output, errors) = said(arguments)?;
        assert_eq!(found, Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{arguments:?}: no `{words}` in {errors}");
    }
    Ok(())
}

#[test]
fn check_says_the_same_as_json() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fs::create_dir(folder.path().join("resources"))?;
    fs::write(folder.path().join("toolgate.yaml"), Agent::other_settings(folder.path())?)?;
    let dir = folder.path().display().to_string();
    let good = resources(free_address()?);
    for (resources, ok) in [(good.clone(), true), (good.replace("max: 100", "maximum: 100"), false)] {
        fs::write(folder.path().join("resources/all.yaml"), resources)?;
        let (code, output, _errors) = said(&["check", "--json", "--config", &dir])?;
        assert_eq!(code, Some(if ok { 0 } else { 2 }));
        let told: Value = serde_json::from_str(&output).context("no JSON")?;
        assert_eq!(told.get("ok"), Some(&json!(ok)), "{told:#}");
        let found = told.get("diagnostics").and_then(Value::as_array).context("no diagnostics")?;
        let place = found.iter().find(|one| scene::text(one, "message").contains("maximum"));
        assert_eq!(place.is_some(), !ok, "{told:#}");
        if let Some(place) = place {
            assert_eq!(place.pointer("/line"), Some(&json!(23)), "{place}");
            assert_eq!(scene::text(place, "severity"), "error", "{place}");
        }
        assert_eq!(output.contains("small-sums"), ok, "the explanation: {told:#}");
    }
    Ok(())
}

#[test]
fn help_completions_and_manual_pages_know_every_command() -> Result<()> {
    let (code, help, _errors) = said(&["--help"])?;
    assert_eq!(code, Some(0));
    assert!(help.contains("no agent answers") && !help.contains("canary"), "{help}");
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "no `{command}` in {help}");
        let (code, help, _errors) = said(&[command, "--help"])?;
        assert!(code == Some(0) && help.contains("Example: toolgate "), "{command}: {help}");
    }
    for (group, commands) in [("tools", &TOOLS[..]), ("ca", &CA[..]), ("inspect", &INSPECT[..])] {
        for command in commands {
            let (code, help, _errors) = said(&[group, command, "--help"])?;
            assert!(code == Some(0) && help.contains("Example: "), "{command}: {help}");
            assert!(help.contains(&format!("toolgate {group} {command}")), "{command}: {help}");
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, errors) = said(&["completions", shell])?;
        assert_eq!(code, Some(0), "{errors}");
        let missing: Vec<_> = COMMANDS.iter().filter(|command| !script.contains(**command)).collect();
        assert!(missing.is_empty() && !script.contains("canary"), "{shell}: {missing:?}");
    }
    let folder = tempfile::tempdir()?;
    let (code, _output, errors) = said(&["man", &folder.path().display().to_string()])?;
    assert_eq!(code, Some(0), "{errors}");
    let mut pages = Vec::new();
    for page in fs::read_dir(folder.path())? {
        pages.push(page?.file_name().to_string_lossy().into_owned());
    }
    let mut expected = COMMANDS.map(|command| format!("toolgate-{command}.1")).to_vec();
    expected.push("toolgate.1".to_owned());
    expected.extend(TOOLS.map(|command| format!("toolgate-tools-{command}.1")));
    expected.extend(CA.map(|command| format!("toolgate-ca-{command}.1")));
    expected.extend(INSPECT.map(|command| format!("toolgate-inspect-{command}.1")));
    pages.sort();
    expected.sort();
    assert_eq!(pages, expected);
    assert!(fs::read_to_string(folder.path().join("toolgate.1"))?.contains("no agent answers"));
    Ok(())
}

/// What a command that ends by itself says to a terminal: less than its buffer, so that it is to be read afterwards.
fn said_to_terminal(arguments: &[&str], no_color: &str) -> Result<String> {
    let pty = openpty(None, None).context("no pseudo-terminal")?;
    let mut terminal = fs::File::from(pty.master);
    let mut command = toolgate();
    command.args(arguments).env("TERM", "xterm").env("NO_COLOR", no_color);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(pty.slave));
    let status = command.status().context("cannot start it")?;
    ensure!(status.code() == Some(2), "{status}");
    let mut some = [0; 4096];
    let read = terminal.read(&mut some).context("it said nothing")?;
    Ok(String::from_utf8_lossy(&some[..read]).into_owned())
}

#[test]
fn colours_are_for_terminals_that_want_them() -> Result<()> {
    let coloured = |text: &str| text.contains('\u{1b}');
    assert!(coloured(&said_to_terminal(&["statsu"], "")?), "a terminal");
    assert!(!coloured(&said_to_terminal(&["statsu"], "1")?), "NO_COLOR");
    assert!(!coloured(&said(&["statsu"])?.2), "a pipe");
    Ok(())
}

/// Of an agent that says what is odd about its resources, and then does not start.
#[test]
fn colours_of_the_log_are_for_terminals_that_want_them() -> Result<()> {
    let _turn = Host::turn()?;
    let folder = tempfile::tempdir()?;
    let settings = Agent::other_settings(folder.path())? + "capture: { cgroups: [no-such.slice] }\n";
    fs::write(folder.path().join("toolgate.yaml"), settings)?;
    fs::create_dir(folder.path().join("resources"))?;
    fs::write(folder.path().join("resources/all.yaml"), resources(free_address()?))?;
    let config = folder.path().display().to_string();
    let run = ["run", "--config", &config];
    for (no_color, coloured) in [("", true), ("1", false)] {
        let said = said_to_terminal(&run, no_color)?;
        ensure!(said.contains("WARN") && said.contains("no-such.slice"), "{said}");
        ensure!(said.contains('\u{1b}') == coloured, "NO_COLOR={no_color}: {said}");
    }
    let piped = Agent::refused(
        &fs::read_to_string(folder.path().join("toolgate.yaml"))?,
        &resources(free_address()?),
    )?;
    ensure!(piped.said.contains("WARN") && !piped.said.contains('\u{1b}'), "{}", piped.said);
    Ok(())
}

/// What `status --json` says.
fn status(agent: &Agent) -> Result<Value> {
    let output = agent.toolgate("status").arg("--json").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("status is no JSON")
}

#[test]
fn status_says_what_the_agent_did() -> Result<()> {
    let scene = Scene::set()?;
    let (_caller, mut connection) = scene.reader()?;
    connection.post(&initialize())?;
    for tool in ["echo", "echo", "delete_everything"] {
        connection.post(&call(1, tool, &json!({})))?;
    }
    scene.agent.audit(4)?;
    let said = status(&scene.agent)?;
    assert_eq!(said.get("pid"), Some(&json!(scene.agent.process().id())), "{said}");
    assert_eq!(said.get("sessions"), Some(&json!(1)), "{said}");
    assert_eq!(said.get("observe"), Some(&json!(false)), "{said}");
    let server = json!({ "app_id": "docs", "address": scene.server.address.to_string(), "path": "/mcp" });
    assert_eq!(said.get("servers"), Some(&json!([server])), "{said}");
    let rows = said.get("requests").and_then(Value::as_array).context("no requests")?;
    for (method, tool, decision, reason, count) in [
        ("initialize", "", "permit", "permitted", 1),
        ("tools/call", "echo", "permit", "permitted", 2),
        ("tools/call", "delete_everything", "deny", "no_rule", 1),
    ] {
        let row = json!({
            "direction": "outbound", "caller": "reader", "target": "docs", "method": method, "tool": tool,
            "decision": decision, "reason": reason, "count": count
        });
        assert!(rows.contains(&row), "no {row} in {said:#}");
    }
    let recent = said.get("recent").and_then(Value::as_array).context("no recent messages")?;
    assert_eq!(recent.len(), 4, "{said:#}");

    let output = scene.agent.toolgate("status").output()?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["reader", "docs", "delete_everything", "no_rule", &scene.server.address.to_string()] {
        assert!(words.contains(word), "no `{word}` in {words}");
    }
    Ok(())
}

#[test]
fn a_refused_configuration_is_shown_until_a_good_one_comes() -> Result<()> {
    let scene = Scene::set()?;
    let good = resources(scene.server.address);
    let refused = |agent: &Agent| -> Result<Vec<String>> {
        let said = status(agent)?;
        let texts = said.get("refused_configuration").context("it says nothing of refused files")?;
        serde_json::from_value(texts.clone()).context("not a list of texts")
    };
    assert!(refused(&scene.agent)?.is_empty());
    scene.agent.write_resources(&good.replace("effect: deny", "effect: perhaps"))?;
    scene.agent.counts("toolgate_reload_failures_total ", &[], 1.0)?;
    let texts = wait::until("the refused file", || {
        Ok(Some(refused(&scene.agent)?).filter(|texts| !texts.is_empty()))
    })?;
    assert!(
        texts.iter().any(|text| text.contains("all.yaml:31:13") && text.contains("perhaps")),
        "{texts:#?}"
    );
    let (_caller, mut connection) = scene.reader()?;
    assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?, "the last good one decides");
    let denied = connection.post(&call(2, "read_file", &json!({ "path": "/srv/docs/secret/key" })))?;
    assert!(!is_result(&denied)?, "all of it");

    scene.agent.write_resources(&format!("{good}# good again\n"))?;
    wait::until("the good file", || Ok(refused(&scene.agent)?.is_empty().then_some(())))?;
    scene.agent.counts("toolgate_reload_failures_total ", &[], 1.0)
}

#[test]
fn detach_removes_what_a_killed_agent_left_and_may_be_run_twice() -> Result<()> {
    let mut scene = Scene::set()?;
    let (mut captured, _connection) = scene.reader()?;
    scene.agent.kill()?;
    assert!(captured.connect(scene.server.address).is_err());
    for left in [true, false] {
        let (code, output, errors) = said(&["detach", "--json"])?;
        assert_eq!(code, Some(0), "{errors}");
        let told: Value = serde_json::from_str(&output).context("no JSON")?;
        assert_eq!(told.get("links").and_then(Value::as_u64).is_some_and(|links| links > 0), left, "{told}");
    }
    assert_eq!(captured.connect(scene.server.address)?.peer, scene.server.address, "captured no more");
    drop(captured);
    let output = toolgate().arg("detach").output()?;
    assert!(output.status.success());
    assert!(!cgroup2()?.join("toolgate.exec").exists(), "the empty cgroup is left");
    Ok(())
}
