//! A server whose every byte is the test's own, and clients that hold a stream of it open.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use toolgate_tests::http::Reply;
use toolgate_tests::scene::resources;
use toolgate_tests::{Agent, Caller, Connection, Peer, Setup, http};

/// What SDK servers name.
pub(crate) const ENDPOINT: &str = "/messages/?session_id=0f8fad5b";

/// An agent, and the server that is declared as `docs`.
pub(crate) struct Rig {
    pub(crate) agent: Agent,
    pub(crate) peer: Peer,
}

/// A client with its stream.
pub(crate) struct Session {
    pub(crate) caller: Caller,
    pub(crate) stream: Connection,
    /// The server's end of the stream.
    pub(crate) server: Connection,
    pub(crate) posts: Connection,
    pub(crate) endpoint: String,
}

impl Rig {
    /// What `reader` and `writer` may do is as elsewhere; `rules` come behind that.
    pub(crate) fn set(rules: &str, limits: &str) -> Result<Self> {
        let peer = Peer::start()?;
        let agent = Agent::start(Setup { resources: &legacy(&peer, rules), limits, ..Setup::default() })?;
        Ok(Self { agent, peer })
    }

    /// A GET of the stream, which the server has; the client's end and the server's.
    pub(crate) fn get(&self, caller: &mut Caller) -> Result<(Connection, Connection)> {
        let mut stream = caller.http(self.peer.address)?;
        stream.send(request("GET /sse", self, &[]).as_slice())?;
        let mut server = self.peer.accept()?;
        let head = server.through("\r\n\r\n")?;
        ensure!(head.starts_with("GET /sse HTTP/1.1\r\n"), "{head}");
        Ok((stream, server))
    }

    /// A client of that App ID whose stream has named its endpoint.
    pub(crate) fn session(&self, app_id: &str, endpoint: &str) -> Result<Session> {
        let mut caller = self.agent.caller(app_id)?;
        let (mut stream, mut server) = self.get(&mut caller)?;
        begin(&mut server)?;
        let named = format!("event: endpoint\r\ndata: {endpoint}\r\n\r\n");
        say(&mut server, &named)?;
        ensure!(stream.head()?.status == 200, "no stream");
        ensure!(stream.event()? == Some(named), "no endpoint");
        let posts = caller.http(self.peer.address)?;
        Ok(Session { caller, stream, server, posts, endpoint: endpoint.to_owned() })
    }

    /// A message that reaches the server, which accepts it.
    pub(crate) fn accepted(&self, session: &mut Session, message: &Value) -> Result<()> {
        let mut server = self.arrives(session, message)?;
        accept(&mut server)?;
        let reply = session.posts.reply()?;
        ensure!((reply.status, &*reply.text()) == (202, "Accepted"), "{}{}", reply.head, reply.text());
        Ok(())
    }

    /// A message that reaches the server: its end, on which nothing was said yet.
    pub(crate) fn arrives(&self, session: &mut Session, message: &Value) -> Result<Connection> {
        session.send(self, message)?;
        let mut server = self.peer.accept().context("it did not reach the server")?;
        let head = server.through("\r\n\r\n")?;
        ensure!(head.starts_with(&format!("POST {} HTTP/1.1\r\n", session.endpoint)), "{head}");
        let length = http::header(&head, "content-length").context("no length")?.parse()?;
        let body = server.exactly(length)?;
        ensure!(body == message.to_string().into_bytes(), "{}", String::from_utf8_lossy(&body));
        Ok(server)
    }

    /// A message that does not reach the server; what its client is told.
    pub(crate) fn refused(&self, session: &mut Session, message: &Value) -> Result<Reply> {
        session.send(self, message)?;
        let reply = session.posts.reply()?;
        ensure!(self.peer.accept_now()?.is_none(), "it reached the server: {message}");
        Ok(reply)
    }
}

impl Session {
    pub(crate) fn send(&mut self, rig: &Rig, message: &Value) -> Result<()> {
        let start = format!("POST {}", self.endpoint);
        self.posts.send(&request(&start, rig, message.to_string().as_bytes()))
    }

    /// The next message on the stream.
    pub(crate) fn message(&mut self) -> Result<Value> {
        let event = self.stream.event()?.context("the stream has ended")?;
        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).context("no data")?;
        serde_json::from_str(data).with_context(|| format!("no message in {event:?}"))
    }

    /// The server says a message on the stream.
    pub(crate) fn say(&mut self, message: &Value) -> Result<()> {
        say(&mut self.server, &format!("event: message\ndata: {message}\n\n"))
    }

    /// What the server says is what comes next.
    pub(crate) fn hears(&mut self, message: &Value) -> Result<()> {
        self.say(message)?;
        let heard = self.message()?;
        ensure!(heard == *message, "{heard}");
        Ok(())
    }
}

/// The resources of a server that speaks HTTP with SSE.
pub(crate) fn legacy(peer: &Peer, rules: &str) -> String {
    resources(peer.address).replace("  path: /mcp", "  path: /sse\n  transport: sse") + rules
}

/// Begins a stream.
pub(crate) fn begin(server: &mut Connection) -> Result<()> {
    server.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
}

/// Says something on a stream that has begun.
pub(crate) fn say(server: &mut Connection, text: &str) -> Result<()> {
    server.send(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}

/// As SDK servers do; the connection is for one message.
pub(crate) fn accept(server: &mut Connection) -> Result<()> {
    server.send(
        b"HTTP/1.1 202 Accepted\r\nContent-Type: text/plain\r\nContent-Length: 8\r\nConnection: close\r\n\r\nAccepted",
    )
}

/// A whole request; `start`: method and target.
pub(crate) fn request(start: &str, rig: &Rig, body: &[u8]) -> Vec<u8> {
    let host = rig.peer.address;
    let content = if start.starts_with("POST") || !body.is_empty() {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    } else {
        "Accept: text/event-stream\r\n".to_owned()
    };
    [format!("{start} HTTP/1.1\r\nHost: {host}\r\n{content}\r\n").as_bytes(), body].concat()
}

/// A call of a tool.
pub(crate) fn call(id: &Value, tool: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool, "arguments": {} } })
}

/// Its answer.
pub(crate) fn answer(id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": { "content": [], "isError": false } })
}
