//! Toolgate agent.

pub mod capture;
pub mod config;
