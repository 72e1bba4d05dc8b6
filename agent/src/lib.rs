//! Toolgate agent.

pub mod capture;
