//! Streams of the Workload API while things change, and how many there can be.

use anyhow::{Result, ensure};
use serde_json::json;
use toolgate_tests::scene::text;
use toolgate_tests::{Agent, Cgroup, Process, Setup, fixture, netns, toolgate, wait};

use super::{Client, socket};

const ID: &str = "spiffe://example.org/ns/default/reader";

/// A Workload for each cgroup.
fn workloads(of: &[(&str, &Cgroup)]) -> Result<String> {
    let mut resources = String::new();
    for (name, cgroup) in of {
        resources += &format!(
            "apiVersion: toolgate/v1\nkind: Workload\nmetadata: {{ name: {name} }}\n\
             spec: {{ selectors: {{ cgroup: \"{}\" }} }}\n---\n",
            cgroup.name()?
        );
    }
    Ok(resources)
}

/// A process that speaks with the socket frame by frame.
struct Frames {
    process: Process,
    read: usize,
}

impl Frames {
    fn start(cgroup: &Cgroup, agent: &Agent) -> Result<Self> {
        let mut command = netns::in_cgroup(cgroup);
        command.arg("python3").arg(fixture("workload_api_streams.py")).arg(socket(agent));
        Ok(Self { process: Process::start(&mut command)?, read: 0 })
    }

    fn does(&mut self, line: &str) -> Result<String> {
        self.process.say(line)?;
        let (at, told) = self.process.line_from(self.read, "told ")?;
        self.read = at + 1;
        Ok(told.trim_start_matches("told ").to_owned())
    }
}

#[test]
fn connections_and_streams_have_limits_and_one_cgroup_leaves_room_for_others() -> Result<()> {
    let [one, two, three] = ["limits-one", "limits-two", "limits-three"].map(Cgroup::new);
    let (one, two, three) = (one?, two?, three?);
    let resources = workloads(&[("one", &one), ("two", &two), ("three", &three)])?;
    let limits = "{ workload_api_connections_max: 3, workload_api_connections_per_cgroup_max: 2, \
                  workload_api_streams_max: 2 }";
    let agent =
        Agent::start(Setup { resources: &resources, workload_api: true, limits, ..Setup::default() })?;
    let mut clients =
        [Frames::start(&one, &agent)?, Frames::start(&two, &agent)?, Frames::start(&three, &agent)?];
    let table = [
        (0, "connect", "open", "the first"),
        (0, "connect", "open", "the second of its cgroup"),
        (0, "connect", "closed", "the third of its cgroup"),
        (1, "connect", "open", "the third of all, of another cgroup"),
        (2, "connect", "closed", "the fourth of all"),
        (0, "ask 1", "answered", "a stream"),
        (0, "ask 3", "answered", "a second stream"),
        (0, "ask 5", "refused", "a third stream of one connection"),
        (1, "ask 1", "answered", "a stream of another connection"),
    ];
    for (client, does, expected, case) in table {
        let told = clients[client].does(does)?;
        ensure!(told == expected, "{case}: {told}");
    }
    for limit in ["workload_api_connections_max", "workload_api_connections_per_cgroup_max"] {
        agent.process().line(&format!("`{limit}` is reached"))?;
    }
    // What ends makes room.
    clients[1].does("drop")?;
    wait::until("room for another one", || Ok((clients[2].does("connect")? == "open").then_some(())))
}

#[test]
fn a_stream_ends_for_who_is_nobody_any_more() -> Result<()> {
    let reader = Cgroup::new("taken-reader")?;
    let resources = workloads(&[("reader", &reader)])?;
    let agent = Agent::start(Setup { resources: &resources, workload_api: true, ..Setup::default() })?;
    let mut stream = Frames::start(&reader, &agent)?;
    ensure!(stream.does("connect")? == "open" && stream.does("ask 1")? == "answered");
    agent.write_resources("")?;
    // It is looked at again every five seconds.
    ensure!(stream.does("end 1")? == "ended");
    let mut client = Client::start(netns::in_cgroup(&reader), &socket(&agent))?;
    let told = client.ask("svid")?;
    ensure!(text(&told, "error").contains("no identity issued"), "{told}");
    Ok(())
}

#[test]
fn the_next_agent_serves_who_had_a_stream_of_the_one_before() -> Result<()> {
    let reader = Cgroup::new("handed-reader")?;
    let resources = workloads(&[("reader", &reader)])?;
    let mut agent = Agent::start(Setup { resources: &resources, workload_api: true, ..Setup::default() })?;
    let mut client = Client::start(netns::in_cgroup(&reader), &socket(&agent))?;
    client.process.say("stream")?;
    ensure!(client.told("update")?.get("ids") == Some(&json!([ID])));
    agent.upgrade(&[])?;
    // The client of PyPI connects again by itself.
    let told = wait::until("an SVID of the next agent's", || {
        let told = client.told("update")?;
        Ok(told.get("error").is_none().then_some(told))
    })?;
    ensure!(told.get("ids") == Some(&json!([ID])), "{told}");
    let told = client.ask("svid")?;
    ensure!(told.get("ids") == Some(&json!([ID])), "{told}");
    Ok(())
}

#[test]
fn who_has_a_stream_gets_another_svid_for_one_that_was_revoked() -> Result<()> {
    let reader = Cgroup::new("revoked-reader")?;
    let resources = workloads(&[("reader", &reader)])?;
    let agent = Agent::start(Setup { resources: &resources, workload_api: true, ..Setup::default() })?;
    let mut client = Client::start(netns::in_cgroup(&reader), &socket(&agent))?;
    client.process.say("stream")?;
    let first = client.told("update")?;
    let serial = text(&first, "serial").to_owned();
    let revoke = toolgate().args(["ca", "revoke", &serial, "--config"]).arg(agent.config()).output()?;
    ensure!(revoke.status.success(), "{revoke:?}");
    let next = client.told("update")?;
    ensure!(next.get("ids") == Some(&json!([ID])) && text(&next, "serial") != serial, "{first} {next}");
    Ok(())
}
