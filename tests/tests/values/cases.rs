//! The table. In what a case does, words in braces stand for addresses, names and messages of its stage.

/// What a captured process does.
#[derive(Clone, Copy)]
pub(crate) enum Does {
    /// It is this command.
    Runs(&'static str),
    /// It connects there and sends this.
    Sends(&'static str, &'static str),
}

/// A line of the audit: method, target (empty: undeclared), decision, reason.
pub(crate) type Told = (&'static str, &'static str, &'static str, &'static str);

/// One row: its name, what the process does, what it must see, who is reached, what audit and metrics say.
pub(crate) type Row = (&'static str, Does, &'static [&'static str], &'static str, &'static [Told]);

/// Rows under one configuration.
pub(crate) struct Cases {
    /// The `capture` section.
    pub(crate) capture: &'static str,
    /// `opaque` of the servers.
    pub(crate) opaque: &'static str,
    pub(crate) observe: bool,
    /// Started by `exec`, with all its destinations captured, or in a cgroup that is configured.
    pub(crate) by_exec: bool,
    pub(crate) rows: &'static [Row],
}

const PERMIT: &str = "permit";
const DENY: &str = "deny";
const CURL: &str = "curl --silent --show-error --include --max-time 20 --insecure --noproxy nobody";

const fn runs(words: &'static str) -> Does {
    Does::Runs(words)
}

/// With everything at its default, every destination captured.
pub(crate) const DEFAULT: Cases = Cases {
    capture: "{}",
    opaque: "deny",
    observe: false,
    by_exec: true,
    rows: &[
        (
            "MCP to a declared server",
            runs("{curl} {mcp} http://{docs}/mcp"),
            &["200 OK", "echo done"],
            "docs",
            &[("tools/call", "docs", PERMIT, "permitted")],
        ),
        (
            "MCP to an undeclared server",
            runs("{curl} {mcp} http://{shadow}/mcp"),
            &["403 Forbidden", "not declared"],
            "",
            &[("tools/call", "", DENY, "undeclared")],
        ),
        (
            "HTTP to a declared server that is not its MCP path",
            runs("{curl} http://{docs}/other"),
            &["403 Forbidden"],
            "",
            &[("http", "docs", DENY, "path_not_served")],
        ),
        (
            "HTTP to an undeclared server",
            runs("{curl} http://{web}/"),
            &["200 OK", "said by web"],
            "web",
            &[("http", "", PERMIT, "permitted")],
        ),
        (
            "an undeclared server that speaks first",
            Does::Sends("{ssh}", ""),
            &["SSH-2.0-test"],
            "",
            &[("connection", "", PERMIT, "permitted")],
        ),
        (
            "a declared server that would speak first, to a client that waits",
            Does::Sends("{oldssh}", ""),
            &[],
            "",
            &[],
        ),
        (
            "a declared server that would speak first, to a client that speaks",
            Does::Sends("{oldssh}", "SSH-2.0-me\r\n"),
            &[],
            "",
            &[("connection", "oldssh", DENY, "opaque")],
        ),
        (
            "TLS to an undeclared server, with its name",
            runs("{curl} --resolve tls.example:{tls.port}:127.0.0.1 https://tls.example:{tls.port}/"),
            &["200 OK", "said by TLS"],
            "",
            &[("connection", "", PERMIT, "permitted")],
        ),
        (
            "TLS to an undeclared server, with the name of a declared one",
            runs("{curl} --resolve secret.internal:{tls.port}:127.0.0.1 https://secret.internal:{tls.port}/"),
            &["said by TLS"],
            "",
            &[("connection", "", PERMIT, "permitted")],
        ),
        (
            "TLS to an undeclared server, without a name",
            runs("{curl} https://{tls}/"),
            &["said by TLS"],
            "",
            &[("connection", "", PERMIT, "permitted")],
        ),
        (
            "TLS to a declared server, with its name",
            runs(
                "{curl} --resolve secret.internal:{secret.port}:127.0.0.1 https://secret.internal:{secret.port}/",
            ),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "opaque")],
        ),
        (
            "TLS to a declared server, without a name",
            runs("{curl} https://{secret}/"),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "opaque")],
        ),
        // Proxies that nobody declared: decided by the name in the request.
        (
            "a tunnel to an undeclared name, with TLS in it",
            runs("env HTTPS_PROXY=http://{proxy} {curl} https://tls.example:{tls.port}/"),
            &["200 Connection established", "said by TLS"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connection", "", PERMIT, "permitted")],
        ),
        (
            "a tunnel to an undeclared name, by Python's requests",
            runs(
                "env HTTPS_PROXY=http://{proxy} {python} -Wignore -c {requests} https://tls.example:{tls.port}/",
            ),
            &["said by TLS"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connection", "", PERMIT, "permitted")],
        ),
        (
            "a tunnel to an undeclared name, as Python 3.11 asks for it, and a server that speaks first",
            Does::Sends("{proxy}", "CONNECT ssh.example:22 HTTP/1.0\r\n\r\n"),
            &["200 Connection established", "SSH-2.0-test"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connection", "", PERMIT, "permitted")],
        ),
        (
            "HTTP in a tunnel to an undeclared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} http://web.example/"),
            &["200 Connection established", "said by web"],
            "proxy web",
            &[("connect", "", PERMIT, "permitted"), ("http", "", PERMIT, "permitted")],
        ),
        (
            "a tunnel that has ended is not gone past: the proxy itself is not asked",
            Does::Sends(
                "{proxy}",
                "CONNECT web.example:1 HTTP/1.1\r\nHost: a\r\n\r\nGET /last HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            ),
            &["200 Connection established", "said by web", "502 Bad Gateway"],
            "proxy web",
            &[("connect", "", PERMIT, "permitted"), ("http", "", PERMIT, "server_unreachable")],
        ),
        (
            "MCP in a tunnel to an undeclared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://shadow.example/mcp"),
            &["200 Connection established", "403 Forbidden", "not declared"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("tools/call", "", DENY, "undeclared")],
        ),
        (
            "MCP in a tunnel in a tunnel, all sent at once",
            Does::Sends(
                "{proxy}",
                "CONNECT proxy.example:1 HTTP/1.1\r\nHost: a\r\n\r\nCONNECT shadow.example:1 HTTP/1.1\r\nHost: a\r\n\r\n{post}",
            ),
            &["200 Connection established", "403 Forbidden", "not declared"],
            "proxy",
            &[
                ("connect", "", PERMIT, "permitted"),
                ("connect", "", PERMIT, "permitted"),
                ("tools/call", "", DENY, "undeclared"),
            ],
        ),
        (
            "a tunnel in a tunnel to a declared name",
            Does::Sends(
                "{proxy}",
                "CONNECT proxy.example:1 HTTP/1.1\r\nHost: a\r\n\r\nCONNECT docs.internal:{docs.port} HTTP/1.1\r\nHost: a\r\n\r\n{post}",
            ),
            &["200 Connection established", "403 Forbidden", "not through a proxy"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connect", "docs", DENY, "proxied")],
        ),
        (
            "HTTP/2 without TLS in a tunnel",
            Does::Sends("{proxy}", "CONNECT shadow.example:1 HTTP/1.1\r\nHost: a\r\n\r\n{preface}"),
            &["200 Connection established"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connection", "", DENY, "undeclared")],
        ),
        (
            "MCP in a tunnel to a declared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://docs.internal:{docs.port}/mcp"),
            &["403 Forbidden"],
            "",
            &[("connect", "docs", DENY, "proxied")],
        ),
        (
            "MCP in a tunnel to a declared address",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://{docs}/mcp"),
            &["403 Forbidden"],
            "",
            &[("connect", "docs", DENY, "proxied")],
        ),
        (
            "TLS in a tunnel to a declared name",
            runs("env HTTPS_PROXY=http://{proxy} {curl} https://secret.internal:{secret.port}/"),
            &["403 Forbidden"],
            "",
            &[("connect", "secret", DENY, "proxied")],
        ),
        (
            "MCP to an undeclared name by a proxy",
            runs("env http_proxy=http://{proxy} {curl} {mcp} http://shadow.example/mcp"),
            &["403 Forbidden", "not declared"],
            "",
            &[("tools/call", "", DENY, "undeclared")],
        ),
        (
            "MCP to a declared name by a proxy",
            runs("env http_proxy=http://{proxy} {curl} {mcp} http://docs.internal:{docs.port}/mcp"),
            &["403 Forbidden", "not through a proxy"],
            "",
            &[("http", "docs", DENY, "proxied")],
        ),
        (
            "HTTP to an undeclared name by a proxy",
            runs("env http_proxy=http://{proxy} {curl} http://web.example/"),
            &["200 OK", "said by web"],
            "proxy web",
            &[("http", "", PERMIT, "permitted")],
        ),
        (
            "a proxy asked for a name that readers split in two ways",
            Does::Sends("{proxy}", "GET http://docs.internal@web.example/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            &["400 Bad Request"],
            "",
            &[("unread", "", DENY, "malformed_http")],
        ),
        // A proxy that is declared by accident is an MCP server: it gets MCP alone.
        (
            "a tunnel through a declared proxy",
            runs("{curl} --proxytunnel --proxy http://{oldproxy} http://web.example/"),
            &["501 Not Implemented"],
            "",
            &[("unread", "oldproxy", DENY, "malformed_http")],
        ),
        (
            "MCP by a declared proxy",
            runs("env http_proxy=http://{oldproxy} {curl} {mcp} http://shadow.example/mcp"),
            &["400 Bad Request"],
            "",
            &[("unread", "oldproxy", DENY, "malformed_http")],
        ),
        // Other protocols from HTTP on.
        (
            "a WebSocket to an undeclared server",
            Does::Sends("{web}", "GET / HTTP/1.1\r\nHost: a\r\n{websocket}\r\nping"),
            &["101 Switching Protocols", "helloping"],
            "web",
            &[("http", "", PERMIT, "permitted")],
        ),
        (
            "a WebSocket with MCP to an undeclared server",
            Does::Sends(
                "{web}",
                "GET / HTTP/1.1\r\nHost: a\r\n{websocket}Sec-WebSocket-Protocol: chat, MCP\r\n\r\n",
            ),
            &["403 Forbidden", "not declared"],
            "",
            &[("stream", "", DENY, "undeclared")],
        ),
        (
            "a WebSocket to a declared server",
            Does::Sends("{docs}", "GET /mcp HTTP/1.1\r\nHost: {docs}\r\n{websocket}\r\n"),
            &["400 Bad Request"],
            "",
            &[("unread", "docs", DENY, "malformed_http")],
        ),
        (
            "an offer of HTTP/2 to an undeclared server goes on without it",
            runs("{curl} --http2 http://{web}/offer"),
            &["200 OK", "said by web"],
            "web",
            &[("http", "", PERMIT, "permitted")],
        ),
        (
            "an offer of HTTP/2 with MCP to an undeclared server",
            runs("{curl} --http2 {mcp} http://{shadow}/mcp"),
            &["403 Forbidden", "not declared"],
            "",
            &[("tools/call", "", DENY, "undeclared")],
        ),
        (
            "an offer of HTTP/2 with MCP to a declared server goes on without it",
            runs("{curl} --http2 {mcp} http://{docs}/mcp"),
            &["200 OK", "echo done"],
            "docs",
            &[("tools/call", "docs", PERMIT, "permitted")],
        ),
        (
            "HTTP/2 by prior knowledge to an undeclared server",
            runs("{curl} --http2-prior-knowledge {mcp} http://{shadow}/mcp"),
            &["curl: ("],
            "",
            &[("connection", "", DENY, "undeclared")],
        ),
        (
            "HTTP/2 by prior knowledge to a declared server",
            Does::Sends("{docs}", "{preface}"),
            &["505 HTTP Version Not Supported"],
            "",
            &[("unread", "docs", DENY, "malformed_http")],
        ),
    ],
};

/// MCP may go to servers that nobody declared.
pub(crate) const UNDECLARED_ALLOWED: Cases = Cases {
    capture: "{ undeclared: dangerous_allow }",
    rows: &[
        (
            "MCP to an undeclared server",
            runs("{curl} {mcp} http://{shadow}/mcp"),
            &["200 OK", "echo done"],
            "shadow",
            &[("tools/call", "", PERMIT, "permitted")],
        ),
        (
            "MCP in a tunnel to an undeclared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://shadow.example/mcp"),
            &["200 Connection established", "echo done"],
            "proxy shadow",
            &[("connect", "", PERMIT, "permitted"), ("tools/call", "", PERMIT, "permitted")],
        ),
        (
            "MCP to an undeclared name by a proxy",
            runs("env http_proxy=http://{proxy} {curl} {mcp} http://shadow.example/mcp"),
            &["200 OK", "echo done"],
            "proxy shadow",
            &[("tools/call", "", PERMIT, "permitted")],
        ),
        (
            "MCP in a tunnel to a declared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://docs.internal:{docs.port}/mcp"),
            &["403 Forbidden"],
            "",
            &[("connect", "docs", DENY, "proxied")],
        ),
        (
            "a WebSocket with MCP to an undeclared server",
            Does::Sends(
                "{web}",
                "GET / HTTP/1.1\r\nHost: a\r\n{websocket}Sec-WebSocket-Protocol: mcp\r\n\r\nping",
            ),
            &["101 Switching Protocols", "helloping"],
            "web",
            &[("stream", "", PERMIT, "permitted")],
        ),
        (
            "HTTP/2 by prior knowledge to an undeclared server",
            Does::Sends("{web}", "{preface}"),
            &["said by web"],
            "web",
            &[("connection", "", PERMIT, "permitted")],
        ),
    ],
    ..DEFAULT
};

/// What is not MCP may go nowhere but to declared servers.
pub(crate) const UNRECOGNISED_DENIED: Cases = Cases {
    capture: "{ unrecognised: deny }",
    rows: &[
        (
            "MCP to a declared server",
            runs("{curl} {mcp} http://{docs}/mcp"),
            &["200 OK", "echo done"],
            "docs",
            &[("tools/call", "docs", PERMIT, "permitted")],
        ),
        (
            "MCP to an undeclared server",
            runs("{curl} {mcp} http://{shadow}/mcp"),
            &["403 Forbidden", "not declared"],
            "",
            &[("tools/call", "", DENY, "undeclared")],
        ),
        (
            "HTTP to an undeclared server",
            runs("{curl} http://{web}/"),
            &["403 Forbidden", "only MCP"],
            "",
            &[("http", "", DENY, "unrecognised")],
        ),
        (
            "an undeclared server that would speak first",
            Does::Sends("{ssh}", ""),
            &[],
            "",
            &[("connection", "", DENY, "unrecognised")],
        ),
        (
            "TLS to an undeclared server",
            runs("{curl} https://{tls}/"),
            &["curl: (35)"],
            "",
            &[("connection", "", DENY, "unrecognised")],
        ),
        (
            "a tunnel to an undeclared name",
            runs("env HTTPS_PROXY=http://{proxy} {curl} https://tls.example:{tls.port}/"),
            &["403 Forbidden"],
            "",
            &[("connect", "", DENY, "unrecognised")],
        ),
        (
            "HTTP to an undeclared name by a proxy",
            runs("env http_proxy=http://{proxy} {curl} http://web.example/"),
            &["403 Forbidden", "only MCP"],
            "",
            &[("http", "", DENY, "unrecognised")],
        ),
        (
            "a WebSocket to an undeclared server",
            Does::Sends("{web}", "GET / HTTP/1.1\r\nHost: a\r\n{websocket}\r\n"),
            &["403 Forbidden", "only MCP"],
            "",
            &[("http", "", DENY, "unrecognised")],
        ),
        (
            "HTTP/2 by prior knowledge to an undeclared server",
            Does::Sends("{web}", "{preface}"),
            &["505 HTTP Version Not Supported"],
            "",
            &[("unread", "", DENY, "malformed_http")],
        ),
    ],
    ..DEFAULT
};

/// Of what is undeclared, MCP alone passes.
pub(crate) const MCP_ALONE: Cases = Cases {
    capture: "{ undeclared: dangerous_allow, unrecognised: deny }",
    rows: &[
        (
            "MCP to an undeclared server",
            runs("{curl} {mcp} http://{shadow}/mcp"),
            &["200 OK", "echo done"],
            "shadow",
            &[("tools/call", "", PERMIT, "permitted")],
        ),
        (
            "a WebSocket with MCP, which is not read",
            Does::Sends(
                "{web}",
                "GET / HTTP/1.1\r\nHost: a\r\n{websocket}Sec-WebSocket-Protocol: mcp\r\n\r\n",
            ),
            &["403 Forbidden", "only MCP"],
            "",
            &[("stream", "", DENY, "unrecognised")],
        ),
        (
            "a tunnel to an undeclared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://shadow.example/mcp"),
            &["403 Forbidden"],
            "",
            &[("connect", "", DENY, "unrecognised")],
        ),
    ],
    ..DEFAULT
};

