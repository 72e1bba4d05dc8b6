//! The first message of a TLS client, as far as it tells whom the client means (RFC 8446 4.1.2, RFC 6066 3).

/// What the first bytes of a connection tell of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// It is no TLS, or such that two readers could read it in two ways.
    No,
    /// More bytes are needed.
    Maybe,
    /// A whole one.
    Client {
        /// The server that it names, where it names exactly one host.
        server_name: Option<String>,
    },
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
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
            return match server_name(body) {
                Some(server_name) => Hello::Client { server_name },
                None => Hello::No,
            };
        }
        let Some(header) = records.take(5) else {
            return if begins_record(records.0) { Hello::Maybe } else { Hello::No };
        };
        if !begins_record(header) {
            return Hello::No;
        }
        let length = header.get(3..).map_or(0, number);
        if length == 0 || length > RECORD_BYTES_MAX {
            return Hello::No;
        }
        let fragment = records.take(length);
        message.extend_from_slice(fragment.unwrap_or(records.0));
        let is_hello = message.first().is_none_or(|kind| *kind == CLIENT_HELLO);
        let length = message.get(1..4).map(number);
        let fits = length.is_none_or(|length| length <= HELLO_BYTES_MAX && message.len() <= 4 + length);
        if !is_hello || !fits {
            return Hello::No;
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

/// The name in the body of a `ClientHello`. `None`: it is none.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    let mut hello = Reader(body);
    hello.take(2 + 32)?; // version, random
    hello.vector(1)?; // session
    hello.vector(2)?; // cipher suites
    hello.vector(1)?; // compression
    if hello.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(hello.vector(2)?);
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = number(extensions.take(2)?);
        let content = extensions.vector(2)?;
        // A second one is forbidden (RFC 8446 4.2): who knows which counts.
        if kind == usize::from(SERVER_NAME) && name.replace(host_name(content)?).is_some() {
            return None;
        }
    }
    hello.0.is_empty().then_some(name)
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

    fn client(server_name: Option<&str>) -> Hello {
        Hello::Client { server_name: server_name.map(str::to_owned) }
    }

    #[test]
    fn the_server_that_a_client_names() {
        let other = [vec![0, 43], vector(2, &[2, 3, 4])].concat();
        let docs = || name(0, "docs.internal");
        let table = [
            ("one name", hello(&[other.clone(), docs()]), client(Some("docs.internal"))),
            ("no name", hello(std::slice::from_ref(&other)), client(None)),
            ("no extensions", hello(&[]), client(None)),
            ("two names", hello(&[docs(), other, docs()]), Hello::No),
            ("another kind of name", hello(&[name(1, "docs.internal")]), Hello::No),
            ("an empty name", hello(&[name(0, "")]), Hello::No),
            ("a name with a NUL", hello(&[name(0, "docs\0.internal")]), Hello::No),
            (
                "a list that goes on",
                hello(&[[vec![0, 0], vector(2, &[0, 4, 0, 0, 1, b'a', 0])].concat()]),
                Hello::No,
            ),
            ("another message", [vec![2], vector(3, &[0; 40])].concat(), Hello::No),
            ("larger than any", [vec![1, 2, 0, 0], vec![0; 64]].concat(), Hello::No),
        ];
        for (case, message, expected) in table {
            for size in [1, 5, 1 << 14] {
                let bytes = records(&message, size);
                assert_eq!(client_hello(&bytes), expected, "{case}, records of {size}");
                // What is cut off is not taken for something else.
                let cut = client_hello(&bytes[..bytes.len() - 1]);
                assert!(matches!(cut, Hello::Maybe | Hello::No), "{case}: {cut:?}");
                let first = client_hello(&bytes[..1]);
                assert_eq!(first, Hello::Maybe, "{case}");
            }
        }
        let behind = records(&[hello(&[docs()]), vec![0]].concat(), 1 << 14);
        assert_eq!(client_hello(&behind), Hello::No, "bytes behind it in its record");
    }

    #[test]
    fn what_is_no_tls() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"SSH-2.0-x\r\n",
            &[22, 2, 0, 0, 1],
            &[22, 3, 1, 0, 0],
            &[23, 3, 3, 0, 1, 0],
        ] {
            assert_eq!(client_hello(bytes), Hello::No, "{}", bytes.escape_ascii());
        }
        assert_eq!(client_hello(b""), Hello::Maybe);
    }
}
