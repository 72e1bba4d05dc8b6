//! TLS in front of a server, by certificates of an authority of the test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::Digest as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Who signs certificates of web servers.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

/// A certificate with its key.
#[derive(Debug)]
struct Shown {
    config: Arc<ServerConfig>,
    pin: String,
}

/// TLS at an address; what comes there goes on in the clear. It stands as long as the test runs.
#[derive(Debug)]
pub struct Front {
    /// Where it is.
    pub address: SocketAddr,
    /// SHA-256 of its public key, in hex.
    pub pin: String,
    /// What its clients named (SNI), of each handshake that was completed.
    pub named: Receiver<String>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Of the name of what it signs OpenSSL takes that for self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority of the tests");
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    fn issue(
        &self,
        name: &str,
        years: [i32; 2],
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<Shown> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        [params.not_before, params.not_after] = years.map(|year| rcgen::date_time_ymd(year, 1, 1));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let digest = sha2::Sha256::digest(key.subject_public_key_info());
        let pin = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Shown { config: Arc::new(config), pin })
    }
}

impl Front {
    /// Puts TLS for `name` in front of `server`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn at(address: SocketAddr, server: SocketAddr, authority: &Authority, name: &str) -> Result<Self> {
        Self::with(address, server, &authority.issue(name, [2000, 4000], rustls::ALL_VERSIONS)?)
    }

    /// The same with a certificate that is over.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn expired(
        address: SocketAddr,
        server: SocketAddr,
        authority: &Authority,
        name: &str,
    ) -> Result<Self> {
        Self::with(address, server, &authority.issue(name, [2000, 2001], rustls::ALL_VERSIONS)?)
    }

    /// The same with TLS 1.2 alone.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn tls12(address: SocketAddr, server: SocketAddr, authority: &Authority, name: &str) -> Result<Self> {
        Self::with(address, server, &authority.issue(name, [2000, 4000], &[&rustls::version::TLS12])?)
    }

    fn with(address: SocketAddr, server: SocketAddr, shown: &Shown) -> Result<Self> {
        let listener =
            std::net::TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        let address = listener.local_addr().context("a listener without address")?;
        listener.set_nonblocking(true).context("cannot make the listener non-blocking")?;
        let acceptor = TlsAcceptor::from(Arc::clone(&shown.config));
        let (named_in, named) = channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (outside, _) = listener.accept().await?;
                    let (acceptor, named) = (acceptor.clone(), named_in.clone());
                    tokio::spawn(async move {
                        let mut outside = acceptor.accept(outside).await?;
                        let name = outside.get_ref().1.server_name().unwrap_or_default().to_owned();
                        named.send(name).map_err(|_| anyhow!("the test has ended"))?;
                        let mut inside = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut outside, &mut inside).await?;
                        Ok::<_, anyhow::Error>(())
                    });
                }
                #[expect(unreachable_code, reason = "it names the type of the errors above")]
                Ok::<_, std::io::Error>(())
            })
        });
        Ok(Self { address, pin: shown.pin.clone(), named })
    }
}
