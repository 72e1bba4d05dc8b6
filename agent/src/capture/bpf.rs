//! The commands of bpf(2) that aya lacks or does for some kinds of links only: create, update, pin and detach.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `enum bpf_attach_type`, as far as it is used.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Hook {
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    SendMsg4 = 14,
    SendMsg6 = 15,
    GetPeerName4 = 29,
    GetPeerName6 = 30,
    SkLookup = 36,
}

/// The members of `union bpf_attr`; the kernel takes what is not given for zeros.
#[repr(C)]
struct Object {
    path: u64,
    fd: RawFd,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    program: RawFd,
    target: RawFd,
    hook: u32,
    flags: u32,
}

#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: RawFd,
    reserved: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old_program: RawFd,
}

#[repr(C)]
struct Info {
    fd: RawFd,
    bytes: u32,
    address: u64,
}

/// `struct bpf_link_info` of a link to a network namespace.
#[repr(C)]
#[derive(Default)]
struct NetnsLink {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    netns_inode: u32,
    hook: u32,
}

/// The object that is pinned at `path`.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    made(call(BPF_OBJ_GET, &Object { path: name.as_ptr() as u64, fd: 0, flags: 0 })?)
}

/// Pins an object at `path`.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    call(BPF_OBJ_PIN, &Object { path: name.as_ptr() as u64, fd: object.as_raw_fd(), flags: 0 }).map(drop)
}

/// Attaches a program to a cgroup or network namespace, alone by this link; others may be attached beside it.
pub(super) fn link(program: BorrowedFd<'_>, target: BorrowedFd<'_>, hook: Hook) -> io::Result<OwnedFd> {
    let create =
        LinkCreate { program: program.as_raw_fd(), target: target.as_raw_fd(), hook: hook as u32, flags: 0 };
    made(call(BPF_LINK_CREATE, &create)?)
}

/// Attaches a program to a raw tracepoint. No other program can be put into such a link.
pub(super) fn tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let open = RawTracepoint { name: name.as_ptr() as u64, program: program.as_raw_fd(), reserved: 0 };
    made(call(BPF_RAW_TRACEPOINT_OPEN, &open)?)
}

/// Puts another program into a link, at once: no event is seen by neither.
///
/// # Errors
/// ENOLINK: what it was attached to is gone, or it was detached.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let update =
        LinkUpdate { link: link.as_raw_fd(), program: program.as_raw_fd(), flags: 0, old_program: 0 };
    call(BPF_LINK_UPDATE, &update).map(drop)
}

/// Detaches a link at once, whoever holds it.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(BPF_LINK_DETACH, &link.as_raw_fd()).map(drop)
}

/// Whether the network namespace of a link is gone.
pub(super) fn is_netns_gone(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut found = NetnsLink::default();
    let bytes = size_of::<NetnsLink>().try_into().unwrap_or_default();
    call(BPF_OBJ_GET_INFO_BY_FD, &Info { fd: link.as_raw_fd(), bytes, address: (&raw mut found) as u64 })?;
    Ok(found.netns_inode == 0)
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn made(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: a descriptor that the call has just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel copies the given number of bytes; what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
