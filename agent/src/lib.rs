//! Toolgate agent.
