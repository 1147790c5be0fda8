//! The TLS configurations of a program, which change while it runs.
//!
//! A program that holds the cluster's secret issues its own certificate, and a new one when half of its time is
//! over; one that was given files reads them again when they change. [`Keyring::refresh`] does what is due. Every
//! new connection takes the configuration as it is then, so that nothing has to be restarted; whoever calls makes a
//! new connection when the [`Keyring::generation`] is another.

use crate::SecurityError;
use crate::authority::{Authority, Issued, Subject};
use crate::principal::Holder;
use crate::secret::{Secrets, Stamp};
use crate::verify::{NodeVerifier, UserVerifier, provider};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

/// How long certificates hold that programs issue for themselves.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The only protocol that is spoken.
const ALPN: &[u8] = b"h2";

/// Where keys and certificates come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The file with the cluster's secret.
    Secret(PathBuf),
    /// The authority's certificate, and a certificate with its key, all PEM. Without a certificate of its own
    /// the program shows none.
    Files {
        /// The authority.
        authority: PathBuf,
        /// Certificate chain and key.
        own: Option<(PathBuf, PathBuf)>,
    },
    /// Nothing but the fingerprint of the authority's certificate, for a machine that joins.
    Fingerprint([u8; 32]),
}

/// A program's certificates.
#[derive(Debug)]
pub struct Keyring {
    source: Source,
    subject: Subject,
    state: RwLock<Arc<State>>,
    /// Counts the exchanges.
    generation: AtomicU64,
}

#[derive(Debug)]
struct State {
    stamps: Vec<Option<Stamp>>,
    renew_at: Option<SystemTime>,
    client: Arc<ClientConfig>,
    /// Only with the secret: of the gRPC API, and of a front door.
    server: Option<Arc<ServerConfig>>,
    door: Option<Arc<ServerConfig>>,
    secrets: Option<Secrets>,
    /// Names of the authorities whose certificates are accepted.
    authorities: Vec<String>,
}

impl Keyring {
    /// Reads what the source holds and issues a certificate for the subject, if that is up to the program.
    ///
    /// # Errors
    /// If something can not be read or used.
    pub fn open(source: Source, subject: Subject) -> Result<Keyring, SecurityError> {
        let state = build(&source, &subject, SystemTime::now())?;
        let (state, generation) = (RwLock::new(Arc::new(state)), AtomicU64::new(0));
        Ok(Keyring { source, subject, state, generation })
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what is due: a changed file is read, and a certificate of which half is over renewed. Says whether
    /// anything changed.
    ///
    /// # Errors
    /// If what is new can not be used; what was before stays in use.
    pub fn refresh(&self, now: SystemTime) -> Result<bool, SecurityError> {
        let old = self.state();
        let changed = stamps(&self.source) != old.stamps;
        let due = old.renew_at.is_some_and(|at| now >= at);
        if !changed && !due {
            return Ok(false);
        }
        let new = build(&self.source, &self.subject, now)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        self.generation.fetch_add(1, Ordering::Release);
        Ok(true)
    }

    /// Grows whenever anything was exchanged: connections that were made before show what was before.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// For a connection to a node.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.state().client.clone()
    }

    /// For a connection that came; nothing if the program does not hold the secret.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.state().server.clone()
    }

    /// For a connection that came to a front door; nothing if the program does not hold the secret. Only clients that
    /// may attach volumes are let in.
    pub fn door(&self) -> Option<Arc<ServerConfig>> {
        self.state().door.clone()
    }

    /// The secrets, if the program holds them.
    pub fn secrets(&self) -> Option<Secrets> {
        self.state().secrets.clone()
    }

    /// Whether what this holder shows still holds: connections outlive certificates, and authorities may go.
    pub fn accepts(&self, holder: &Holder, now: SystemTime) -> bool {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        seconds <= holder.not_after && self.state().authorities.contains(&holder.authority)
    }
}

