//! Heads of requests and replies, and which bytes after them are their body.

use super::error::HttpError;
use super::headers::{HEADERS_MAX, Headers};
use super::name::Name;
use super::target::{self, Authority};
use memchr::memmem::Finder;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

/// Limits on one head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// The head with its final empty line.
    pub head_bytes_max: usize,
    /// A request's target.
    pub target_bytes_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { head_bytes_max: 32 * 1024, target_bytes_max: 8 * 1024 }
    }
}

/// Which bytes after the head are the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// None.
    None,
    /// So many.
    Length(u64),
    /// Chunks, for a [`super::ChunkedDecoder`].
    Chunked,
    /// All until the connection ends; replies only.
    UntilClose,
}

/// The head of a request.
#[derive(Debug, Clone)]
pub struct RequestHead<'b> {
    /// As it was written; `GET` and `get` are two methods.
    pub method: &'b str,
    /// Path and query.
    pub target: &'b str,
    /// The path: no dot segment, no empty segment, no escape that hides one.
    pub path: &'b str,
    /// What follows the `?`.
    pub query: Option<&'b str>,
    /// All headers.
    pub headers: Headers<'b>,
    /// Never [`Framing::UntilClose`].
    pub framing: Framing,
    /// The connection may be used again.
    pub keep_alive: bool,
    /// The client waits for `100 Continue`.
    pub expect_continue: bool,
    /// Bytes of the head, with its final empty line.
    pub bytes: usize,
}

/// The head of a reply.
#[derive(Debug, Clone)]
pub struct ResponseHead<'b> {
    /// 100 to 599.
    pub status: u16,
    /// May be empty.
    pub reason: &'b str,
    /// All headers.
    pub headers: Headers<'b>,
    /// Which bytes are the body.
    pub framing: Framing,
    /// The connection may be used again.
    pub keep_alive: bool,
    /// Bytes of the head, with its final empty line.
    pub bytes: usize,
}

/// Reads the head of a request at the front of `buf`. None: more bytes are needed.
///
/// # Errors
/// [`HttpError`]; the connection cannot be read on.
pub fn request_head<'b>(buf: &'b [u8], limits: &HeadLimits) -> Result<Option<RequestHead<'b>>, HttpError> {
    read_request(buf, limits, false, target::split)
}

/// The same of a request by App ID, whose path may have a whole URL in it: what it is for says [`super::invoked`].
///
/// # Errors
/// As [`request_head`].
pub fn invoked_head<'b>(buf: &'b [u8], limits: &HeadLimits) -> Result<Option<RequestHead<'b>>, HttpError> {
    read_request(buf, limits, false, target::split_invoked)
}

/// Reads a head that [`request_head`] refuses for its target, which a proxy takes: with the absolute form, or CONNECT. That
/// may be of HTTP/1.0 and without Host, as Python before 3.12 sends it.
///
/// # Errors
/// As [`request_head`].
pub fn proxy_head<'b>(
    buf: &'b [u8],
    limits: &HeadLimits,
) -> Result<Option<(RequestHead<'b>, Authority<'b>)>, HttpError> {
    let mut whom = None;
    let head = read_request(buf, limits, true, |method, text| {
        let (authority, rest) = target::for_proxy(method, text)?;
        whom = Some(authority);
        Ok(match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        })
    })?;
    let connects = head.as_ref().is_some_and(|head| head.method == "CONNECT");
    if connects && head.as_ref().is_some_and(|head| head.framing != Framing::None) {
        return Err(HttpError::Syntax { problem: "CONNECT with a body" });
    }
    Ok(head.zip(whom))
}