/// TLS to declared servers may pass.
pub(crate) const OPAQUE_ALLOWED: Cases = Cases {
    opaque: "allow",
    rows: &[
        (
            "TLS with the server's name",
            runs(
                "{curl} --resolve secret.internal:{secret.port}:127.0.0.1 https://secret.internal:{secret.port}/",
            ),
            &["200 OK", "said by TLS"],
            "",
            &[("opaque", "secret", PERMIT, "permitted")],
        ),
        (
            "TLS with another name",
            runs("{curl} --resolve tls.example:{secret.port}:127.0.0.1 https://tls.example:{secret.port}/"),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "host_mismatch")],
        ),
        (
            "TLS without a name",
            runs("{curl} https://{secret}/"),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "opaque")],
        ),
        (
            "TLS with the server's name, to a server of which the caller may nothing",
            runs(
                "{curl} --resolve closed.internal:{closed.port}:127.0.0.1 https://closed.internal:{closed.port}/",
            ),
            &["curl: (35)"],
            "",
            &[("connection", "closed", DENY, "no_rule")],
        ),
        (
            "other bytes that are no HTTP",
            Does::Sends("{oldssh}", "SSH-2.0-me\r\n"),
            &[],
            "",
            &[("connection", "oldssh", DENY, "opaque")],
        ),
        (
            "plain HTTP is read and decided",
            runs("{curl} {secret_tool} http://{docs}/mcp"),
            &["200 OK", "policy does not permit this"],
            "",
            &[("tools/call", "docs", DENY, "no_rule")],
        ),
        (
            "a tunnel to the server's name",
            runs("env HTTPS_PROXY=http://{proxy} {curl} https://secret.internal:{secret.port}/"),
            &["403 Forbidden"],
            "",
            &[("connect", "secret", DENY, "proxied")],
        ),
    ],
    ..DEFAULT
};