/// How the files are now.
fn stamps(source: &Source) -> Vec<Option<Stamp>> {
    match source {
        Source::Secret(path) => vec![Stamp::of(path)],
        Source::Files { authority, own } => {
            let own = own.iter().flat_map(|(certificate, key)| [certificate, key]);
            [authority].into_iter().chain(own).map(|path| Stamp::of(path)).collect()
        }
        Source::Fingerprint(_) => Vec::new(),
    }
}

fn build(source: &Source, subject: &Subject, now: SystemTime) -> Result<State, SecurityError> {
    // Before the files are read: what changes in between is seen the next time.
    let stamps = stamps(source);
    match source {
        Source::Secret(path) => from_secret(Secrets::load(path)?, stamps, subject, now),
        Source::Files { authority, own } => {
            let roots = read_certificates(authority)?;
            let verifier = Arc::new(NodeVerifier::of_authorities(store(&roots)?));
            let own = own
                .as_ref()
                .map(|(chain, key)| Ok((read_certificates(chain)?, read_key(key)?, key.as_path())));
            Ok(without_secret(stamps, client_config(verifier, own.transpose()?)?))
        }
        Source::Fingerprint(expected) => {
            let verifier = Arc::new(NodeVerifier::of_fingerprint(*expected));
            Ok(without_secret(stamps, client_config(verifier, None)?))
        }
    }
}

fn without_secret(stamps: Vec<Option<Stamp>>, client: Arc<ClientConfig>) -> State {
    let (renew_at, authorities) = (None, Vec::new());
    State { stamps, renew_at, client, server: None, door: None, secrets: None, authorities }
}

fn from_secret(
    secrets: Secrets,
    stamps: Vec<Option<Stamp>>,
    subject: &Subject,
    now: SystemTime,
) -> Result<State, SecurityError> {
    let all: Vec<Authority> = secrets.iter().map(Authority::of).collect::<Result<_, _>>()?;
    let roots: Vec<_> = all.iter().map(|authority| authority.certificate().clone()).collect();
    let issued = all[0].issue(subject, now)?;
    let verifier = Arc::new(NodeVerifier::of_authorities(store(&roots)?));
    let own = (issued.chain.clone(), issued.private_key(), Path::new("own"));
    let client = client_config(verifier, Some(own))?;
    let known = |optional: bool| {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(store(&roots)?), provider());
        let builder = if optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(unusable)
    };
    let mut server = server_config(known(true)?, &issued)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    let door = server_config(Arc::new(UserVerifier::new(known(false)?)), &issued)?;
    Ok(State {
        stamps,
        renew_at: Some(now + subject.lifetime / 2),
        client,
        server: Some(Arc::new(server)),
        door: Some(Arc::new(door)),
        authorities: all.iter().map(|authority| authority.name().to_owned()).collect(),
        secrets: Some(secrets),
    })
}

fn server_config(
    clients: Arc<dyn ClientCertVerifier>,
    own: &Issued,
) -> Result<ServerConfig, SecurityError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(clients)
        .with_single_cert(own.chain.clone(), own.private_key())
        .map_err(unusable)?;
    // A session that is taken up again would outlive what it was authenticated by.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

type Own<'a> = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, &'a Path);

fn client_config(
    verifier: Arc<NodeVerifier>,
    own: Option<Own<'_>>,
) -> Result<Arc<ClientConfig>, SecurityError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Some((chain, key, path)) => builder.with_client_auth_cert(chain, key).map_err(|e| {
            SecurityError::file(path, format!("the key does not belong to the certificate ({e})"))
        })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    // Nodes are not told apart by names.
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, SecurityError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate.clone()).map_err(unusable)?;
    }
    Ok(store)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let bytes = std::fs::read(path).map_err(|e| SecurityError::file(path, e))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|e| SecurityError::file(path, format!("it is no PEM file ({e})")))?;
    if all.is_empty() {
        return Err(SecurityError::file(path, "it holds no certificate"));
    }
    Ok(all)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, SecurityError> {
    let bytes = std::fs::read(path).map_err(|e| SecurityError::file(path, e))?;
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|e| SecurityError::file(path, format!("it holds no private key ({e})")))
}

fn unusable(error: impl std::fmt::Display) -> SecurityError {
    SecurityError::Certificate(format!("the certificates can not be used: {error}"))
}
