//! Taking the agent's port: once, and again and again with answers for whoever comes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, setuid};
use socket2::{Domain, Socket, Type};

use crate::ask::{Ask, At as _, Stopped, Tried, stopped};
use crate::tcp::set;

/// `IP_LOCAL_PORT_RANGE` (ip(7), kernel 6.3): first and last port, the last in the upper half.
const IP_LOCAL_PORT_RANGE: i32 = 51;
const BACKLOG: i32 = 16;
/// How long an impostor waits for a victim, or for the next try, in milliseconds.
const PAUSE_MS: u16 = 10;
/// What an impostor says.
pub(crate) const IMPOSTURE: &str = "an impostor says so";

/// Binds and listens at `at=`: `shared=` with `SO_REUSEPORT`, `user=` as another user, `container=` in a user
/// namespace, `unbound=` by listen alone.
pub(crate) fn bind(ask: &Ask) -> Tried {
    if ask.find("container").is_some() {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).at("unshare")?;
    }
    let user = ask.number("user")?;
    if user != 0 {
        setuid(Uid::from_raw(user)).at("user")?;
    }
    listen(ask.address("at")?, ask.find("shared").is_some(), ask.find("unbound").is_some())?;
    Ok("bound".to_owned())
}

fn listen(at: SocketAddr, shared: bool, unbound: bool) -> Result<TcpListener, Stopped> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).at("socket")?;
    socket.set_reuse_address(true).at("option")?;
    if shared {
        socket.set_reuse_port(true).at("option")?;
    }
    if unbound {
        let port = u32::from(at.port());
        let range = i32::from_ne_bytes((port << 16 | port).to_ne_bytes());
        set(&socket, libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, range)?;
    } else {
        socket.bind(&at.into()).at("bind")?;
    }
    socket.listen(BACKLOG).at("listen")?;
    let got = socket.local_addr().at("listen")?.as_socket();
    if got.is_none_or(|got| got.port() != at.port()) {
        return Err(stopped("listen", format!("it got {got:?}")));
    }
    Ok(socket.into())
}

/// Tries to hold `port=` in every form until its input ends, and answers whoever comes: `victims N`.
pub(crate) fn impostor(ask: &Ask) -> Tried {
    let port = u16::try_from(ask.number("port")?).map_err(|_| stopped("start", "no port"))?;
    let places: [SocketAddr; 4] = [
        ([127, 0, 0, 1], port).into(),
        ([0, 0, 0, 0], port).into(),
        ([0, 0, 0, 0, 0, 0, 0, 1], port).into(),
        ([0_u16; 8], port).into(),
    ];
    let (mut victims, mut held, mut tries) = (0_u32, 0_u32, 0_u32);
    while !input_ended()? {
        for place in places {
            for (shared, unbound) in [(false, false), (true, false), (true, true)] {
                tries += 1;
                if let Ok(listener) = listen(place, shared, unbound) {
                    held += 1;
                    victims += answer(&listener)?;
                }
            }
        }
    }
    Ok(format!("victims {victims} held {held} tries {tries}"))
}

/// Answers all that come within a moment.
fn answer(listener: &TcpListener) -> Result<u32, Stopped> {
    let mut victims = 0;
    while readable(listener.as_fd())? {
        let Ok((mut stream, _peer)) = listener.accept() else { break };
        victims += 1;
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{IMPOSTURE}", IMPOSTURE.len());
        let _read = stream.read(&mut [0; 4096]);
        let _gone = stream.write_all(reply.as_bytes());
    }
    Ok(victims)
}

fn readable(descriptor: std::os::fd::BorrowedFd<'_>) -> Result<bool, Stopped> {
    let ready = poll(&mut [PollFd::new(descriptor, PollFlags::POLLIN)], PollTimeout::from(PAUSE_MS));
    Ok(ready.at("poll")? > 0)
}

/// Whether the test has had enough: its end of the input is closed.
fn input_ended() -> Result<bool, Stopped> {
    readable(std::io::stdin().as_fd())
}
