//! Messages that are mostly valid, and damage: the same in every run of one seed.

use std::collections::BTreeMap;

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * bound as u128;
        usize::try_from(wide >> 64).expect("below the bound")
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// How many bytes arrive at a time.
    pub(crate) fn step(&mut self) -> usize {
        [1, 2, 3, 7, 16, 64, 1000, 100_000][self.below(8)]
    }

    /// One to three bytes more, fewer or other: those that a grammar hangs on, mostly.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>, telling: &[u8]) {
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            let byte =
                if self.one_in(4) { self.below(256) } else { telling[self.below(telling.len())].into() };
            let byte = u8::try_from(byte).expect("a byte");
            match self.below(4) {
                0 => drop(bytes.remove(at)),
                1 => bytes.insert(at, byte),
                2 => bytes[at] = byte,
                _ => {
                    let end = (at + 1 + self.below(12)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len());
                    bytes.splice(to..to, copy);
                }
            }
        }
    }
}

/// Every such input begins with a seed.
const SEEDED_ONE_IN: usize = 8;

/// What the generator does not think of: now and then one of the seeds, damaged up to four times, in the place of what
/// `generated` makes.
pub(crate) fn or_seed(
    random: &mut Random,
    seeds: &[Vec<u8>],
    generated: impl FnOnce(&mut Random) -> Vec<u8>,
) -> Vec<u8> {
    if !random.one_in(SEEDED_ONE_IN) {
        return generated(random);
    }
    let mut seed = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        random.damage(&mut seed, TELLING);
    }
    seed
}

const TARGETS: &[&str] = &[
    "/mcp",
    "/mcp",
    "/mcp",
    "/",
    "/mcp?a=b&c",
    "/mcp?",
    "/a/b.md",
    "/mcp/",
    "/a%20b",
    "/a;b=c/d",
    "/~a/(b)!$&'*+,:@",
    "/mcp?a/../b",
    "/a|b",
    "/mcp?{a}^",
    "/...",
];
/// Refused by themselves.
const STRANGE_TARGETS: &[&str] = &[
    "//mcp",
    "/a/../mcp",
    "/%2e%2e/mcp",
    "/..;a/mcp",
    "/a%2fb",
    "/a\\b",
    "/%",
    "/%00",
    "http://a/mcp",
    "a:80",
    "*",
    "/m\u{e9}cp",
    "/a`b",
    "/<a>",
    "/mcp?q={\"a\"}",
    "/mcp#a",
];
const HEADERS: &[&str] = &[
    "Accept: application/json, text/event-stream",
    "Content-Type: application/json",
    "User-Agent: a/1 (b; c)",
    "Mcp-Session-Id: 1868a90c",
    "MCP-Protocol-Version: 2025-11-25",
    "Accept-Encoding: gzip, br",
    "X-A:",
    "X-A:  b  ",
    "x-a: \tc",
    "X_Y: z",
    "Cookie: a=b; c=d",
    "Authorization: Bearer a.b",
    "TE: trailers",
    "Connection: keep-alive",
    "Connection: Keep-Alive, X-A",
    "Connection: close",
    "Keep-Alive: timeout=5",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAMAAABkAAQ",
    "Last-Event-ID: 7",
    "X-Forwarded-For: 1.2.3.4",
    "dapr-caller-app-id: a",
    "X-B: \u{e9}",
    "Date: Thu, 26 Nov 2026 11:00:00 GMT",
    "Server: a",
    "Trailer: X-A",
    "Proxy-Connection: a",
    "!#$%&'*+-.^_`|~: a",
];
/// Refused by themselves.
const STRANGE: &[&str] = &[
    "Content-Length: 5",
    "content-length: 0",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: 05",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: identity",
    "Content_Length: 5",
    "transfer_encoding: chunked",
    "Content-Encoding: gzip",
    "Host: b",
    " folded",
    "X-A : b",
    "X-A\t: b",
    "no colon",
    ": no name",
    "X A: b",
    "mcp_session_id: a",
    "Connection: content-length",
    "X-A: b\rX-B: c",
    "X-A: \u{0}",
];
const TELLING: &[u8] = b"\r\n\n\r :,;/\t\0%.0159afAF_-+\"\\{}[]\x0b\x7f\x85\xff";

fn body(random: &mut Random) -> Vec<u8> {
    let part = random.one(&[
        "{\"a\":1}",
        "x",
        "",
        "0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n",
        "\u{e9}\0",
    ]);
    part.repeat(random.below(4)).into_bytes()
}

