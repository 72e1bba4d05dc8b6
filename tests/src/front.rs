//! TLS in front of a server, by certificates of an authority of the test's own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
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

/// The years of a certificate that is good whenever the test runs.
const ALWAYS: [i32; 2] = [2000, 4000];

/// What clients must prove.
#[derive(Clone, Copy)]
enum Asks {
    Nothing,
    ForCertificate,
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

    /// The certificate of a client, and its key, in PEM.
    ///
    /// # Errors
    /// No key can be made.
    pub fn client(&self, name: &str) -> Result<[String; 2]> {
        let (certificate, key) = self.certify(name, ALWAYS)?;
        Ok([certificate.pem(), key.serialize_pem()])
    }

    fn certify(&self, name: &str, years: [i32; 2]) -> Result<(Certificate, KeyPair)> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        [params.not_before, params.not_after] = years.map(|year| rcgen::date_time_ymd(year, 1, 1));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    fn issue(
        &self,
        name: &str,
        years: [i32; 2],
        versions: &[&'static rustls::SupportedProtocolVersion],
        asks: Asks,
    ) -> Result<Shown> {
        let (certificate, key) = self.certify(name, years)?;
        let digest = sha2::Sha256::digest(key.subject_public_key_info());
        let pin = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = match asks {
            Asks::Nothing => WebPkiClientVerifier::no_client_auth(),
            Asks::ForCertificate => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes())?)?;
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build()?
            }
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(clients)
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
        Self::with(address, server, &authority.issue(name, ALWAYS, rustls::ALL_VERSIONS, Asks::Nothing)?)
    }

    /// The same for clients that show a certificate of that authority.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn asking(
        address: SocketAddr,
        server: SocketAddr,
        authority: &Authority,
        name: &str,
    ) -> Result<Self> {
        let shown = authority.issue(name, ALWAYS, rustls::ALL_VERSIONS, Asks::ForCertificate)?;
        Self::with(address, server, &shown)
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
        Self::with(
            address,
            server,
            &authority.issue(name, [2000, 2001], rustls::ALL_VERSIONS, Asks::Nothing)?,
        )
    }

    /// The same with TLS 1.2 alone.
    ///
    /// # Errors
    /// The address is not to be had.
    pub fn tls12(address: SocketAddr, server: SocketAddr, authority: &Authority, name: &str) -> Result<Self> {
        Self::with(
            address,
            server,
            &authority.issue(name, ALWAYS, &[&rustls::version::TLS12], Asks::Nothing)?,
        )
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
