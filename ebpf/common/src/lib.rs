//! The ABI between the BPF programs and the agent.
#![no_std]
