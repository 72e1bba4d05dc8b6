//! Servers with several endpoints: calls are spread, sessions stay, and who fails is left out.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::http::Reply;
use toolgate_tests::scene::{call, initialize, is_result, message, text};
use toolgate_tests::{Agent, Connection, Peer, Server, Setup, wait};

use crate::stage::{IMPATIENT, NAME, Outside, PUBLIC, reader};

const HTTPS: &str = "{ url: \"https://docs.example.com/mcp\", http_port: 80, ca_file: CA }";
const HTTP: &str = "{ url: \"http://docs.example.com/mcp\" }";

/// Two servers of one name, whose sessions are told apart.
fn two(outside: &Outside) -> Result<[Server; 2]> {
    let servers = [outside.server(PUBLIC[0], 80)?, outside.server(PUBLIC[1], 80)?];
    servers[1].numbers_sessions_from(100);
    outside.dns.has(NAME, &[PUBLIC[0].into(), PUBLIC[1].into()], 0);
    Ok(servers)
}

/// Opens a session, and says in which server and by which header.
fn opened(connection: &mut Connection) -> Result<(usize, String)> {
    connection.request("POST", "", &initialize())?;
    let reply = connection.reply()?;
    let id = reply.header("mcp-session-id").context("no session")?;
    let which = usize::from(id.trim_start_matches("session-").parse::<usize>()? >= 100);
    Ok((which, format!("Mcp-Session-Id: {id}\r\n")))
}

fn in_session(connection: &mut Connection, session: &str) -> Result<Reply> {
    connection.request("POST", session, &call(1, "echo", &json!({})))?;
    connection.reply()
}

/// What `status` says of the endpoints.
fn endpoints(agent: &Agent) -> Result<Vec<Value>> {
    let output = agent.toolgate("status").arg("--json").output()?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    status.pointer("/servers/0/endpoints").and_then(Value::as_array).cloned().context("no endpoints")
}

fn shown(agent: &Agent, ip: Ipv4Addr) -> Result<Value> {
    let address = SocketAddr::new(ip.into(), 80).to_string();
    let all = endpoints(agent)?;
    all.iter().find(|one| text(one, "address") == address).cloned().context("no such endpoint")
}

#[test]
fn a_name_that_leads_nowhere_is_shown_once_whatever_its_ports() -> Result<()> {
    let mut outside = Outside::new()?;
    outside.dns.has(NAME, &[PUBLIC[0].into()], 60);
    let url = "{ url: \"http://docs.example.com/mcp\", endpoints: [\"docs.example.com:80\", \"gone.example.com:80\", \
               \"gone.example.com:81\", \"srv:gone.example.com\"] }";
    let agent = outside.agent(url, Setup::default())?;
    let mut told: Vec<_> = wait::until("both names to be known to lead nowhere", || {
        let all = endpoints(&agent)?;
        let nowhere = all.iter().filter(|one| text(one, "state") == "unresolved");
        let nowhere: Vec<_> = nowhere.map(|one| text(one, "address").to_owned()).collect();
        Ok((nowhere.len() > 1).then_some(nowhere))
    })?;
    told.sort();
    assert_eq!(told, ["gone.example.com", "srv:gone.example.com"]);
    let metrics = agent.metrics()?;
    let series: Vec<_> =
        metrics.lines().filter_map(|line| line.split_once("} ").map(|(one, _)| one)).collect();
    let twice = series.iter().find(|one| series.iter().filter(|other| other == one).count() > 1);
    assert_eq!(twice, None);
    Ok(())
}

#[test]
fn calls_are_spread_and_a_session_stays_where_it_was_made() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = two(&outside)?;
    let agent = outside.agent(HTTP, Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let mut sessions = Vec::new();
    wait::until("a session in each server", || {
        sessions.push(opened(&mut connection)?);
        ensure!(sessions.len() < 100, "all sessions are in one");
        Ok([0, 1].iter().all(|which| sessions.iter().any(|(at, _)| at == which)).then_some(()))
    })?;
    servers.iter().for_each(|server| drop(server.requests_now()));
    for (which, session) in sessions.iter().cycle().take(30) {
        assert!(is_result(&in_session(&mut connection, session)?)?);
        servers[*which].request()?;
        assert!(servers[1 - which].requests_now().is_empty(), "it moved");
    }
    Ok(())
}

