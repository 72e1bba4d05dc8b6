//! The first message of a TLS client, as far as it tells whom the client means (RFC 8446 4.1.2, RFC 6066 3), and what it will
//! speak with it (RFC 7301).

/// What the first bytes of a connection tell of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// It is no TLS.
    No,
    /// It begins as TLS, and is no first message of a client, or such that two readers could read it in two ways.
    Unclear,
    /// More bytes are needed.
    Maybe,
    /// A whole one.
    Client(ClientHello),
}

/// What the first message of a client tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The server that it names, where it names exactly one host.
    pub server_name: Option<String>,
    /// Another name may be in its encrypted part (ECH). Some clients send the extension with nothing in it, which nobody
    /// can tell from a real one.
    pub may_hide_name: bool,
    /// What is spoken within can be HTTP/1.1: it is offered, or nothing is.
    pub offers_http1: bool,
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: usize = 0;
const PROTOCOLS: usize = 16;
const ENCRYPTED_HELLO: usize = 0xfe0d;
const HOST_NAME: u8 = 0;
const HTTP_1_1: &[u8] = b"http/1.1";
/// The most bytes of a record (RFC 8446 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
/// The most bytes of a message that is read: with post-quantum keys it has some 2,000.
const HELLO_BYTES_MAX: usize = 1 << 16;

/// Reads the `ClientHello` at the front of a connection's bytes.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Hello {
    let mut records = Reader(bytes);
    let mut message: Vec<u8> = Vec::new();
    loop {
        if let Some(body) = whole(&message) {
            return read(body).map_or(Hello::Unclear, Hello::Client);
        }
        let Some(header) = records.take(5) else {
            return match begins_record(records.0) {
                true => Hello::Maybe,
                false if message.is_empty() => Hello::No,
                false => Hello::Unclear,
            };
        };
        if !begins_record(header) {
            return if message.is_empty() { Hello::No } else { Hello::Unclear };
        }
        let length = header.get(3..).map_or(0, number);
        if length == 0 || length > RECORD_BYTES_MAX {
            return Hello::Unclear;
        }
        let fragment = records.take(length);
        message.extend_from_slice(fragment.unwrap_or(records.0));
        let is_hello = message.first().is_none_or(|kind| *kind == CLIENT_HELLO);
        let length = message.get(1..4).map(number);
        let fits = length.is_none_or(|length| length <= HELLO_BYTES_MAX && message.len() <= 4 + length);
        if !is_hello || !fits {
            return Hello::Unclear;
        }
        if fragment.is_none() {
            return Hello::Maybe;
        }
    }
}

/// A handshake record of any version whose major number is 3.
fn begins_record(header: &[u8]) -> bool {
    header.first().is_none_or(|kind| *kind == HANDSHAKE) && header.get(1).is_none_or(|major| *major == 3)
}

/// The body of a message that is there to its end, and ends where its record does.
fn whole(message: &[u8]) -> Option<&[u8]> {
    let body = message.get(4..)?;
    (body.len() == message.get(1..4).map(number)?).then_some(body)
}

/// What the body of a `ClientHello` tells. `None`: it is none, or two readers could differ.
fn read(body: &[u8]) -> Option<ClientHello> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // version, random
    hello.vector(1)?; // session
    hello.vector(2)?; // cipher suites
    hello.vector(1)?; // compression
    let mut told = ClientHello { server_name: None, may_hide_name: false, offers_http1: true };
    if hello.0.is_empty() {
        return Some(told);
    }
    let mut extensions = Reader(hello.vector(2)?);
    let mut protocols = None;
    while !extensions.0.is_empty() {
        let kind = number(extensions.take(2)?);
        let content = extensions.vector(2)?;
        // A second one is forbidden (RFC 8446 4.2): who knows which counts.
        match kind {
            SERVER_NAME if told.server_name.replace(host_name(content)?).is_some() => return None,
            PROTOCOLS if protocols.replace(offers_http1(content)?).is_some() => return None,
            ENCRYPTED_HELLO => told.may_hide_name = true,
            _ => {}
        }
    }
    told.offers_http1 = protocols.unwrap_or(true);
    hello.0.is_empty().then_some(told)
}

fn offers_http1(extension: &[u8]) -> Option<bool> {
    let mut content = Reader(extension);
    let mut list = Reader(content.vector(2)?);
    let mut offers = false;
    while !list.0.is_empty() {
        offers |= list.vector(1)? == HTTP_1_1;
    }
    content.0.is_empty().then_some(offers)
}

fn host_name(extension: &[u8]) -> Option<String> {
    let mut names = Reader(extension);
    let mut list = Reader(names.vector(2)?);
    let kind = list.take(1)?;
    let name = std::str::from_utf8(list.vector(2)?).ok()?;
    let is_host = kind == [HOST_NAME] && !name.is_empty();
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    (is_host && is_name && list.0.is_empty() && names.0.is_empty()).then(|| name.to_owned())
}