#[inline]
fn read_request<'b>(
    buf: &'b [u8],
    limits: &HeadLimits,
    is_for_proxy: bool,
    split: impl FnOnce(&str, &'b str) -> Result<(&'b str, Option<&'b str>), HttpError>,
) -> Result<Option<RequestHead<'b>>, HttpError> {
    let preface = b"PRI * HTTP/2.0\r\n";
    if buf.starts_with(preface) {
        return Err(HttpError::Version);
    }
    let Some(head) = whole(buf, limits) else { return unfinished(buf, limits).map(|()| None) };
    let bytes = head.len();
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let parsing = parsed.parse_with_uninit_headers(head, &mut space);
    let status = parsing.map_err(|error| precise(head, limits, syntax(error)))?;
    let (true, Some(method), Some(target), Some(version)) =
        (status == httparse::Status::Complete(bytes), parsed.method, parsed.path, parsed.version)
    else {
        let problem = "the request line or a header is cut off";
        return Err(precise(head, limits, HttpError::Syntax { problem }));
    };
    let headers = Headers::new(head, parsed.headers);
    let line = method.len() + 1 + target.len() + " HTTP/1.1\r\n".len();
    if !is_tight(head, &headers, line) || target.len() > limits.target_bytes_max {
        unfinished(head, limits)?;
    }
    let (path, query) = split(method, target)?;
    let may_be_old = is_for_proxy && method == "CONNECT";
    if version != 1 && !may_be_old {
        return Err(HttpError::Version);
    }
    headers.check()?;
    if !may_be_old || headers.count(Name::Host) > 0 {
        host(&headers)?;
    }
    if headers.count(Name::ContentEncoding) > 0 {
        return Err(HttpError::ContentEncoding);
    }
    let expect_continue = match headers.only_bytes(Name::Expect)? {
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => return Err(HttpError::Expectation),
        None => false,
    };
    let framing = declared(&headers)?.unwrap_or(Framing::None);
    let keep_alive = version == 1 && !headers.close();
    Ok(Some(RequestHead {
        method,
        target,
        path,
        query,
        headers,
        framing,
        keep_alive,
        expect_continue,
        bytes,
    }))
}

/// Reads the head of a reply at the front of `buf`. None: more bytes are needed. What has no body by its status or
/// by the request's method has [`Framing::None`], whatever its headers say.
///
/// # Errors
/// [`HttpError`]; the connection cannot be read on.
pub fn response_head<'b>(
    buf: &'b [u8],
    request_method: &str,
    limits: &HeadLimits,
) -> Result<Option<ResponseHead<'b>>, HttpError> {
    let no_target = HeadLimits { target_bytes_max: usize::MAX, ..*limits };
    let Some(head) = whole(buf, limits) else { return unfinished(buf, &no_target).map(|()| None) };
    let bytes = head.len();
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let parsing = config.parse_response_with_uninit_headers(&mut parsed, head, &mut space);
    let complete = parsing.map_err(|error| precise(head, &no_target, syntax(error)))?;
    let (true, Some(status), Some(version)) =
        (complete == httparse::Status::Complete(bytes), parsed.code, parsed.version)
    else {
        let problem = "the status line or a header is cut off";
        return Err(precise(head, &no_target, HttpError::Syntax { problem }));
    };
    let headers = Headers::new(head, parsed.headers);
    let line = "HTTP/1.1 200 \r\n".len() + parsed.reason.unwrap_or_default().len();
    if !is_tight(head, &headers, line) {
        unfinished(head, &no_target)?;
    }
    if !(100..600).contains(&status) {
        return Err(HttpError::Syntax { problem: "the status is not within 100 and 599" });
    }
    headers.check()?;
    let declared = declared(&headers)?;
    if version == 0 && declared == Some(Framing::Chunked) {
        return Err(HttpError::TransferEncoding);
    }
    let bodiless = matches!(status, 100..200 | 204 | 304) || request_method == "HEAD";
    let framing = if bodiless { Framing::None } else { declared.unwrap_or(Framing::UntilClose) };
    let ends = version == 0 || framing == Framing::UntilClose || headers.close();
    let reason = parsed.reason.unwrap_or_default();
    Ok(Some(ResponseHead { status, reason, headers, framing, keep_alive: !ends, bytes }))
}

static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

/// The most bytes that a head may have; where its parts are is kept in 16 bits.
fn bytes_max(limits: &HeadLimits) -> usize {
    limits.head_bytes_max.min(usize::from(u16::MAX))
}

/// All of the head, with its final empty line. Says nothing of its lines.
fn whole<'b>(buf: &'b [u8], limits: &HeadLimits) -> Option<&'b [u8]> {
    let head = buf.get(..bytes_max(limits)).unwrap_or(buf);
    head.get(..HEAD_END.find(head)? + 4)
}

/// Whether httparse, which takes LF for CRLF, skips empty lines and trims values, has left nothing out: then the lines
/// need not be looked at one by one. The first has so many bytes.
fn is_tight(head: &[u8], headers: &Headers<'_>, first: usize) -> bool {
    headers.are_tight_from(first) && head.get(..first).is_some_and(|line| line.ends_with(b"\r\n"))
}

