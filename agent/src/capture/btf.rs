//! Where this kernel keeps the fields that the programs read, from its own type information.

use btf_rs::{Btf, BtfType as _, Member, Type};
use toolgate_ebpf_common::Offsets;

use super::{CaptureError, host};

pub(super) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
/// Anonymous structs within structs: task_struct has one or two, deeper nesting is not expected.
const DEPTH_MAX: usize = 8;

/// The offsets for the kernel that runs.
pub(super) fn offsets() -> Result<Offsets, CaptureError> {
    let btf = Btf::from_file(VMLINUX).map_err(|error| CaptureError::Btf { reason: error.to_string() })?;
    Ok(Offsets {
        task_group_leader: offset(&btf, "task_struct", "group_leader")?,
        task_start_boottime: offset(&btf, "task_struct", "start_boottime")?,
        task_self_exec_id: offset(&btf, "task_struct", "self_exec_id")?,
        task_mm: offset(&btf, "task_struct", "mm")?,
        mm_exe_file: offset(&btf, "mm_struct", "exe_file")?,
        file_f_inode: offset(&btf, "file", "f_inode")?,
        inode_i_ino: offset(&btf, "inode", "i_ino")?,
        inode_i_sb: offset(&btf, "inode", "i_sb")?,
        super_block_s_dev: offset(&btf, "super_block", "s_dev")?,
        cgroup_kn: offset(&btf, "cgroup", "kn")?,
        cgroup_root: offset(&btf, "cgroup", "root")?,
        kernfs_node_id: offset(&btf, "kernfs_node", "id")?,
        cgroup_root_hierarchy_id: offset(&btf, "cgroup_root", "hierarchy_id")?,
        has_set_retval: u32::from(host::since(5, 18)?),
    })
}

fn offset(btf: &Btf, structure: &str, field: &str) -> Result<u32, CaptureError> {
    let missing = || CaptureError::Btf { reason: format!("`{structure}.{field}` is not described") };
    let types = btf.resolve_types_by_name(structure).map_err(|_unknown| missing())?;
    let bits = types.iter().find_map(|found| members(found).and_then(|all| bits(btf, all, field, DEPTH_MAX)));
    // A bit field, or one that is not at a byte, is not what the programs read.
    bits.filter(|bits| bits % 8 == 0).map(|bits| bits / 8).ok_or_else(missing)
}

/// Offset of `field` in bits, also within anonymous structs and unions.
fn bits(btf: &Btf, all: &[Member], field: &str, depth: usize) -> Option<u32> {
    all.iter().find_map(|member| {
        let name = btf.resolve_name(member).unwrap_or_default();
        if name == field {
            return Some(member.bit_offset());
        }
        if !name.is_empty() || depth == 0 {
            return None;
        }
        let inner = btf.resolve_type_by_id(member.get_type_id()?).ok()?;
        Some(member.bit_offset() + bits(btf, members(&inner)?, field, depth - 1)?)
    })
}

fn members(found: &Type) -> Option<&[Member]> {
    if let Type::Struct(body) | Type::Union(body) = found { Some(&body.members) } else { None }
}
