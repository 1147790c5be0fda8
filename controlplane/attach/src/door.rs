//! The NBD door's options, the same for both programs.

use anyhow::{Result, bail};
use basalt_nbd::{DoorConfig, TlsFiles, TlsPolicy, TlsServer};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

/// TLS of the NBD door.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsOptions {
    /// TLS certificate chain for NBD, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Authorities of which NBD clients must show a certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,

    /// Whether NBD clients must use TLS, or may.
    #[arg(long, value_name = "WHEN", default_value = "required", requires = "tls_cert")]
    pub tls: TlsWhen,
}

/// Whether NBD clients must use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TlsWhen {
    /// Nothing is told or served without it.
    #[default]
    Required,
    /// A client may use it.
    Offered,
}

impl TlsOptions {
    /// A door with these certificates, or without TLS.
    ///
    /// # Errors
    /// If the files can not be used.
    pub fn door(&self) -> Result<DoorConfig> {
        let mut config = DoorConfig::default();
        let (certificate, key) = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (None, None) => return Ok(config),
            _ => bail!("--tls-cert and --tls-key are needed together"),
        };
        let client_authority = self.tls_client_ca.clone();
        config.tls =
            Some(Arc::new(TlsServer::load(TlsFiles { certificate, key, client_authority })?));
        config.session.tls = match self.tls {
            TlsWhen::Required => TlsPolicy::Required,
            TlsWhen::Offered => TlsPolicy::Offered,
        };
        Ok(config)
    }

    /// Whether only clients with a certificate are served.
    pub fn authenticates(&self) -> bool {
        self.tls_client_ca.is_some() && self.tls == TlsWhen::Required
    }
}
