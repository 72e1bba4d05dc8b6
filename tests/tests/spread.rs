//! Connections are spread evenly over the agent's threads: all of them, and those that a client keeps busy.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Host, Netns, Scene, Server, Setup, wait};

const CONNECTIONS: usize = 64;
/// A canary takes its turn, too.
const MORE_OR_LESS: usize = 2;

/// How many connections each thread has accepted.
fn accepted(agent: &Agent) -> Result<Vec<usize>> {
    let text = agent.metrics()?;
    let series = text.lines().filter(|line| line.starts_with("toolgate_connections_total{"));
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse().ok());
    series.map(|line| count(line).with_context(|| format!("no count: {line}"))).collect()
}

/// Connects, and returns the thread that has accepted it.
fn taken_by(agent: &Agent, caller: &mut Caller, to: SocketAddr) -> Result<usize> {
    let before = accepted(agent)?;
    let _closed_at_once = caller.connect(to)?;
    wait::until("a thread to accept it", || {
        Ok(accepted(agent)?.iter().zip(&before).position(|(now, before)| now > before))
    })
}

fn check(name: &str, agent: &Agent, caller: &mut Caller, to: SocketAddr) -> Result<()> {
    let threads = accepted(agent)?.len();
    let turns = (0..CONNECTIONS).map(|_| taken_by(agent, caller, to)).collect::<Result<Vec<_>>>()?;
    // An MCP client often has two: one that it asks by, and a stream on which little comes.
    for (what, step) in [("of all", 1), ("of every second one", 2)] {
        let mut shares = vec![0; threads];
        turns.iter().step_by(step).for_each(|&thread| shares[thread] += 1);
        println!("{name}: {what} the threads took {shares:?}");
        let fair = CONNECTIONS / step / threads;
        let is_even = shares.iter().all(|share: &usize| share.abs_diff(fair) <= MORE_OR_LESS);
        ensure!(is_even, "{name}: {what} the threads took {shares:?}");
    }
    Ok(())
}

#[test]
fn each_thread_gets_its_share_of_connections() -> Result<()> {
    let scene = Scene::set()?;
    check("at home", &scene.agent, &mut scene.caller("reader")?, scene.server.address)
}

#[test]
fn each_thread_gets_its_share_of_the_connections_of_another_namespace() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [outside, _inside] = netns.link()?;
    let server = Server::at(SocketAddr::new(outside, 0))?;
    let agent = Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    let mut caller = Caller::start(netns.entered_by(&agent.exec("reader")))?;
    // The first connect of a namespace that is new to the agent may be refused.
    wait::until("the namespace to be served", || Ok(caller.connect(server.address).ok()))?;
    check("in another namespace", &agent, &mut caller, server.address)
}
