//! Certificates and keys from PEM files, checked before they are used: a server that starts with
//! files which no client will accept is worse than one that says what is wrong with them.

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
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
    /// A file can not be read, or does not hold what it should.
    #[error("the {what} file {path}: {reason}")]
    File {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The key is that of another certificate.
    #[error(
        "the private key in {key} does not belong to the certificate in {certificate}: give the pair \
         that was made together (the server's own certificate must be the first in its file)"
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate, the key and the authorities do not make a server.
    #[error("the TLS certificate and key can not be used: {0}")]
    Unusable(String),
}

const CERTIFICATE: &str = "TLS certificate";
const KEY: &str = "TLS private key";
const AUTHORITY: &str = "TLS client authority";

impl TlsFiles {
    pub(super) fn stamps(&self) -> Vec<Option<SystemTime>> {
        let stamp = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        let authority = self.client_authority.as_deref().and_then(stamp);
        vec![stamp(&self.certificate), stamp(&self.key), authority]
    }

    pub(super) fn read(&self, now: UnixTime) -> Result<Arc<ServerConfig>, TlsError> {
        let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
        let chain = certificates(CERTIFICATE, &self.certificate)?;
        for certificate in &chain {
            if let Some(reason) = not_valid(certificate, now) {
                return Err(wrong(CERTIFICATE, &self.certificate, reason));
            }
        }
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| wrong(KEY, &self.key, pem_problem(&error, "private key")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&error))?;
        let builder = match &self.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(authorities(path, now)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| unusable(&error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                let (certificate, key) = (self.certificate.clone(), self.key.clone());
                TlsError::Mismatch { certificate, key }
            }
            other => unusable(&other),
        })?;
        Ok(Arc::new(config))
    }
}

fn authorities(path: &Path, now: UnixTime) -> Result<RootCertStore, TlsError> {
    let found = certificates(AUTHORITY, path)?;
    let problems: Vec<String> = found.iter().filter_map(|ca| not_valid(ca, now)).collect();
    // A bundle may hold an authority that is over beside the one that replaced it.
    if problems.len() == found.len() {
        return Err(wrong(AUTHORITY, path, problems.join("; ")));
    }
    let mut roots = RootCertStore::empty();
    for certificate in found {
        roots.add(certificate).map_err(|error| wrong(AUTHORITY, path, error.to_string()))?;
    }
    Ok(roots)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |error: pem::Error| wrong(what, path, pem_problem(&error, "certificate"));
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(pem::Error::NoItemsFound)),
        other => other.map_err(wrong),
    }
}

fn wrong(what: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::File { what, path: path.to_owned(), reason }
}

fn pem_problem(error: &pem::Error, item: &str) -> String {
    match error {
        pem::Error::Io(error) => format!("it can not be read: {error}"),
        pem::Error::NoItemsFound => {
            format!("it holds no {item} in PEM form (a block that begins with '-----BEGIN')")
        }
        other => format!("it is damaged: {other}"),
    }
}

/// What is wrong with a certificate's time of validity, or with its form. The library has no way to
/// ask for that alone: it is asked to verify the certificate against no authority at all, and looks
/// at the times before it misses one.
fn not_valid(certificate: &CertificateDer<'_>, now: UnixTime) -> Option<String> {
    let parsed = match ParsedCertificate::try_from(certificate) {
        Ok(parsed) => parsed,
        Err(error) => return Some(format!("a certificate in it is damaged: {error}")),
    };
    let nobody = RootCertStore::empty();
    let verified = verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], now, &[]);
    let Err(Error::InvalidCertificate(error)) = verified else { return None };
    let days = |at: UnixTime, than: UnixTime| at.as_secs().saturating_sub(than.as_secs()) / 86_400;
    match error {
        CertificateError::Expired => Some("its certificate has expired".to_owned()),
        CertificateError::ExpiredContext { time, not_after } => Some(format!(
            "its certificate expired {} days ago; give one that is valid",
            days(time, not_after)
        )),
        CertificateError::NotValidYet => Some("its certificate is not valid yet".to_owned()),
        CertificateError::NotValidYetContext { time, not_before } => Some(format!(
            "its certificate is valid in {} days only; is this machine's clock right?",
            days(not_before, time)
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Valid in the year 2020.
    const OLD: &str = "\
-----BEGIN CERTIFICATE-----
MIIBXTCCAQKgAwIBAgIBAjAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhv
c3QwHhcNMjAwMTAxMDAwMDAwWhcNMjEwMTAxMDAwMDAwWjAUMRIwEAYDVQQDDAls
b2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASfP7Yja4WEaVrcb1Kw
b+/hctRNSKKW2nN6LzIDvz4P+BHXb45PcPriGZ7SucHVFP1E6kzKdsRSZU3iFdvm
WFiio0UwQzAMBgNVHRMBAf8EAjAAMBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAdBgNV
HQ4EFgQUgs8jrEJZ1oU/iAogz9XXokQafhkwCgYIKoZIzj0EAwIDSQAwRgIhAOzS
ytDtjEohV0k6MFBsYoIGz91fGs+qSUofG5sSa2FoAiEAoEwkaIpiWwLLgp2sTWvp
yIpUBv/23R28EjBVUGdzVGs=
-----END CERTIFICATE-----
";

    #[test]
    fn a_certificate_counts_in_its_time_only() {
        let old = CertificateDer::from_pem_slice(OLD.as_bytes()).expect("a certificate");
        let at = |year: u64| {
            let seconds = (year - 1970) * 31_557_600 + 15_778_800;
            not_valid(&old, UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
        };
        assert_eq!(at(2020), None);
        let over = at(2022).expect("over");
        assert!(over.contains("expired 54"), "{over}");
        let early = at(2019).expect("not begun");
        assert!(early.contains("valid in 18"), "{early}");
        let damaged = not_valid(&CertificateDer::from(vec![1, 2, 3]), UnixTime::now());
        assert!(damaged.is_some_and(|reason| reason.contains("damaged")));
    }
}
