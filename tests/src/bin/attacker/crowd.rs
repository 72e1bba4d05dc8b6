//! Many connections at once, each with a number of its own.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use crate::ask::{Ask, At as _, Stopped, Tried, stopped};
use crate::ports::IMPOSTURE;
use crate::speak;
use crate::tcp::set;

/// `IP_BIND_ADDRESS_NO_PORT` (ip(7)): the port is chosen at connect.
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
/// How long a refused caller waits, in milliseconds.
const PAUSE_MS: u16 = 2;
/// The tool that no rule allows.
const FORBIDDEN: &str = "forbidden";

/// `count=` connections by `threads=` threads, to `first=` and `second=` in turn; connection N calls `TOOL-N` and checks
/// that the answer, which holds `nonce=`, is that call's.
pub(crate) fn crowd(ask: &Ask) -> Tried {
    let (count, threads) = (ask.number("count")?, ask.number("threads")?);
    let next = AtomicU32::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::SeqCst)
                    && number < count
                {
                    if let Err(stopped) = one(ask, number) {
                        let mut first = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert(format!("connection {number}: {}", stopped.line()));
                        return;
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failed) => Err(stopped("crowd", failed)),
        None => Ok(format!("crowd of {count}")),
    }
}

fn one(ask: &Ask, number: u32) -> Result<(), Stopped> {
    let to = ask.address(if number.is_multiple_of(2) { "first" } else { "second" })?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).at("socket")?;
    // Equal ports under different addresses.
    if to.is_ipv4() && number.is_multiple_of(3) {
        set(&socket, libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
        let own = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number % 5).unwrap_or(2));
        socket.bind(&SocketAddr::new(IpAddr::V4(own), 0).into()).at("bind")?;
    }
    socket.connect(&to.into()).at("connect")?;
    let tool = format!("{}-{number}", ask.tool()?);
    let mut stream = TcpStream::from(socket);
    // In turns: ended by us with a reset, or by the agent, whose end keeps it in TIME_WAIT until the port comes again.
    let then = if number % 4 < 2 { speak::Then::More } else { speak::Then::Nothing };
    let said = speak::call(stream.try_clone().at("share")?, &tool, &to.to_string(), then)?;
    let expected = format!("{} {tool}.", ask.word("nonce")?);
    if !said.contains(&expected) {
        return Err(stopped("answer", format!("`{tool}` was answered by `{said}`")));
    }
    match then {
        speak::Then::More => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).at("option"),
        speak::Then::Nothing => stream.read(&mut [0]).at("close").map(|_end| ()),
    }
}

/// Connects and calls until its input ends, by `threads=` threads. A line of its input is a wish, `answered` or
/// `refused`: as soon as a call that began after it has come to that, it says `heard` and the same. Every fourth call is
/// of the tool `forbidden-N`, which is to be denied.
pub(crate) fn load(ask: &Ask) -> Tried {
    let ended = AtomicBool::new(false);
    let number = AtomicU32::new(0);
    let tally = Mutex::new(Tally::default());
    let lock = || tally.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| -> Result<(), Stopped> {
        for _ in 0..ask.number("threads")? {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let number = number.fetch_add(1, Ordering::SeqCst);
                    let told = told(ask, number);
                    let refused = matches!(told, Told::Refused);
                    lock().count(number, told);
                    if refused {
                        // As clients do: those who try to take the port shall have their turn.
                        let _never_readable = poll(&mut [], PollTimeout::from(PAUSE_MS));
                    }
                }
            });
        }
        for line in std::io::stdin().lines() {
            let word = line.at("input")?;
            lock().wish = Some(Wish { from: number.load(Ordering::SeqCst), word });
        }
        ended.store(true, Ordering::SeqCst);
        Ok(())
    })?;
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(format!(
        "load answered={} denied={} refused={} silent={} strange={} {}",
        tally.answered,
        tally.denied,
        tally.refused,
        tally.silent,
        tally.strange.len(),
        tally.strange.first().map_or("", String::as_str)
    ))
}

#[derive(Default)]
struct Tally {
    answered: u32,
    denied: u32,
    refused: u32,
    silent: u32,
    strange: Vec<String>,
    wish: Option<Wish>,
}

/// What the test waits for.
struct Wish {
    /// The first call that counts.
    from: u32,
    word: String,
}

/// What one connection of the load came to.
enum Told {
    Answered,
    Denied,
    Refused,
    Silent,
    Strange(String),
}

impl Tally {
    fn count(&mut self, number: u32, told: Told) {
        let word = match told {
            Told::Answered => {
                self.answered += 1;
                "answered"
            }
            Told::Refused => {
                self.refused += 1;
                "refused"
            }
            Told::Denied => {
                self.denied += 1;
                return;
            }
            Told::Silent => {
                self.silent += 1;
                return;
            }
            Told::Strange(what) => {
                self.strange.push(what);
                return;
            }
        };
        if self.wish.take_if(|wish| number >= wish.from && wish.word == word).is_some() {
            println!("heard {word}");
        }
    }
}

fn told(ask: &Ask, number: u32) -> Told {
    let forbidden = number % 4 == 3;
    let (Ok(own), Ok(nonce), Ok(to)) = (ask.tool(), ask.word("nonce"), ask.to()) else {
        return Told::Strange("words are missing".to_owned());
    };
    let tool = if forbidden { format!("{FORBIDDEN}-{number}") } else { format!("{own}-{number}") };
    let called = || -> Tried {
        let stream = TcpStream::connect_timeout(&to, speak::SILENCE).at("connect")?;
        // Its port is free at once.
        let _reset = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        speak::call(stream, &tool, &to.to_string(), speak::Then::More)
    };
    let said = match called() {
        Ok(said) => said,
        Err(stopped) if stopped.is_silence() => return Told::Silent,
        Err(_refused_or_broken_off) => return Told::Refused,
    };
    // The agent's own words, when it ends or its server is not to be had.
    let is_its_own =
        ["502", "503", "504"].iter().any(|status| said.starts_with(&format!("answered {status} ")));
    match forbidden {
        _either if said.contains(IMPOSTURE) => Told::Strange(said),
        _either if is_its_own => Told::Refused,
        false if said.contains(&format!("{nonce} {tool}.")) => Told::Answered,
        true if said.starts_with("answered 200 ") && !said.contains(nonce) => Told::Denied,
        _either => Told::Strange(said),
    }
}