/// No TLS passes, whatever its target says, and everything else does as ever.
pub(crate) const TLS_DENIED: Cases = Cases {
    capture: "{ tls: deny }",
    opaque: "allow",
    rows: &[
        (
            "TLS to an undeclared server",
            runs("{curl} https://{tls}/"),
            &["curl: (35)"],
            "",
            &[("connection", "", DENY, "tls_denied")],
        ),
        (
            "TLS with the server's name to a declared server that would take it",
            runs(
                "{curl} --resolve secret.internal:{secret.port}:127.0.0.1 https://secret.internal:{secret.port}/",
            ),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "tls_denied")],
        ),
        (
            "TLS in a tunnel to an undeclared name",
            runs("env HTTPS_PROXY=http://{proxy} {curl} https://tls.example:{tls.port}/"),
            &["200 Connection established", "curl: (35)"],
            "proxy",
            &[("connect", "", PERMIT, "permitted"), ("connection", "", DENY, "tls_denied")],
        ),
        (
            "an undeclared server that speaks first",
            Does::Sends("{ssh}", ""),
            &["SSH-2.0-test"],
            "",
            &[("connection", "", PERMIT, "permitted")],
        ),
        (
            "HTTP to an undeclared server",
            runs("{curl} http://{web}/"),
            &["200 OK", "said by web"],
            "web",
            &[("http", "", PERMIT, "permitted")],
        ),
        (
            "MCP to a declared server",
            runs("{curl} {mcp} http://{docs}/mcp"),
            &["200 OK", "echo done"],
            "docs",
            &[("tools/call", "docs", PERMIT, "permitted")],
        ),
    ],
    ..DEFAULT
};

