//! Socket storage: aya's own type knows the context of connect hooks only, and not the flag by which an accepted socket
//! inherits its listener's.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
};

/// `BPF_F_NO_PREALLOC`, which the kernel wants of socket storage.
pub const OWN: usize = 1;
/// The same and `BPF_F_CLONE`: a socket that is accepted begins with a copy of its listener's.
pub const INHERITED: usize = 1 | (1 << 9);

/// A map definition in BTF: the kernel's loader reads the types of the fields, nobody their values.
#[repr(C)]
pub struct Storage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the kernel locks what is behind it, and its fields are never read.
unsafe impl<T, const FLAGS: usize> Sync for Storage<T, FLAGS> {}

impl<T, const FLAGS: usize> Storage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// What lies at a socket.
    ///
    /// # Safety
    /// `socket` is what this program's kind of hook has for one, and the value is not written meanwhile.
    #[inline(always)]
    pub unsafe fn get<'s>(&self, socket: *mut c_void) -> Option<&'s mut T> {
        // SAFETY: as promised.
        unsafe { bpf_sk_storage_get(self.as_ptr(), socket, core::ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    /// Puts `value` there, over what lies there. Whether it could be.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub unsafe fn set(&self, socket: *mut c_void, value: &T) -> bool
    where
        T: Copy,
    {
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as promised; the kernel only reads the initial value.
        let stored = unsafe {
            bpf_sk_storage_get(self.as_ptr(), socket, core::ptr::from_ref(value).cast_mut().cast(), create)
        }
        .cast::<T>();
        if stored.is_null() {
            return false;
        }
        // SAFETY: not null, and as large as a value.
        unsafe { *stored = *value };
        true
    }

    /// Removes what lies there, if anything does.
    ///
    /// # Safety
    /// As [`Self::get`].
    #[inline(always)]
    pub unsafe fn remove(&self, socket: *mut c_void) {
        // SAFETY: as promised.
        let _absent = unsafe { bpf_sk_storage_delete(self.as_ptr(), socket) };
    }

    fn as_ptr(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