/// Big end first.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, bytes: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// What has its length before it, in so many bytes.
    fn vector(&mut self, bytes: usize) -> Option<&'b [u8]> {
        let length = number(self.take(bytes)?);
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(bytes: usize, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        [&length[length.len() - bytes..], content].concat()
    }

    fn name(kind: u8, name: &str) -> Vec<u8> {
        let entry = [vec![kind], vector(2, name.as_bytes())].concat();
        [vec![0, 0], vector(2, &vector(2, &entry))].concat()
    }

    fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(vector(1, &[9; 32]));
        body.extend(vector(2, &[0x13, 1]));
        body.extend(vector(1, &[0]));
        if !extensions.is_empty() {
            body.extend(vector(2, &extensions.concat()));
        }
        [vec![1], vector(3, &body)].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [vec![22, 3, 1], vector(2, part)].concat()).collect()
    }

    fn protocols(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| vector(1, name.as_bytes())).collect();
        [vec![0, 16], vector(2, &vector(2, &list))].concat()
    }

    fn client(server_name: Option<&str>) -> Hello {
        told(server_name, false, true)
    }

    fn told(server_name: Option<&str>, may_hide_name: bool, offers_http1: bool) -> Hello {
        Hello::Client(ClientHello {
            server_name: server_name.map(str::to_owned),
            may_hide_name,
            offers_http1,
        })
    }

    #[test]
    fn the_server_that_a_client_names() {
        let other = [vec![0, 43], vector(2, &[2, 3, 4])].concat();
        let docs = || name(0, "docs.internal");
        let table = [
            ("one name", hello(&[other.clone(), docs()]), client(Some("docs.internal"))),
            ("no name", hello(std::slice::from_ref(&other)), client(None)),
            ("no extensions", hello(&[]), client(None)),
            ("two names", hello(&[docs(), other, docs()]), Hello::Unclear),
            ("another kind of name", hello(&[name(1, "docs.internal")]), Hello::Unclear),
            ("an empty name", hello(&[name(0, "")]), Hello::Unclear),
            ("a name with a NUL", hello(&[name(0, "docs\0.internal")]), Hello::Unclear),
            (
                "a list that goes on",
                hello(&[[vec![0, 0], vector(2, &[0, 4, 0, 0, 1, b'a', 0])].concat()]),
                Hello::Unclear,
            ),
            (
                "an encrypted name",
                hello(&[docs(), vec![0xfe, 0x0d, 0, 1, 0]]),
                told(Some("docs.internal"), true, true),
            ),
            ("HTTP/2 or 1.1", hello(&[protocols(&["h2", "http/1.1"])]), client(None)),
            ("HTTP/2 alone", hello(&[docs(), protocols(&["h2"])]), told(Some("docs.internal"), false, false)),
            ("two offers", hello(&[protocols(&["h2"]), protocols(&["http/1.1"])]), Hello::Unclear),
            ("a broken offer", hello(&[vec![0, 16, 0, 4, 0, 2, 9, b'h']]), Hello::Unclear),
            ("another message", [vec![2], vector(3, &[0; 40])].concat(), Hello::Unclear),
            ("larger than any", [vec![1, 2, 0, 0], vec![0; 64]].concat(), Hello::Unclear),
        ];
        for (case, message, expected) in table {
            for size in [1, 5, 1 << 14] {
                let bytes = records(&message, size);
                assert_eq!(client_hello(&bytes), expected, "{case}, records of {size}");
                // What is cut off is not taken for something else.
                let cut = client_hello(&bytes[..bytes.len() - 1]);
                assert!(matches!(cut, Hello::Maybe | Hello::Unclear), "{case}: {cut:?}");
                let first = client_hello(&bytes[..1]);
                assert_eq!(first, Hello::Maybe, "{case}");
            }
        }
        let behind = records(&[hello(&[docs()]), vec![0]].concat(), 1 << 14);
        assert_eq!(client_hello(&behind), Hello::Unclear, "bytes behind it in its record");
        let other_record = [&records(&hello(&[docs()]), 5)[..20], b"GET / HTTP/1.1"].concat();
        assert_eq!(client_hello(&other_record), Hello::Unclear, "another protocol behind its first records");
    }

    #[test]
    fn what_is_no_tls() {
        for bytes in [&b"GET / HTTP/1.1"[..], b"SSH-2.0-x\r\n", &[22, 2, 0, 0, 1], &[23, 3, 3, 0, 1, 0]] {
            assert_eq!(client_hello(bytes), Hello::No, "{}", bytes.escape_ascii());
        }
        assert_eq!(client_hello(&[22, 3, 1, 0, 0]), Hello::Unclear, "an empty record");
        assert_eq!(client_hello(b""), Hello::Maybe);
    }
}
