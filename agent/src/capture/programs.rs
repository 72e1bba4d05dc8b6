//! The programs of the object, and which hook each is for.

use std::{fs::File, os::fd::AsFd as _};

use aya::{
    Ebpf,
    programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, RawTracePoint, SkLookup, SockOps},
};

use super::{CaptureError, bpf::Hook, pins::Pins};

/// Loads a program as what it is.
type Load = fn(&mut Program) -> Result<(), ProgramError>;

/// Those that are attached at the cgroup2 root, in the order in which they are: nothing is turned to the agent before
/// all else is in place. Each pin has the program's name without the prefix.
const AT_ROOT: [(&str, Load, Hook); 10] = [
    ("toolgate_sock_create", sock, Hook::SockCreate),
    ("toolgate_sock_ops", sock_ops, Hook::SockOps),
    ("toolgate_bind4", sock_addr, Hook::Bind4),
    ("toolgate_bind6", sock_addr, Hook::Bind6),
    ("toolgate_getpeername4", sock_addr, Hook::GetPeerName4),
    ("toolgate_getpeername6", sock_addr, Hook::GetPeerName6),
    ("toolgate_sendmsg4", sock_addr, Hook::SendMsg4),
    ("toolgate_sendmsg6", sock_addr, Hook::SendMsg6),
    ("toolgate_connect4", sock_addr, Hook::Connect4),
    ("toolgate_connect6", sock_addr, Hook::Connect6),
];

/// Captures cgroups by name; attached to the tracepoint that tells of them.
const MKDIR: &str = "toolgate_cgroup_mkdir";

const PREFIX: &str = "toolgate_";

/// Pins of these would keep an agent of another layout from its own port.
pub(super) const BINDS: [&str; 2] = ["bind4", "bind6"];

/// Of the program that gives connections to the listeners of a namespace.
pub(super) const SK_LOOKUP: &str = "sk_lookup-";

/// All are loaded before one is attached: what the verifier refuses changes nothing.
pub(super) fn attach(ebpf: &mut Ebpf, root: &File, pins: &Pins) -> Result<(), CaptureError> {
    for (name, load, _) in AT_ROOT {
        load_program(ebpf, name, load)?;
    }
    load_program(ebpf, MKDIR, raw_tracepoint)?;
    let mkdir = ebpf.program(MKDIR).ok_or(CaptureError::WrongObject { name: MKDIR })?;
    let mkdir =
        mkdir.fd().map_err(|source| CaptureError::Program { name: MKDIR, cause: Box::new(source) })?;
    pins.tracepoint("cgroup_mkdir", mkdir.as_fd(), c"cgroup_mkdir")?;
    for (name, _, hook) in AT_ROOT {
        let pin = name.strip_prefix(PREFIX).unwrap_or(name);
        attach_program(ebpf, name, pins, pin, root, hook)?;
    }
    Ok(())
}

/// Attaches sk_lookup to a network namespace under the name of its cookie.
pub(super) fn attach_lookup(
    ebpf: &mut Ebpf,
    netns: &File,
    pins: &Pins,
    pin: &str,
) -> Result<(), CaptureError> {
    const NAME: &str = "toolgate_sk_lookup";
    load_program(ebpf, NAME, sk_lookup)?;
    attach_program(ebpf, NAME, pins, pin, netns, Hook::SkLookup)
}

fn load_program(ebpf: &mut Ebpf, name: &'static str, load: Load) -> Result<(), CaptureError> {
    let program = ebpf.program_mut(name).ok_or(CaptureError::WrongObject { name })?;
    load(program).map_err(|source| CaptureError::Program { name, cause: Box::new(source) })
}

fn attach_program(
    ebpf: &Ebpf,
    name: &'static str,
    pins: &Pins,
    pin: &str,
    target: &File,
    hook: Hook,
) -> Result<(), CaptureError> {
    let program = ebpf.program(name).ok_or(CaptureError::WrongObject { name })?;
    let program = program.fd().map_err(|source| CaptureError::Program { name, cause: Box::new(source) })?;
    pins.link(pin, program.as_fd(), target.as_fd(), hook)
}

fn raw_tracepoint(program: &mut Program) -> Result<(), ProgramError> {
    <&mut RawTracePoint>::try_from(program)?.load()
}

fn sock(program: &mut Program) -> Result<(), ProgramError> {
    <&mut CgroupSock>::try_from(program)?.load()
}

fn sock_addr(program: &mut Program) -> Result<(), ProgramError> {
    <&mut CgroupSockAddr>::try_from(program)?.load()
}

fn sock_ops(program: &mut Program) -> Result<(), ProgramError> {
    <&mut SockOps>::try_from(program)?.load()
}

fn sk_lookup(program: &mut Program) -> Result<(), ProgramError> {
    <&mut SkLookup>::try_from(program)?.load()
}