/// What is wrong with a head that httparse refuses, said more precisely where that is possible.
fn precise(head: &[u8], limits: &HeadLimits, otherwise: HttpError) -> HttpError {
    unfinished(head, limits).err().unwrap_or(otherwise)
}

/// What can be said of a head, line by line, also before it is whole.
fn unfinished(buf: &[u8], limits: &HeadLimits) -> Result<(), HttpError> {
    lines(buf, limits)?;
    too_long_target(buf, limits)
}

/// That the lines do as they must. Looks no further than the limit.
fn lines(buf: &[u8], limits: &HeadLimits) -> Result<(), HttpError> {
    let head_bytes_max = bytes_max(limits);
    let head = buf.get(..head_bytes_max).unwrap_or(buf);
    let mut rest = head;
    let mut is_first = true;
    while let Some(length) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at_checked(length + 1).unwrap_or((rest, &[]));
        let Some(line) = line.strip_suffix(b"\r\n") else { return Err(HttpError::BareLf) };
        if line.is_empty() {
            return if is_first { Err(HttpError::EmptyLine) } else { Ok(()) };
        }
        if !is_first {
            header_line(line)?;
        }
        if memchr::memchr(b'\r', line).is_some() {
            return Err(HttpError::BareCr);
        }
        is_first = false;
        rest = after;
    }
    if buf.len() >= head_bytes_max {
        return Err(HttpError::HeadTooLarge { head_bytes_max });
    }
    Ok(())
}

fn header_line(line: &[u8]) -> Result<(), HttpError> {
    if let [b' ' | b'\t', ..] = line {
        return Err(HttpError::ObsoleteFolding);
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(HttpError::Syntax { problem: "a header has no colon" });
    };
    match line.get(..colon).unwrap_or_default() {
        [] => Err(HttpError::Syntax { problem: "a header has no name" }),
        [.., b' ' | b'\t'] => Err(HttpError::SpaceBeforeColon),
        _ => Ok(()),
    }
}

/// Refuses a target over its limit, also before the request line has ended.
fn too_long_target(head: &[u8], limits: &HeadLimits) -> Result<(), HttpError> {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let target = line.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
    if target.len() > limits.target_bytes_max {
        return Err(HttpError::TargetTooLong { target_bytes_max: limits.target_bytes_max });
    }
    Ok(())
}

fn host(headers: &Headers<'_>) -> Result<(), HttpError> {
    let host = headers.only_bytes(Name::Host)?.ok_or(HttpError::HostMissing)?;
    let is_valid = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']');
    if host.is_empty() || !host.iter().all(is_valid) {
        return Err(HttpError::HostInvalid);
    }
    Ok(())
}

/// The framing that the headers declare: at most one, said once.
fn declared(headers: &Headers<'_>) -> Result<Option<Framing>, HttpError> {
    let encoding = headers.only_bytes(Name::TransferEncoding)?;
    let length = headers.only(Name::ContentLength)?;
    match (encoding, length) {
        (Some(_), Some(_)) => Err(HttpError::LengthAndEncoding),
        (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        (Some(_), None) => Err(HttpError::TransferEncoding),
        (None, Some(length)) => {
            let digits = length.bytes().all(|byte| byte.is_ascii_digit());
            // Beyond that it is negative to those who keep it in 64 bits with a sign.
            let fits = |length: &u64| digits && i64::try_from(*length).is_ok();
            let length = length.parse().ok().filter(fits).ok_or(HttpError::ContentLength)?;
            Ok(Some(Framing::Length(length)))
        }
        (None, None) => Ok(None),
    }
}

fn syntax(error: httparse::Error) -> HttpError {
    let problem = match error {
        httparse::Error::Version => return HttpError::Version,
        httparse::Error::TooManyHeaders => return HttpError::TooManyHeaders { headers_max: HEADERS_MAX },
        httparse::Error::HeaderName => "a header's name has bytes that none may have",
        httparse::Error::HeaderValue => "a header's value has bytes that none may have",
        httparse::Error::NewLine => "a line does not end in CRLF",
        httparse::Error::Status => "the status is no number of three digits",
        httparse::Error::Token => "the first line is no request line or status line",
    };
    HttpError::Syntax { problem }
}
