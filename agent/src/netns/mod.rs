//! Network namespaces: what is captured in another namespace than the agent's is served inside of it.
//!
//! The agent listens at loopback of every namespace that a captured process is in, and dials undeclared destinations
//! from the caller's own: it opens no way that the caller did not have.
//!
//! - `namespace`: an open descriptor and the kernel's cookie; work inside, there and back
//! - `served`: the namespaces that the agent listens in, as all threads see them
//! - `inside`: loopback, listeners, addresses and IPv6 routes, looked at from inside
//! - `discover`: captured cgroups -> their processes -> the namespaces of these
//! - `follower`: follows all that; `keeper`: its thread; `events`: what wakes it
//! - `reserve`: keeps the agent's port from whoever does not bind

mod discover;
mod error;
mod events;
mod follower;
mod inside;
mod keeper;
mod namespace;
mod reserve;
mod served;

pub use discover::Root;
pub use error::NetnsError;
pub(crate) use inside::is_without_ipv6;
pub use inside::{Listeners, ipv6_leads_out, listener};
pub use keeper::{Keeper, Keeping};
pub use namespace::{Door, Namespace};
pub use reserve::give_back_all;
pub use served::Namespaces;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use crate::capture::Cookie;

/// No server is here: a captured process that connects to it is answered by the agent, and proves thereby that it is
/// captured.
pub const CANARY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 255, 255, 254)), 1);

/// What the keeper tells a worker that accepts in a namespace.
#[derive(Debug)]
pub enum Order {
    /// Accept from these.
    Serve {
        /// The namespace that they listen in.
        namespace: Cookie,
        /// Non-blocking.
        listeners: Vec<TcpListener>,
    },
    /// Close the listeners of a namespace; its connections end by themselves.
    Leave {
        /// Which.
        namespace: Cookie,
    },
}

/// Orders that wait for a worker: the keeper waits when it has not taken as many.
pub const ORDERS_MAX: usize = 64;
