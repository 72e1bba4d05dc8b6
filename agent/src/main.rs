//! Toolgate.
fn main() {}
