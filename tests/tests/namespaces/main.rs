//! Captured processes in other network namespaces than the agent's: served inside, dialled from inside.
//!
//! - `served`: which are served, and under whose name; `dialled`: what is reached from there
//! - `guarded`: ports of declared servers; `reserved`: the agent's own
//! - `left`: what is left of those that are gone
//!
//! All of them set a `stage`.

mod dialled;
mod guarded;
mod left;
mod reserved;
mod served;
mod stage;