/// `--observe` lets pass what `undeclared` would deny, and no more than that.
pub(crate) const OBSERVED: Cases = Cases {
    observe: true,
    rows: &[
        (
            "MCP to an undeclared server",
            runs("{curl} {mcp} http://{shadow}/mcp"),
            &["200 OK", "echo done"],
            "shadow",
            &[("tools/call", "", "observe", "undeclared")],
        ),
        (
            "HTTP/2 by prior knowledge to an undeclared server",
            Does::Sends("{web}", "{preface}"),
            &["said by web"],
            "web",
            &[("connection", "", "observe", "undeclared")],
        ),
        (
            "a WebSocket with MCP to an undeclared server",
            Does::Sends(
                "{web}",
                "GET / HTTP/1.1\r\nHost: a\r\n{websocket}Sec-WebSocket-Protocol: mcp\r\n\r\nping",
            ),
            &["101 Switching Protocols", "helloping"],
            "web",
            &[("stream", "", "observe", "undeclared")],
        ),
        (
            "MCP in a tunnel to a declared name",
            runs("{curl} --proxytunnel --proxy http://{proxy} {mcp} http://docs.internal:{docs.port}/mcp"),
            &["403 Forbidden"],
            "",
            &[("connect", "docs", DENY, "proxied")],
        ),
        (
            "TLS to a declared server",
            runs(
                "{curl} --resolve secret.internal:{secret.port}:127.0.0.1 https://secret.internal:{secret.port}/",
            ),
            &["curl: (35)"],
            "",
            &[("connection", "secret", DENY, "opaque")],
        ),
    ],
    ..DEFAULT
};

