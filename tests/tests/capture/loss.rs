//! An agent that gives no sign of life; and cgroups that are let through for a while.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use toolgate::capture::{Loss, Plan};
use toolgate_tests::{Cgroup, refusal, wait};

use crate::bpf::Pinned;
use crate::client::Client;
use crate::rig::{NOWHERE, Rig, Wanted, all_of, dual_stack_server, plain_server};

/// Lost from the first moment on.
fn lost(cgroup: &Cgroup, agent_loss: Loss) -> Result<Rig> {
    let plan = Plan { cgroups: vec![all_of(cgroup)?], ..Plan::default() };
    Rig::with(Wanted { agent_loss, heartbeat_age_max: Duration::ZERO, plan, ..Wanted::default() })
}

#[test]
fn while_the_agent_is_lost_connects_are_refused() -> Result<()> {
    let cgroup = Cgroup::new("lost")?;
    let (_server, address) = plain_server()?;
    let rig = lost(&cgroup, Loss::Closed)?;
    let mut client = Client::inside(&cgroup)?;
    client.must_be_refused(&format!("tcp {address}"), "ECONNREFUSED")?;
    client.must_be_refused("tcp6 ::1 80", "ECONNREFUSED")?;
    assert_eq!((rig.count("connect/refused_agent_lost")?, rig.count("connect/redirected")?), (2, 0));
    Client::outside()?.must(&format!("tcp {address}"))?;
    Ok(())
}

#[test]
fn or_they_pass_where_the_operator_dares() -> Result<()> {
    let cgroup = Cgroup::new("open")?;
    let (server, port) = dual_stack_server()?;
    let mut rig = lost(&cgroup, Loss::DangerousOpen)?;
    let home = rig.home;
    rig.update(|plan| plan.guarded = vec![(home, port)])?;
    let mut client = Client::inside(&cgroup)?;
    for address in ["tcp 127.0.0.1", "tcp6 ::1"] {
        client.must(&format!("{address} {port}"))?;
        server.accept()?;
    }
    assert_eq!((rig.count("connect/passed_agent_lost")?, rig.count("connect/redirected")?), (2, 0));
    Client::outside()?.must_fail(&format!("tcp 127.0.0.1 {port}"), "ECONNREFUSED")?;
    Ok(())
}

#[test]
fn a_beat_brings_it_back() -> Result<()> {
    let cgroup = Cgroup::new("beat")?;
    let plan = Plan { cgroups: vec![all_of(&cgroup)?], ..Plan::default() };
    let age = Duration::from_secs(3);
    let rig = Rig::with(Wanted { heartbeat_age_max: age, plan, ..Wanted::default() })?;
    let mut client = Client::inside(&cgroup)?;
    let (connect, refused) = (format!("tcp {NOWHERE}"), refusal("ECONNREFUSED")?);
    wait::until("the loss of an agent that does not beat", || {
        Ok((client.ask(&connect)? == Err(refused.to_owned())).then_some(()))
    })?;
    ensure!(rig.count("connect/refused_agent_lost")? > 0);
    rig.kernel()?.beat()?;
    client.must(&connect)?;
    Ok(())
}

#[test]
fn a_bypass_lets_a_cgroup_through_until_its_time() -> Result<()> {
    let outer = Cgroup::new("bypass")?;
    let inner = outer.below("inner")?;
    let (_server, address) = plain_server()?;
    let rig = Rig::capturing(&outer)?;
    let kernel = rig.kernel()?;
    let mut client = Client::inside(&inner)?;
    let connect = format!("tcp {address}");
    let mut check = |branch: &str| -> Result<()> {
        let before = rig.count(branch)?;
        client.must(&connect)?;
        assert_eq!(rig.count(branch)?, before + 1, "{branch}");
        Ok(())
    };
    check("connect/redirected")?;
    kernel.bypass(outer.id()?, Some(u64::MAX))?;
    check("connect/bypassed")?;
    kernel.bypass(outer.id()?, None)?;
    check("connect/redirected")?;
    kernel.bypass(inner.id()?, Some(u64::MAX))?;
    check("connect/bypassed")?;
    // One that is over, beside one that is not.
    kernel.bypass(inner.id()?, Some(1))?;
    check("connect/redirected")?;
    kernel.bypass(outer.id()?, Some(u64::MAX))?;
    check("connect/bypassed")?;
    let (bypassed, mut until) = (Pinned::map("BYPASSED")?, [0; 8]);
    kernel.sweep()?;
    ensure!(!bypassed.get(&inner.id()?.to_ne_bytes(), &mut until), "it was over");
    ensure!(bypassed.get(&outer.id()?.to_ne_bytes(), &mut until), "it was not");
    // By itself, nobody sweeps.
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    let until_ns = u64::try_from((now + Duration::from_millis(300)).as_nanos())?;
    kernel.bypass(outer.id()?, Some(until_ns))?;
    let before = rig.count("connect/redirected")?;
    wait::until("the end of a bypass", || {
        client.must(&connect)?;
        Ok((rig.count("connect/redirected")? > before).then_some(()))
    })?;
    drop(client);
    drop(inner);
    Ok(())
}
