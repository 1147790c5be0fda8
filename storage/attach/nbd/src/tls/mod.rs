//! TLS without I/O: certificates from PEM files, and a stream over `rustls`.

mod files;

pub use files::{TlsError, TlsFiles};

use bytes::Bytes;
use rustls::pki_types::UnixTime;
use rustls::{ServerConfig, ServerConnection};
use std::fmt;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Gives the configuration of a new connection.
pub type TlsSupply = Box<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// The server's side of TLS for many connections. Changed files count for new connections.
pub struct TlsServer {
    source: Source,
}

enum Source {
    Files { files: TlsFiles, loaded: Mutex<Loaded> },
    Supply(TlsSupply),
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Files { files, .. } => write!(f, "TlsServer({files:?})"),
            Source::Supply(_) => f.write_str("TlsServer(supplied)"),
        }
    }
}

#[derive(Debug)]
struct Loaded {
    stamps: Vec<Option<SystemTime>>,
    config: Arc<ServerConfig>,
}

impl TlsServer {
    /// Loads the files.
    ///
    /// # Errors
    /// If one is missing or does not hold what it should, if the key is another certificate's, or if
    /// a certificate is over.
    pub fn load(files: TlsFiles) -> Result<TlsServer, TlsError> {
        let stamps = files.stamps();
        let config = files.read(UnixTime::now())?;
        let loaded = Mutex::new(Loaded { stamps, config });
        Ok(TlsServer { source: Source::Files { files, loaded } })
    }

    /// Takes what somebody else looks after.
    pub fn supplied(supply: TlsSupply) -> TlsServer {
        TlsServer { source: Source::Supply(supply) }
    }

    /// The server's side of a new connection. If the files changed and can not be used, the last
    /// good ones stay in use.
    pub(crate) fn accept(&self) -> Result<TlsStream, TlsError> {
        let config = match &self.source {
            Source::Files { files, loaded } => newest(files, loaded),
            Source::Supply(supply) => supply(),
        };
        let mut tls =
            ServerConnection::new(config).map_err(|error| TlsError::Unusable(error.to_string()))?;
        // What waits to be sent is bounded by the session and by the driver's send queue.
        tls.set_buffer_limit(None);
        Ok(TlsStream { tls })
    }
}

fn newest(files: &TlsFiles, loaded: &Mutex<Loaded>) -> Arc<ServerConfig> {
    let mut loaded = loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let stamps = files.stamps();
    if stamps != loaded.stamps {
        loaded.stamps = stamps;
        match files.read(UnixTime::now()) {
            Ok(config) => loaded.config = config,
            Err(error) => tracing::warn!("the changed TLS files are not used: {error}"),
        }
    }
    loaded.config.clone()
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
