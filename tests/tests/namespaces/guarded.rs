//! Ports of declared servers, here and inside.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, bail};
use socket2::{Domain, Socket, Type};
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Host, Netns, Scene, Server, Setup, pinned, wait};

use super::stage::{LOCALHOST, caller_in, comes_to_nothing, http, may};

#[test]
fn a_declared_server_is_not_reached_by_another_of_its_addresses() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [outside, _] = netns.link()?;
    let everywhere = Server::at((Ipv4Addr::UNSPECIFIED, 0).into())?;
    let port = everywhere.address.port();
    let declared = SocketAddr::new(LOCALHOST, port);
    let setup =
        Setup { resources: &resources(declared), capture: "{ unrecognised: pass }", ..Setup::default() };
    let agent = Agent::start_in(host, setup)?;
    let mut at_home = agent.caller("reader")?;
    assert!(may(&mut at_home.http(declared)?, "echo")?);
    let before = everywhere.connections();
    let other = SocketAddr::new(outside, port);
    let mut inside = caller_in(&agent, &netns, "reader")?;
    for caller in [&mut at_home, &mut inside] {
        comes_to_nothing(caller, other)?;
        let reply = http(caller, other).and_then(|mut http| http.post(b"{\"not\": \"mcp\"}"));
        assert!(reply.is_err() || reply.is_ok_and(|reply| reply.status == 403));
    }
    assert!(Caller::outside()?.connect(other).is_err(), "nor by who is not captured");
    assert_eq!(everywhere.connections(), before);
    Ok(())
}

#[test]
fn a_server_in_a_served_namespace_accepts_the_agent_alone() -> Result<()> {
    let host = Host::turn()?;
    let netns = Netns::new()?;
    let [_, inside] = netns.link()?;
    let server = netns.within(|| Server::at(SocketAddr::new(inside, 0)))?;
    let agent = Agent::start_in(host, Setup { resources: &resources(server.address), ..Setup::default() })?;
    let mut outside = Caller::outside()?;
    assert!(outside.connect(server.address).is_ok(), "the agent does not listen in there yet");
    let mut neighbour = caller_in(&agent, &netns, "reader")?;
    assert!(may(&mut http(&mut neighbour, server.address)?, "echo")?);
    wait::until("its port to be guarded", || Ok(outside.connect(server.address).is_err().then_some(())))?;
    assert!(may(&mut agent.caller("reader")?.http(server.address)?, "echo")?);
    Ok(())
}

/// The key of an admission, as the kernel has it.
fn admission(cookie: u64, from: SocketAddrV4, to: SocketAddrV4) -> Result<[u8; 48]> {
    let mapped = |address: SocketAddrV4| address.ip().to_ipv6_mapped().octets();
    let ports = [from.port().to_ne_bytes(), to.port().to_ne_bytes()].concat();
    let key = [&cookie.to_ne_bytes()[..], &mapped(from), &mapped(to), &ports, &[0; 4]].concat();
    <[u8; 48]>::try_from(key.as_slice()).context("another layout")
}

#[test]
fn what_is_admitted_in_one_namespace_opens_nothing_in_another() -> Result<()> {
    let scene = Scene::set()?;
    let SocketAddr::V4(server) = scene.server.address else { bail!("no IPv4") };
    let served = pinned::map::<8, 8>("NAMESPACES")?.keys().collect::<Result<Vec<_>, _>>()?;
    let [home] = served.as_slice() else { bail!("{} namespaces are served", served.len()) };
    let home = u64::from_ne_bytes(*home);
    // An agent's dial in another namespace has the same addresses and ports there.
    for (cookie, reached) in [(home ^ 1, false), (home, true)] {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        let from = socket.local_addr()?.as_socket_ipv4().context("no IPv4")?;
        let key = admission(cookie, from, server)?;
        pinned::map::<48, 8>("ADMITTED")?.insert(key, [0; 8], 0)?;
        assert_eq!(socket.connect(&scene.server.address.into()).is_ok(), reached, "{cookie} of {home}");
        pinned::map::<48, 8>("ADMITTED")?.remove(&key)?;
    }
    Ok(())
}
