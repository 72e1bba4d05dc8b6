//! A message costs no allocation once the scratch is warm, nor does a head of common size.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use toolgate_core::http1::{HeadLimits, request_head};
use toolgate_core::mcp::json::{JsonLimits, Scratch};
use toolgate_core::mcp::{Message, parse, reply_envelope};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting on each thread.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory that it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System.alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the second run; the first warms up.
fn check(name: &str, mut run: impl FnMut()) {
    run();
    let before = COUNT.get();
    run();
    assert_eq!(COUNT.get() - before, 0, "{name}");
}

#[test]
fn warm_readers_do_not_allocate() {
    let limits = JsonLimits::default();
    let mut scratch = Scratch::new();
    let members: String = (0..500).map(|n| format!(r#","K\u0065y{n}":[{{"a":{n}}},"\n\u00e9"]"#)).collect();
    let call = format!(
        r#"{{"jsonrpc":"2.0","id":"7","method":"tools/call","params":{{"_meta":{{"progressToken":1,"X":2}},
        "name":"add","arguments":{{"n":1e5{members}}}}}}}"#
    );
    check("a call", || {
        assert!(matches!(parse(call.as_bytes(), &mut scratch, &limits), Ok(Message::Request(_))))
    });
    let reply = format!(r#"{{"jsonrpc":"2.0","id":7,"result":{{"content":[{{"type":"text"{members}}}]}}}}"#);
    check("a reply", || assert!(reply_envelope(reply.as_bytes(), &mut scratch, &limits).is_ok()));
    let headers: String = (0..23).map(|n| format!("X-{n}: y\r\n")).collect();
    let head = format!("POST /mcp HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    check("a head", || {
        assert!(request_head(head.as_bytes(), &HeadLimits::default()).is_ok_and(|head| head.is_some()))
    });
}
