//! Servers that no agent stands in front of: reached by name, over TLS, at addresses that were checked.

mod attacks;
mod bad_input;
mod http_endpoint;
mod opaque;
mod replicas;
mod stage;
mod tls;
mod where_it_is;
