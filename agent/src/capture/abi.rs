//! Lets the types of the ABI crate through aya's door.

use toolgate_ebpf_common::Plain;

/// A value that lies in a map or global of the programs.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Abi<T>(pub(super) T);

// SAFETY: `Plain` promises what `Pod` asks for: no padding, every bit pattern a value.
unsafe impl<T: Plain> aya::Pod for Abi<T> {}
