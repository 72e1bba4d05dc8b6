//! Plays a next version of the agent, as `toolgate upgrade --binary` starts it: it takes what is handed over, changes
//! whatever of the kernel's side is its predecessor's, gets the word, and says that it fails.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{MsgFlags, recv, send};
use serde_json::{Value, json};
use toolgate_tests::pinned;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// `union bpf_attr` of BPF_PROG_LOAD, to its last member that is needed.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    hook: u32,
}

fn main() -> Result<()> {
    hear("whole")?;
    fs::write("/run/toolgate/agent.lock", format!("{}\n", std::process::id())).context("cannot sign")?;
    put_programs()?;
    change_maps()?;
    say(&json!({ "say": "attached" }))?;
    hear("over")?;
    say(&json!({ "say": "failed", "error": "it fails late" }))?;
    // It is killed meanwhile.
    hear("nothing more")
}

/// Captured connects pass, and nobody answers in any namespace.
fn put_programs() -> Result<()> {
    /// BPF_PROG_TYPE_CGROUP_SOCK_ADDR and BPF_CGROUP_INET4_CONNECT; 1 lets pass.
    const CONNECT: (u32, u32, u8) = (18, 10, 1);
    /// BPF_PROG_TYPE_SK_LOOKUP and BPF_SK_LOOKUP; 0 is SK_DROP.
    const SK_LOOKUP: (u32, u32, u8) = (30, 36, 0);
    for link in fs::read_dir(pinned::directory()?.join("links")).context("no links")? {
        let path = link.context("no link")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (kind, hook, says) = match name.as_ref() {
            "connect4" => CONNECT,
            name if name.starts_with("sk_lookup-") => SK_LOOKUP,
            _other => continue,
        };
        put(&program(kind, hook, says)?, &path).with_context(|| format!("cannot replace `{name}`"))?;
    }
    Ok(())
}

/// Nothing is captured; a namespace is served that its predecessor knows nothing of; and it is known as an agent itself.
fn change_maps() -> Result<()> {
    let mut captured = pinned::map::<8, 4>("CAPTURED")?;
    for key in captured.keys().collect::<Result<Vec<_>, _>>()? {
        captured.remove(&key)?;
    }
    pinned::map::<8, 8>("NAMESPACES")?.insert(u64::MAX.to_ne_bytes(), [0; 8], 0)?;
    pinned::map::<4, 16>("AGENTS")?.insert(std::process::id().to_ne_bytes(), [0; 16], 0)?;
    Ok(())
}

/// A program of two instructions: the result, and the end.
fn program(kind: u32, hook: u32, says: u8) -> Result<OwnedFd> {
    let code = [0xb7 | u64::from(says) << 32, 0x95];
    let license = c"GPL";
    let load = Load {
        kind,
        instructions: 2,
        code: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        hook,
        ..Load::default()
    };
    let fd = call(BPF_PROG_LOAD, &load).context("cannot load a program")?;
    // SAFETY: a descriptor that the call has just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn put(program: &OwnedFd, path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = call(BPF_OBJ_GET, &[name.as_ptr() as u64, 0])?;
    // SAFETY: as above.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    call(BPF_LINK_UPDATE, &[link.as_raw_fd(), program.as_raw_fd(), 0, 0])?;
    Ok(())
}

fn call<T>(command: libc::c_int, attribute: &T) -> Result<libc::c_int> {
    // SAFETY: the kernel reads the given number of bytes; what they point to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error().into()),
    }
}

/// Waits until its predecessor says that; all that comes with it is left alone.
fn hear(word: &str) -> Result<()> {
    let mut text = vec![0; 128 * 1024];
    loop {
        let bytes = recv(libc::STDIN_FILENO, &mut text, MsgFlags::empty()).context("cannot hear")?;
        if bytes == 0 {
            bail!("the predecessor has gone before it said `{word}`");
        }
        let message: Value = serde_json::from_slice(text.get(..bytes).unwrap_or_default())?;
        if message["say"] == word {
            return Ok(());
        }
    }
}

fn say(message: &Value) -> Result<()> {
    let text = message.to_string();
    send(libc::STDIN_FILENO, text.as_bytes(), MsgFlags::empty()).context("cannot speak")?;
    Ok(())
}
