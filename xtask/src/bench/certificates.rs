//! The certificates by which the hops of other proxies know each other: ECDSA P-256, as those of the agents.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::workspace::run_quietly;

/// The name that the caller's end expects at the server's.
pub(super) const SERVER: &str = "server.bench";
const CALLER: &str = "caller.bench";
/// The cipher suite of those that let one choose: the one that agents take.
pub(super) const CIPHER: &str = "TLS_AES_128_GCM_SHA256";

/// Where they are.
pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    pub(super) caller: Pair,
    pub(super) server: Pair,
}

/// A certificate and its key, and both in one file.
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) both: PathBuf,
}

impl Certificates {
    /// Has OpenSSL make them.
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let folder = folder.join("certificates");
        std::fs::create_dir_all(&folder).context("cannot make a folder")?;
        let extensions = format!(
            "[req]\ndistinguished_name = name\n[name]\n\
             [ca]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
             [{CALLER}]\nsubjectAltName = DNS:{CALLER}\nkeyUsage = critical, digitalSignature\n\
             [{SERVER}]\nsubjectAltName = DNS:{SERVER}\nkeyUsage = critical, digitalSignature\n"
        );
        std::fs::write(folder.join("extensions"), extensions).context("cannot write a file")?;
        made(&folder, "ca", &[])?;
        let by_ca = ["-CA", "ca.pem", "-CAkey", "ca.key"];
        let pair = |name: &str| made(&folder, name, &by_ca).and_then(|()| Pair::of(&folder, name));
        Ok(Self { ca: folder.join("ca.pem"), caller: pair(CALLER)?, server: pair(SERVER)? })
    }
}

impl Pair {
    fn of(folder: &Path, name: &str) -> Result<Self> {
        let file = |kind: &str| folder.join(format!("{name}.{kind}"));
        let read = |path: &Path| std::fs::read(path).context("openssl has made nothing");
        let pair = Self { certificate: file("pem"), key: file("key"), both: file("both") };
        let both = [read(&pair.certificate)?, read(&pair.key)?].concat();
        std::fs::write(&pair.both, both).context("cannot write a file")?;
        Ok(pair)
    }
}

fn made(folder: &Path, name: &str, signed: &[&str]) -> Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.current_dir(folder).args(["req", "-x509", "-config", "extensions", "-extensions", name]);
    openssl.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
    openssl.args(["-subj", &format!("/CN={name}"), "-keyout", &format!("{name}.key")]).args(signed);
    run_quietly(openssl.args(["-out", &format!("{name}.pem")])).map(drop)
}
