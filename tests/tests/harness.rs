//! The harness itself, without an agent: what the other tests rely on.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use toolgate_tests::{Caller, Host, PidMax, Process, SdkClient, SdkServer, Server, pid_max, wait};

/// In the environment of a test that is started to be killed.
const KILLED: &str = "TOOLGATE_TEST_KILLED";

#[test]
fn a_caller_hands_over_its_connection() -> Result<()> {
    let server = Server::start()?;
    let mut caller = Caller::outside()?;
    assert_eq!(caller.connect(server.address)?.peer, server.address);
    let mut connection = caller.http(server.address)?;
    let body = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}"#;
    let reply = connection.post(body)?;
    assert_eq!((reply.status, server.request()?.body.as_slice()), (200, body.as_slice()));
    let nobody = TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?;
    let refused = caller.connect(nobody).expect_err("nobody listens there");
    assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    Ok(())
}

#[test]
fn event_streams_go_event_by_event() -> Result<()> {
    let server = Server::start()?;
    let mut caller = Caller::outside()?;
    let mut connection = caller.http(server.address)?;
    connection.request("GET", "", b"")?;
    assert_eq!(connection.head()?.status, 200);
    assert_eq!(server.request()?.method(), "GET");
    for number in 0..3 {
        server.send_event(&json!({ "number": number }))?;
        let event = connection.event()?.context("the stream ended")?;
        assert_eq!(event, format!("event: message\ndata: {{\"number\":{number}}}\n\n"));
    }
    server.end_stream()?;
    assert_eq!(connection.event()?, None);
    drop(connection);
    // The first connection of this server.
    assert_eq!(server.left()?, 0);
    Ok(())
}

#[test]
fn the_sdk_talks_to_itself_at_the_pace_of_the_test() -> Result<()> {
    let mut server = SdkServer::start()?;
    let mut client = SdkClient::outside(&server.url())?;
    assert_eq!(client.tools()?, ["echo", "add", "read_file", "slow_count"]);
    client.call("slow_count", &json!({ "steps": 2 }))?;
    for step in 1..=2 {
        assert_eq!(client.answer("progress")?, json!(f64::from(step)));
        server.release()?;
    }
    assert_eq!(client.answer("result")?, "counted to 2");
    assert_eq!(server.calls()?, ["slow_count"]);
    Ok(())
}

#[test]
fn a_setting_is_put_back_also_where_its_test_is_killed() -> Result<()> {
    let now = || -> Result<u32> { Ok(fs::read_to_string(pid_max::PATH)?.trim().parse()?) };
    if std::env::var_os(KILLED).is_some() {
        let _less = PidMax::set(now()? - 1)?;
        println!("set");
        loop {
            std::thread::park();
        }
    }
    let _turn = Host::turn()?;
    let before = now()?;
    let mut this = Command::new(std::env::current_exe()?);
    this.args(["--exact", "a_setting_is_put_back_also_where_its_test_is_killed", "--nocapture"])
        .env(KILLED, "");
    let mut killed = Process::start(&mut this)?;
    killed.line("set")?;
    ensure!(now()? == before - 1, "it is {}", now()?);
    killed.signal(Signal::SIGKILL)?;
    killed.end()?;
    wait::until("the setting as it was", || Ok((now()? == before).then_some(())))
}
