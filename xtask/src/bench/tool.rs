//! The two ends of the bench, each a process of its own: this very program, which is built for speed for it.
//!
//! The generator does what its standard input says, a JSON object a line, and answers each with a line; it ends with its
//! input. Each of its steps is bounded in count and time.

mod connection;
mod generator;
mod listener;
mod message;
mod upstream;

pub(crate) use generator::obey as generate;
pub(crate) use upstream::serve;
