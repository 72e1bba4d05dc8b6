//! A server of HTTP that is no MCP server: it answers, becomes a WebSocket, and is a proxy for who asks it to be one.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, Result};

/// Where the proxy goes for a name.
pub(crate) type Names = Arc<Mutex<BTreeMap<String, SocketAddr>>>;

/// It listens as long as the test runs.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    heads: Receiver<String>,
}

impl Web {
    pub(crate) fn start(names: &Names) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let address = listener.local_addr()?;
        let (sender, heads) = channel();
        let names = Arc::clone(names);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (sender, names) = (sender.clone(), Arc::clone(&names));
                thread::spawn(move || {
                    let _the_client_left = serve(stream, &sender, &names);
                });
            }
        });
        Ok(Self { address, heads })
    }

    /// The heads that reached it and were not asked for yet.
    pub(crate) fn heads_now(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }
}

fn serve(mut client: TcpStream, heads: &Sender<String>, names: &Names) -> Result<()> {
    while let Some(head) = read_head(&mut client)? {
        heads.send(head.clone()).context("the test has ended")?;
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let lower = head.to_lowercase();
        if method == "CONNECT" {
            let Some(mut server) = dial(target, names, &mut client)? else { return Ok(()) };
            let mut answer = b"HTTP/1.1 200 Connection established\r\n\r\n".to_vec();
            if target.starts_with("ssh.") {
                // What this server says first comes in one segment with the answer.
                let mut banner = [0; crate::BANNER.len()];
                server.read_exact(&mut banner)?;
                answer.extend(banner);
            }
            client.write_all(&answer)?;
            return relay(client, server);
        }
        if let Some(rest) = target.strip_prefix("http://") {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let Some(mut server) = dial(authority, names, &mut client)? else { return Ok(()) };
            server.write_all(head.replacen(target, &format!("/{path}"), 1).as_bytes())?;
            return relay(client, server);
        }
        if lower.contains("upgrade: websocket") {
            client.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
            )?;
            return relay(client.try_clone()?, client);
        }
        let is_last = target == "/last";
        let close = if is_last { "Connection: close\r\n" } else { "" };
        client.write_all(
            format!("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n{close}\r\nsaid by web").as_bytes(),
        )?;
        if is_last {
            break;
        }
    }
    Ok(())
}

/// The server that a proxy is asked for; none where it cannot be reached.
fn dial(authority: &str, names: &Names, client: &mut TcpStream) -> Result<Option<TcpStream>> {
    let name = authority.rsplit_once(':').map_or(authority, |(name, _port)| name);
    let known = names.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
    let server =
        known.or_else(|| authority.parse().ok()).and_then(|address| TcpStream::connect(address).ok());
    if server.is_none() {
        client
            .write_all(b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    }
    Ok(server)
}

/// Until one side ends.
fn relay(mut client: TcpStream, mut server: TcpStream) -> Result<()> {
    let (mut back, mut to) = (server.try_clone()?, client.try_clone()?);
    let answering = thread::spawn(move || {
        let _one_left = std::io::copy(&mut back, &mut to);
        let _one_left = to.shutdown(Shutdown::Write);
    });
    let _one_left = std::io::copy(&mut client, &mut server);
    let _one_left = server.shutdown(Shutdown::Write);
    let _it_panicked = answering.join();
    Ok(())
}

/// None: the client has left.
fn read_head(client: &mut TcpStream) -> Result<Option<String>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).context("cannot read")? == 0 {
            return Ok(None);
        }
        head.extend(byte);
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
