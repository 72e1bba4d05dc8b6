//! Undeclared MCP servers that captured callers talked to, or tried to: what `toolgate discover` shows.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use toolgate_core::mcp::{Message, Method};

use crate::bounded::CALLER_SHARE;
use crate::limits::Limits;

/// The most bytes of a tool's name or a path that is kept; what is longer is not.
const NAME_BYTES_MAX: usize = 256;

/// Who talked to what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// `None`: no workload fits it.
    caller: Option<String>,
    address: SocketAddr,
}

#[derive(Debug, Default)]
struct Seen {
    path: String,
    tools: BTreeSet<String>,
    /// More tools were named than are kept.
    more_tools: bool,
    messages: u64,
    at: Option<SystemTime>,
}

/// One server, as one caller used it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The caller; null: no workload fits it.
    pub caller: Option<String>,
    /// Where the server is.
    pub address: SocketAddr,
    /// Where it took MCP last, without the query.
    pub path: String,
    /// The tools that were called, whether that was let through or not.
    pub tools: Vec<String>,
    /// More were called than are kept.
    pub more_tools: bool,
    /// Messages to it.
    pub messages: u64,
    /// When the last of them came, RFC 3339.
    pub last: String,
}

/// All that were seen since the agent started.
pub struct Discovered {
    seen: Mutex<HashMap<Key, Seen>>,
    servers_max: usize,
    tools_max: usize,
}

impl Discovered {
    /// None was seen yet.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let (servers_max, tools_max) = (limits.discovered_max, limits.discovered_tools_max);
        Self { seen: Mutex::default(), servers_max, tools_max }
    }

    /// MCP went to an address that no Server declares; `None` of a message: it cannot be read.
    pub fn saw(
        &self,
        caller: Option<String>,
        address: SocketAddr,
        path: &str,
        message: Option<&Message<'_>>,
        now: SystemTime,
    ) {
        let fits = |text: &&str| text.len() <= NAME_BYTES_MAX;
        let tool = match message {
            Some(Message::Request(call)) if call.method == Method::ToolsCall => call.name.as_deref(),
            Some(Message::Request(_) | Message::Notification(_) | Message::Response(_)) | None => None,
        };
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Key { caller, address };
        if !all.contains_key(&key) {
            self.make_room(&mut all, &key);
        }
        let seen = all.entry(key).or_default();
        seen.messages += 1;
        seen.at = Some(now);
        if let Some(path) = Some(path).filter(fits) {
            path.clone_into(&mut seen.path);
        }
        let Some(tool) = tool else { return };
        if seen.tools.contains(tool) {
            return;
        }
        if fits(&tool) && seen.tools.len() < self.tools_max {
            seen.tools.insert(tool.to_owned());
        } else {
            seen.more_tools = true;
        }
    }

    /// A caller that goes everywhere loses its own first.
    fn make_room(&self, all: &mut HashMap<Key, Seen>, key: &Key) {
        let its = all.keys().filter(|other| other.caller == key.caller).count();
        let is_greedy = its >= (self.servers_max / CALLER_SHARE).max(1);
        if !is_greedy && all.len() < self.servers_max {
            return;
        }
        let candidates = all.iter().filter(|(other, _)| !is_greedy || other.caller == key.caller);
        let oldest = candidates.min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            all.remove(&oldest);
        }
    }

    /// All of them, by address and caller.
    #[must_use]
    pub fn all(&self) -> Vec<Found> {
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |(key, seen): (&Key, &Seen)| Found {
            caller: key.caller.clone(),
            address: key.address,
            path: seen.path.clone(),
            tools: seen.tools.iter().cloned().collect(),
            more_tools: seen.more_tools,
            messages: seen.messages,
            last: seen.at.map(|at| humantime::format_rfc3339_seconds(at).to_string()).unwrap_or_default(),
        };
        let mut all: Vec<Found> = all.iter().map(found).collect();
        all.sort_by(|one, other| (one.address, &one.caller).cmp(&(other.address, &other.caller)));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use toolgate_core::mcp::{JsonLimits, Scratch, parse};

    use super::*;

    fn discovered(discovered_max: usize, discovered_tools_max: usize) -> Discovered {
        Discovered::new(&Limits { discovered_max, discovered_tools_max, ..Limits::default() })
    }

    fn saw(all: &Discovered, caller: Option<&str>, port: u16, path: &str, method: &str, name: &str, at: u64) {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"name":"{name}"}}}}"#);
        let mut scratch = Scratch::default();
        let message = parse(text.as_bytes(), &mut scratch, &JsonLimits::default()).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        all.saw(caller.map(str::to_owned), address, path, Some(&message), at);
    }

    #[test]
    fn who_called_which_tools_where() {
        let all = discovered(64, 2);
        saw(&all, Some("a"), 2, "/old", "initialize", "x", 1);
        for tool in ["search", "search", "add", "third"] {
            saw(&all, Some("a"), 2, "/mcp", "tools/call", tool, 2);
        }
        saw(&all, None, 2, "/mcp", "tools/call", "search", 3);
        saw(&all, Some("a"), 1, &"/long".repeat(100), "prompts/get", "p", 4);
        let found = all.all();
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.address.port(), one.caller.as_deref(), one.path.as_str(), one.messages))
            .collect();
        assert_eq!(told, [(1, Some("a"), "", 1), (2, None, "/mcp", 1), (2, Some("a"), "/mcp", 5)]);
        assert_eq!(
            (&found[2].tools[..], found[2].more_tools),
            (&["add".to_owned(), "search".to_owned()][..], true)
        );
        assert_eq!((found[1].more_tools, found[2].last.as_str()), (false, "1970-01-01T00:00:02Z"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let all = discovered(64, 8);
        saw(&all, Some("calm"), 1, "/mcp", "tools/call", "search", 0);
        for port in 1..1_000 {
            saw(&all, Some("greedy"), port, "/mcp", "tools/call", &format!("t{port}"), port.into());
            saw(&all, Some("namer"), 1, "/mcp", "tools/call", &format!("t{port}"), port.into());
        }
        let found = all.all();
        let of = |caller: &str| found.iter().filter(|one| one.caller.as_deref() == Some(caller)).count();
        assert_eq!((of("calm"), of("greedy"), of("namer")), (1, 64 / CALLER_SHARE, 1));
        assert!(found.iter().all(|one| one.tools.len() <= 8));
        for caller in 0..1_000 {
            saw(&all, Some(&format!("c{caller}")), 1, "/mcp", "initialize", "x", 2_000 + caller);
        }
        assert_eq!(all.all().len(), 64);
    }
}