#[test]
fn a_task_is_asked_for_where_it_was_made() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = two(&outside)?;
    for (which, server) in servers.iter().enumerate() {
        let task = json!({ "task": { "taskId": format!("task-{which}"), "status": "working" } });
        server.answers("tools/call", "task", &task);
    }
    let agent = outside.agent(HTTP, Setup::default())?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let mut made = [false; 2];
    wait::until("a task in each server", || {
        connection.request("POST", "X-Variant: task\r\n", &call(1, "echo", &json!({})))?;
        let reply = connection.reply()?.message()?;
        made[usize::from(text(&reply, "result/task/taskId") == "task-1")] = true;
        Ok((made == [true; 2]).then_some(()))
    })?;
    servers.iter().for_each(|server| drop(server.requests_now()));
    for which in [0, 1].into_iter().cycle().take(20) {
        let asked = message(2, "tasks/get", &json!({ "taskId": format!("task-{which}") }));
        assert!(is_result(&connection.post(&asked)?)?);
        servers[which].request()?;
        assert!(servers[1 - which].requests_now().is_empty(), "it moved");
    }
    Ok(())
}

#[test]
fn a_session_whose_endpoint_is_gone_is_unknown_and_a_new_one_is_made_elsewhere() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = two(&outside)?;
    let agent = outside.agent(HTTP, Setup { limits: "{ upstream_idle_max: 1ms }", ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let (which, session) = opened(&mut connection)?;
    assert!(is_result(&in_session(&mut connection, &session)?)?);
    let [first, second] = servers;
    let (gone, other) = if which == 0 { (first, second) } else { (second, first) };
    drop((gone, other.requests_now()));
    wait::until("that its endpoint is gone", || {
        let reply = in_session(&mut connection, &session)?;
        Ok((reply.status == 404).then_some(()))
    })?;
    assert!(
        other.requests_now().iter().all(|request| request.header("mcp-session-id").is_none()),
        "it moved"
    );
    let (there, anew) = opened(&mut connection)?;
    assert_eq!(there, 1 - which);
    assert!(is_result(&in_session(&mut connection, &anew)?)?);
    assert_eq!(in_session(&mut connection, &session)?.status, 404, "it stays unknown");
    Ok(())
}

#[test]
fn a_session_whose_endpoint_the_name_has_no_more_is_unknown() -> Result<()> {
    let mut outside = Outside::new()?;
    let _servers = two(&outside)?;
    let agent = outside.agent(HTTP, Setup { limits: IMPATIENT, ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let (which, session) = opened(&mut connection)?;
    outside.dns.has(NAME, &[PUBLIC[1 - which].into()], 0);
    wait::until("that its endpoint is gone", || {
        Ok((in_session(&mut connection, &session)?.status == 404).then_some(()))
    })?;
    let lines = agent.audit_until("the refusal", |lines| {
        lines.iter().any(|line| text(line, "reason") == "unknown_session")
    })?;
    let line = lines.iter().find(|line| text(line, "reason") == "unknown_session").context("none")?;
    assert!(text(line, "detail").contains("its client is to begin anew"), "{line}");
    Ok(())
}

#[test]
fn a_session_stays_where_its_server_proves_itself_though_the_name_leads_elsewhere() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = [outside.behind_tls(PUBLIC[0])?, outside.behind_tls(PUBLIC[1])?];
    servers[1].0.numbers_sessions_from(100);
    outside.dns.has(NAME, &[PUBLIC[0].into(), PUBLIC[1].into()], 0);
    let agent = outside.agent(HTTPS, Setup { limits: IMPATIENT, ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let (which, session) = opened(&mut connection)?;
    outside.dns.has(NAME, &[PUBLIC[1 - which].into()], 0);
    wait::until("that the name leads elsewhere", || Ok((endpoints(&agent)?.len() == 1).then_some(())))?;
    for _ in 0..8 {
        assert_eq!(opened(&mut connection)?.0, 1 - which, "another session is opened where the name leads");
        assert!(is_result(&in_session(&mut connection, &session)?)?);
    }
    Ok(())
}

#[test]
fn an_endpoint_that_fails_is_left_out_and_comes_back() -> Result<()> {
    let mut outside = Outside::new()?;
    outside.dns.has(NAME, &[PUBLIC[0].into(), PUBLIC[1].into()], 60);
    let _server = outside.server(PUBLIC[0], 80)?;
    let agent = outside.agent(HTTP, Setup { limits: "{ upstream_idle_max: 1ms }", ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    wait::until("that the endpoint without a server is left out", || {
        assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?, "a call failed");
        Ok((text(&shown(&agent, PUBLIC[1])?, "state") == "left_out").then_some(()))
    })?;
    let left_out = shown(&agent, PUBLIC[1])?;
    assert!(text(&left_out, "reason").contains("is the server running?"), "{left_out}");
    let labels = ["target=\"docs\"", "endpoint=\"198.51.100.8:80\""];
    agent.counts("toolgate_endpoint_ejections_total", &labels, 1.0)?;
    assert_eq!(text(&shown(&agent, PUBLIC[0])?, "state"), "well");
    let back = outside.server(PUBLIC[1], 80)?;
    wait::until("a call at the endpoint that is back", || {
        assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?, "a call failed");
        Ok((!back.requests_now().is_empty()).then_some(()))
    })?;
    assert_eq!(text(&shown(&agent, PUBLIC[1])?, "state"), "well");
    Ok(())
}

#[test]
fn a_session_stays_at_its_endpoint_when_another_agent_takes_over() -> Result<()> {
    let mut outside = Outside::new()?;
    let servers = two(&outside)?;
    let mut agent = outside.agent(HTTP, Setup::default())?;
    let (mut caller, mut connection) = reader(&agent, PUBLIC[0], 80)?;
    let sessions: Vec<_> = (0..8).map(|_| opened(&mut connection)).collect::<Result<_>>()?;
    drop(connection);
    agent.upgrade(&[])?;
    servers.iter().for_each(|server| drop(server.requests_now()));
    let mut connection = caller.http(SocketAddr::new(PUBLIC[0].into(), 80))?.naming(NAME);
    for (which, session) in &sessions {
        assert!(is_result(&in_session(&mut connection, session)?)?);
        servers[*which].request()?;
        assert!(servers[1 - which].requests_now().is_empty(), "it moved");
    }
    Ok(())
}

#[test]
fn a_service_is_where_its_records_say_by_priority() -> Result<()> {
    let mut outside = Outside::new()?;
    let (first, second) = (outside.server(PUBLIC[0], 8001)?, outside.server(PUBLIC[1], 8002)?);
    outside.dns.has(NAME, &[PUBLIC[2].into()], 60);
    outside.dns.has("one.example.com", &[PUBLIC[0].into()], 60);
    outside.dns.has("two.example.com", &[PUBLIC[1].into()], 60);
    let services = [(20, "two.example.com", 8002), (10, "one.example.com", 8001)];
    outside.dns.has_service("_mcp._tcp.example.com", &services);
    let url = "{ url: \"http://docs.example.com/mcp\", endpoints: [\"srv:_mcp._tcp.example.com\"] }";
    let agent = outside.agent(url, Setup { limits: "{ upstream_idle_max: 1ms }", ..Setup::default() })?;
    let (_caller, mut connection) = reader(&agent, PUBLIC[2], 80)?;
    for _ in 0..10 {
        assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
        first.request()?;
    }
    assert_eq!(second.connections(), 0);
    drop(first);
    wait::until("that the first is gone", || {
        let reply = connection.post(&call(1, "echo", &json!({})))?;
        is_result(&reply).map(|is_result| is_result.then_some(()))
    })?;
    second.request()?;
    for _ in 0..10 {
        assert!(is_result(&connection.post(&call(1, "echo", &json!({})))?)?);
        second.request()?;
    }
    Ok(())
}

#[test]
fn what_is_sent_to_a_streams_endpoint_goes_where_the_stream_is() -> Result<()> {
    let mut outside = Outside::new()?;
    let at = |ip: Ipv4Addr| outside.netns.within(|| Peer::at(SocketAddr::new(ip.into(), 80)));
    let peers = [at(PUBLIC[0])?, at(PUBLIC[1])?];
    outside.dns.has(NAME, &[PUBLIC[0].into(), PUBLIC[1].into()], 60);
    let agent = outside.agent(&format!("{HTTP}\n  transport: sse"), Setup::default())?;
    for number in 0..6 {
        let (mut caller, mut stream) = reader(&agent, PUBLIC[0], 80)?;
        stream.request("GET", "", b"")?;
        let accepted = wait::until("the stream at one of them", || {
            for (which, peer) in peers.iter().enumerate() {
                if let Some(connection) = peer.accept_now()? {
                    return Ok(Some((which, connection)));
                }
            }
            Ok(None)
        });
        let (which, mut server) = accepted?;
        server.through("\r\n\r\n")?;
        let event = format!("event: endpoint\ndata: /messages/{number}\n\n");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        server.send(format!("{head}{:x}\r\n{event}\r\n", event.len()).as_bytes())?;
        assert_eq!(stream.head()?.status, 200);
        stream.event()?;
        let mut post = caller.http(SocketAddr::new(PUBLIC[0].into(), 80))?;
        let body = call(1, "echo", &json!({}));
        post.send(
            format!(
                "POST /messages/{number} HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )
            .as_bytes(),
        )?;
        post.send(&body)?;
        let mut posted = peers[which].accept()?;
        assert!(posted.through("\r\n\r\n")?.starts_with(&format!("POST /messages/{number} ")));
        assert!(peers[1 - which].accept_now()?.is_none(), "it went elsewhere");
    }
    Ok(())
}
