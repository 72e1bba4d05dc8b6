//! Agents of both ends that hand over to the next one while calls go on between them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use toolgate_tests::scene::{call, is_result};
use toolgate_tests::{Agent, Caller, Connection, wait};

use crate::hosts::Hosts;

/// Calls that are made before, during and after a hand-over, at least.
const CALLS: usize = 400;
/// Calls on one connection, unless its agent closes it before.
const KEPT: usize = 7;

/// Calls on one connection as long as that is kept: each must be answered.
fn some(caller: &mut Caller, hosts: (std::net::SocketAddr, &AtomicUsize)) -> Result<()> {
    let (address, asked) = hosts;
    let mut connection = Connection::new(caller.connect(address)?.stream, address)?;
    for _ in 0..KEPT {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        let reply = connection.post(&call(number as u64, "echo", &json!({})))?;
        ensure!(is_result(&reply)?, "call {number}: {}", reply.text());
        if reply.header("connection").is_some_and(|said| said.eq_ignore_ascii_case("close")) {
            break;
        }
    }
    Ok(())
}

fn loses_no_call(agent: impl Fn(&mut Hosts) -> &mut Agent) -> Result<()> {
    let mut hosts = Hosts::set()?;
    let address = hosts.address;
    let mut callers = (0..4).map(|_| hosts.callers.caller("reader")).collect::<Result<Vec<_>>>()?;
    let (asked, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| -> Result<()> {
        let (asked, is_over) = (&asked, &is_over);
        let load = callers.iter_mut().map(|caller| {
            scope.spawn(move || -> Result<()> {
                while !is_over.load(Ordering::SeqCst) || asked.load(Ordering::SeqCst) < CALLS {
                    some(caller, (address, asked))?;
                }
                Ok(())
            })
        });
        let load: Vec<_> = load.collect();
        let loaded = || Ok((asked.load(Ordering::SeqCst) >= CALLS / 2).then_some(()));
        let upgraded = wait::until("the load", loaded).and_then(|()| {
            agent(&mut hosts).upgrade(&[])?;
            // It goes on until the first one has ended, which must not take a call along.
            agent(&mut hosts).process().line("ended; the agent that took over goes on")?;
            Ok(())
        });
        is_over.store(true, Ordering::SeqCst);
        for thread in load {
            thread.join().map_err(|_panic| anyhow::anyhow!("the load panicked"))??;
        }
        upgraded
    })
    .with_context(|| agent(&mut hosts).process().said())?;
    drop(callers);
    agent(&mut hosts).stop_successor()
}

#[test]
fn no_call_is_lost_while_the_agent_of_the_server_is_upgraded() -> Result<()> {
    loses_no_call(|hosts| &mut hosts.servers)
}

#[test]
fn no_call_is_lost_while_the_agent_of_the_callers_is_upgraded() -> Result<()> {
    loses_no_call(|hosts| &mut hosts.callers.agent)
}
