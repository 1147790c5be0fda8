//! TLS without I/O: certificates from PEM files, and a stream over `rustls`.

use bytes::Bytes;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Where the certificates stand.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities of which clients must show a certificate, PEM; none are asked for without it.
    pub client_authority: Option<PathBuf>,
}

/// Why TLS can not be offered.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can not be read, or holds no such thing.
    #[error("{what} in {path}: {reason}")]
    File {
        /// What was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The certificate, the key and the authorities do not make a server.
    #[error("the TLS certificate and key can not be used: {0}")]
    Unusable(String),
}

/// The server's side of TLS for many connections. Changed files count for new connections.
#[derive(Debug)]
pub struct TlsServer {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// Loads the files.
    pub fn load(files: TlsFiles) -> Result<TlsServer, TlsError> {
        let stamps = files.stamps();
        let config = files.read()?;
        Ok(TlsServer { files, loaded: Mutex::new(Loaded { stamps, config }) })
    }

    /// The server's side of a new connection. If the files changed and can not be used, the last
    /// good ones stay in use.
    pub(crate) fn accept(&self) -> Result<TlsStream, TlsError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let stamps = self.files.stamps();
        if stamps != loaded.stamps {
            loaded.stamps = stamps;
            match self.files.read() {
                Ok(config) => loaded.config = config,
                Err(error) => tracing::warn!("the changed TLS files are not used: {error}"),
            }
        }
        let mut tls = ServerConnection::new(loaded.config.clone())
            .map_err(|error| TlsError::Unusable(error.to_string()))?;
        // What waits to be sent is bounded by the session and by the driver's send queue.
        tls.set_buffer_limit(None);
        Ok(TlsStream { tls })
    }
}

impl TlsFiles {
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let stamp = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        let authority = self.client_authority.as_deref().and_then(stamp);
        vec![stamp(&self.certificate), stamp(&self.key), authority]
    }

    fn read(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| TlsError::File {
            what: "no private key",
            path: self.key.clone(),
            reason: error.to_string(),
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match &self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unusable(&error))?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| unusable(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| unusable(&error))?;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong =
        |reason: String| TlsError::File { what: "no certificate", path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?.collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong("the file holds none".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(error.to_string())),
    }
}

/// The server's side of one connection.
pub(crate) struct TlsStream {
    tls: ServerConnection,
}

impl TlsStream {
    /// Takes what came from the client and appends what it said. `Err` after a violation, or when
    /// the client is done; what is to be sent is still valid then.
    pub fn receive(&mut self, mut bytes: &[u8], plain: &mut Vec<Bytes>) -> Result<(), ()> {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).map_err(|_| ())?;
            let state = self.tls.process_new_packets().map_err(|error| {
                tracing::debug!("TLS: {error}");
            })?;
            let count = state.plaintext_bytes_to_read();
            if count > 0 {
                let mut piece = vec![0; count];
                self.tls.reader().read_exact(&mut piece).map_err(|_| ())?;
                plain.push(Bytes::from(piece));
            }
            if state.peer_has_closed() {
                return Err(());
            }
        }
        Ok(())
    }

    /// Encrypts what is to be said.
    pub fn send(&mut self, plain: &[Bytes]) {
        for piece in plain {
            // Writing to memory without a limit takes everything.
            let written = self.tls.writer().write_all(piece);
            debug_assert!(written.is_ok(), "{written:?}");
        }
    }

    /// Says that nothing more follows.
    pub fn end(&mut self) {
        self.tls.send_close_notify();
    }

    /// Appends what is to be sent.
    pub fn take_output(&mut self, into: &mut Vec<Bytes>) {
        let mut sealed = Vec::new();
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut sealed).is_err() {
                break;
            }
        }
        if !sealed.is_empty() {
            into.push(Bytes::from(sealed));
        }
    }
}
