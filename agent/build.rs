//! Embeds the BPF object where there is one, so that the agent is one file; without it the agent
//! compiles all the same, and says at start how to build it.

use std::{env, fs, io, path::PathBuf};

const OBJECT_ENV: &str = "TOOLGATE_BPF_OBJECT";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed={OBJECT_ENV}");
    println!("cargo::rerun-if-changed=build.rs");
    let embedded = directory("OUT_DIR")?.join("toolgate.bpf.o");
    let object = match env::var_os(OBJECT_ENV) {
        Some(named) => {
            let named = PathBuf::from(named);
            println!("cargo::rerun-if-changed={}", named.display());
            fs::read(&named)
                .map_err(|error| io::Error::other(format!("{OBJECT_ENV} `{}`: {error}", named.display())))?
        }
        None => built()?,
    };
    fs::write(embedded, object)
}

/// What `cargo xtask ebpf` left, or nothing. The directory is made and watched instead of the file:
/// cargo would run this again for ever for a file that is not there.
fn built() -> io::Result<Vec<u8>> {
    let folder = directory("CARGO_MANIFEST_DIR")?.join("../target/bpf");
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    match fs::read(folder.join("toolgate.bpf.o")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

fn directory(variable: &str) -> io::Result<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other(format!("cargo sets no {variable}")))
}