/// A chunked body of these data.
fn chunks(random: &mut Random, data: &[u8]) -> Vec<u8> {
    let extension = |random: &mut Random| {
        if random.one_in(3) {
            random.one(&[";a", ";a=b", ";a=\"b;c\"", " ;a", ";", ";\u{e9}", ";a\n"])
        } else {
            ""
        }
    };
    let mut out = Vec::new();
    let mut left = data;
    while !left.is_empty() {
        let (now, later) = left.split_at(1 + random.below(left.len()));
        let size = match random.below(4) {
            0 => format!("{:X}", now.len()),
            1 => format!("{:04x}", now.len()),
            _ => format!("{:x}", now.len()),
        };
        out.extend_from_slice(size.as_bytes());
        out.extend_from_slice(extension(random).as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(now);
        out.extend_from_slice(b"\r\n");
        left = later;
    }
    out.extend_from_slice(random.one(&["0", "0", "00"]).as_bytes());
    out.extend_from_slice(extension(random).as_bytes());
    out.extend_from_slice(
        random.one(&["\r\n", "\r\n", "\r\nX-A: b\r\n", "\r\nX-A: b\r\nContent-Length: 9\r\n"]).as_bytes(),
    );
    out.extend_from_slice(b"\r\n");
    out
}

/// Headers, the empty line and the body behind them.
fn rest(random: &mut Random, out: &mut Vec<u8>, is_reply: bool) {
    let mut line = |text: &str| {
        out.extend_from_slice(text.as_bytes());
        out.extend_from_slice(b"\r\n");
    };
    for _ in 0..random.below(7) {
        line(random.one(HEADERS));
    }
    if random.one_in(6) {
        line(random.one(STRANGE));
    }
    let data = body(random);
    let mut sent = Vec::new();
    match random.below(if is_reply { 4 } else { 3 }) {
        0 => {
            line(random.one(&["Transfer-Encoding: chunked", "transfer-encoding:  Chunked"]));
            sent = chunks(random, &data);
        }
        1 => {
            let wrong = usize::from(random.one_in(12));
            line(&format!("{}: {}", random.one(&["Content-Length", "content-length"]), data.len() + wrong));
            sent = data;
        }
        2 => {}
        _ => sent = data,
    }
    line("");
    out.extend_from_slice(&sent);
    if random.one_in(8) {
        out.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
}

/// A request, one in three damaged.
pub(crate) fn request(random: &mut Random) -> Vec<u8> {
    let method = random
        .one(&["POST", "POST", "POST", "GET", "GET", "DELETE", "PUT", "HEAD", "OPTIONS", "QUERY", "post"]);
    let version = if random.one_in(40) {
        random.one(&["HTTP/1.0", "HTTP/2.0", "http/1.1", "HTTP/1.1 "])
    } else {
        "HTTP/1.1"
    };
    let host = if random.one_in(40) {
        ""
    } else {
        random.one(&["Host: a:1\r\n", "host: 127.0.0.1:8000\r\n", "Host: [::1]:80\r\n"])
    };
    let targets = if random.one_in(12) { STRANGE_TARGETS } else { TARGETS };
    let target = random.one(targets);
    let mut out = format!("{method} {target} {version}\r\n{host}").into_bytes();
    rest(random, &mut out, false);
    if random.one_in(3) {
        random.damage(&mut out, TELLING);
    }
    out
}

/// What a reply answers.
pub(crate) fn method(random: &mut Random) -> &'static str {
    random.one(&["POST", "POST", "GET", "GET", "DELETE", "HEAD"])
}

/// A reply, one in three damaged.
pub(crate) fn reply(random: &mut Random) -> Vec<u8> {
    let version = random.one(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
    let status = random.one(&[
        "200 OK",
        "200 OK",
        "202 Accepted",
        "202 ",
        "204 No Content",
        "304 Not Modified",
        "404 Not Found",
        "500 a b",
        "299",
        "100 Continue",
    ]);
    let mut out = format!("{version} {status}\r\n").into_bytes();
    rest(random, &mut out, true);
    if random.one_in(3) {
        random.damage(&mut out, TELLING);
    }
    out
}

/// How often each class came up.
#[derive(Default)]
pub(crate) struct Classes(BTreeMap<String, usize>);

impl Classes {
    pub(crate) fn count(&mut self, class: String) {
        *self.0.entry(class).or_default() += 1;
    }

    /// Prints all of them.
    ///
    /// # Panics
    /// Where fewer than 30 % were accepted: the inputs would prove little.
    pub(crate) fn show(&self, what: &str) {
        let all: usize = self.0.values().sum();
        let accepted: usize =
            self.0.iter().filter(|(class, _)| class.starts_with("accepted")).map(|(_, count)| count).sum();
        println!("{what}: {all} inputs, {} % accepted", accepted * 100 / all.max(1));
        for (class, count) in &self.0 {
            println!("  {count:>8}  {class}");
        }
        assert!(accepted * 10 >= all * 3, "{what}: {accepted} of {all} accepted");
    }
}