const DECLARED: Row = (
    "MCP to a declared server",
    runs("{curl} {mcp} http://{docs}/mcp"),
    &["200 OK", "echo done"],
    "docs",
    &[("tools/call", "docs", PERMIT, "permitted")],
);
const SHADOW_SEEN: Row = (
    "MCP to an undeclared server that is captured",
    runs("{curl} {mcp} http://{shadow}/mcp"),
    &["403 Forbidden", "not declared"],
    "",
    &[("tools/call", "", DENY, "undeclared")],
);
const SHADOW_UNSEEN: Row = (
    "MCP to an undeclared server that is not captured",
    runs("{curl} {mcp} http://{shadow}/mcp"),
    &["200 OK", "echo done"],
    "shadow",
    &[],
);
const WEB_SEEN: Row = (
    "HTTP to an undeclared server that is captured",
    runs("{curl} http://{web}/"),
    &["said by web"],
    "web",
    &[("http", "", PERMIT, "permitted")],
);
const WEB_UNSEEN: Row = (
    "HTTP to an undeclared server that is not captured",
    runs("{curl} http://{web}/"),
    &["said by web"],
    "web",
    &[],
);

/// Which destinations of a captured cgroup are captured, and which of what is captured is left alone.
pub(crate) const DESTINATIONS: [Cases; 6] = [
    cgroup("", &[DECLARED, SHADOW_UNSEEN, WEB_UNSEEN]),
    cgroup("destinations: declared", &[DECLARED, SHADOW_UNSEEN, WEB_UNSEEN]),
    cgroup("destinations: all", &[DECLARED, SHADOW_SEEN, WEB_SEEN]),
    cgroup("destinations: [\"{shadow}\", \"10.0.0.0/8:80\"]", &[DECLARED, SHADOW_SEEN, WEB_UNSEEN]),
    cgroup("destinations: [\"127.0.0.0/8\"], exclude: [\"{shadow}\"]", &[DECLARED, SHADOW_UNSEEN, WEB_SEEN]),
    cgroup(
        "destinations: all, exclude: [\"{docs}\"]",
        &[
            (
                "MCP to a declared server that is left alone: its port takes the agent alone",
                runs("{curl} {mcp} http://{docs}/mcp"),
                &["curl: (7)"],
                "",
                &[],
            ),
            SHADOW_SEEN,
        ],
    ),
];

const fn cgroup(capture: &'static str, rows: &'static [Row]) -> Cases {
    Cases { capture, opaque: "deny", observe: false, by_exec: false, rows }
}

/// What `exec` starts is captured to all destinations, but for what is left alone.
pub(crate) const EXEC_EXCLUDED: Cases = Cases {
    capture: "{ destinations: declared, exclude: [\"{shadow}\"] }",
    rows: &[DECLARED, SHADOW_UNSEEN, WEB_SEEN],
    ..DEFAULT
};

/// The words that stand for more.
pub(crate) const WORDS: [(&str, &str); 3] = [
    ("{curl}", CURL),
    (
        "{websocket}",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
    ),
    ("{preface}", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
];
