//! Replies that are no sound HTTP, or do not end.

use crate::{Asks, Gets, OWN, POISON, Row, answer, endless};

pub(super) fn rows() -> Vec<Row> {
    let row = |name, asks, said, gets, reason, limit| Row {
        name,
        asks,
        said,
        then: Vec::new(),
        gets,
        reason,
        limit,
        detail: "",
    };
    let fault = "server_fault";
    let events = "Content-Type: text/event-stream\r\n";
    let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    let (call, list) = (Asks::Call, Asks::List);
    let bad = Gets::Status(502);
    vec![
        row("two responses", call, [answer(OWN), answer(POISON)].concat(), Gets::Answer, fault, ""),
        row(
            "a byte beyond Content-Length",
            call,
            [answer(OWN), b"p".to_vec()].concat(),
            Gets::Answer,
            fault,
            "",
        ),
        row(
            "endless headers",
            call,
            endless(&"X-Poison: poison\r\n".repeat(1 << 14), ""),
            bad,
            fault,
            "head_bytes_max",
        ),
        row("many headers", call, endless(&"X: poison\r\n".repeat(200), ""), bad, fault, "headers_max"),
        row(
            "endless interim replies",
            call,
            b"HTTP/1.1 100 Continue\r\nX: poison\r\n\r\n".repeat(1 << 14),
            Gets::Status(504),
            "server_timeout",
            "first_byte_max",
        ),
        row("no reply", call, Vec::new(), Gets::Status(504), "server_timeout", "first_byte_max"),
        row("no HTTP", call, b"poison\r\n\r\n".to_vec(), bad, fault, ""),
        row(
            "two lengths",
            call,
            endless("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            bad,
            fault,
            "",
        ),
        row("broken chunks", call, endless(chunked, "poison\r\n"), bad, fault, ""),
        row(
            "a body that stops",
            call,
            endless("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"),
            Gets::Status(504),
            "server_timeout",
            "reply_idle_max",
        ),
        row(
            "a list that never ends",
            list,
            endless(chunked, &format!("100000\r\n{}\r\n", " ".repeat(1 << 20)).repeat(2)),
            bad,
            fault,
            "reply_bytes_max",
        ),
        row(
            "a list that stops",
            list,
            endless("Content-Type: application/json\r\nContent-Length: 100\r\n", "{"),
            Gets::Status(504),
            "server_timeout",
            "reply_idle_max",
        ),
        row(
            "a compressed list",
            list,
            endless(
                "Content-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 6\r\n",
                POISON,
            ),
            bad,
            fault,
            "",
        ),
        row(
            "compressed events",
            call,
            endless(&format!("{events}Content-Encoding: gzip\r\n"), POISON),
            bad,
            fault,
            "",
        ),
        row(
            "a page that stops",
            call,
            b"HTTP/1.1 500 Oops\r\nContent-Type: text/html\r\nContent-Length: 100\r\n\r\n{".to_vec(),
            Gets::Cut,
            "server_timeout",
            "reply_idle_max",
        ),
        row("an event that is no message", call, endless(events, "data: poison\n\n"), bad, fault, ""),
    ]
}
