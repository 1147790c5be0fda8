//! The NBD door's options, the same for both programs.

use crate::listen::NbdListen;
use crate::process::Usage;
use anyhow::Result;
use basalt_nbd::{DoorConfig, TlsFiles, TlsPolicy, TlsServer};
use basalt_node::ListenSource;
use basalt_security::Keyring;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::sync::Arc;

/// TLS of the NBD door.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "TLS for NBD")]
pub struct TlsOptions {
    /// Certificate chain of the server, PEM, its own certificate first. Read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Authorities, PEM. With it a client that uses TLS must show a certificate of one of them.
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Whether clients that come over TCP must use TLS. Over unix sockets they may, and need not.
    /// Default: required with a certificate, off without one. A node that has a secret and is given no other
    /// certificate takes its own with 'required', and by default beyond loopback; its clients need one of
    /// 'basalt identity issue'.
    #[arg(long, value_name = "WHEN")]
    pub tls: Option<TlsWhen>,
}

/// Whether NBD clients must use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsWhen {
    /// It is not offered.
    Off,
    /// A client may use it.
    #[value(alias = "offered")]
    Allowed,
    /// Nothing is told or served without it.
    Required,
}

impl TlsOptions {
    /// Whether TLS is off, allowed or required.
    pub fn when(&self) -> TlsWhen {
        let usual = if self.tls_cert.is_some() { TlsWhen::Required } else { TlsWhen::Off };
        self.tls.unwrap_or(usual)
    }

    /// A door with these certificates, or without TLS, for these listeners.
    ///
    /// # Errors
    /// If options are missing, or the files can not be used.
    pub fn door(&self, listeners: &[ListenSource]) -> Result<DoorConfig> {
        match self.load()? {
            Some(tls) => Ok(door_with(tls, self.when(), listeners)),
            None => Ok(DoorConfig::default()),
        }
    }

    /// Whether a node uses its own certificate for NBD on `listen`: it was given no other, and TLS is required, or
    /// others than this machine reach it and nothing else was said.
    pub fn uses_own(&self, listen: &NbdListen) -> bool {
        let wanted = match self.tls {
            Some(when) => when == TlsWhen::Required,
            None => !listen.is_local(),
        };
        self.tls_cert.is_none() && self.tls_key.is_none() && self.tls_client_ca.is_none() && wanted
    }

    /// A door with a node's own certificate, for clients with one of the cluster's authority.
    ///
    /// # Panics
    /// If the keyring is none of a holder of the secret.
    pub fn own_door(keyring: Arc<Keyring>, listeners: &[ListenSource]) -> DoorConfig {
        let supply = move || keyring.door().expect("a node holds the secret");
        door_with(TlsServer::supplied(Box::new(supply)), TlsWhen::Required, listeners)
    }

    /// The certificates, if TLS is to be offered. They are read and checked in any case.
    ///
    /// # Errors
    /// If options are missing, or the files can not be used.
    pub fn load(&self) -> Result<Option<TlsServer>> {
        let usage = |text: &str| Err(Usage(text.to_owned()).into());
        let (certificate, key) = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (Some(_), None) => {
                return usage("--tls-cert needs --tls-key, the certificate's private key");
            }
            (None, Some(_)) => {
                return usage("--tls-key needs --tls-cert, the certificate of that key");
            }
            (None, None) if self.tls_client_ca.is_some() => {
                return usage(
                    "--tls-client-ca checks the certificates of clients that use TLS, which needs a \
                     certificate of the server's own: give --tls-cert and --tls-key too",
                );
            }
            (None, None) if self.when() != TlsWhen::Off => {
                return usage("--tls allowed and --tls required need --tls-cert and --tls-key");
            }
            (None, None) => return Ok(None),
        };
        let client_authority = self.tls_client_ca.clone();
        let server = TlsServer::load(TlsFiles { certificate, key, client_authority })?;
        Ok((self.when() != TlsWhen::Off).then_some(server))
    }

    /// Whether only clients with a certificate are served over TCP.
    pub fn authenticates(&self) -> bool {
        self.tls_client_ca.is_some() && self.requires()
    }

    /// Whether clients that come over TCP must use TLS.
    pub fn requires(&self) -> bool {
        self.when() == TlsWhen::Required
    }
}

fn door_with(tls: TlsServer, when: TlsWhen, listeners: &[ListenSource]) -> DoorConfig {
    let mut config = DoorConfig { tls: Some(Arc::new(tls)), ..DoorConfig::default() };
    config.session.tls = match when {
        TlsWhen::Off => TlsPolicy::Off,
        TlsWhen::Allowed => TlsPolicy::Offered,
        TlsWhen::Required => TlsPolicy::Required,
    };
    let unix = listeners.iter().enumerate().filter(|(_, source)| source.is_unix());
    config.tls_exempt = unix.map(|(index, _)| index).collect();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let file = || Some(PathBuf::from("/nonexistent/x.pem"));
        let why = |options: TlsOptions| options.load().expect_err("refused").to_string();
        let none = TlsOptions::default;
        assert!(none().load().expect("no TLS").is_none());
        assert!(why(TlsOptions { tls_cert: file(), ..none() }).contains("--tls-key"));
        assert!(why(TlsOptions { tls_key: file(), ..none() }).contains("--tls-cert"));
        assert!(why(TlsOptions { tls_client_ca: file(), ..none() }).contains("--tls-cert"));
        let required = TlsOptions { tls: Some(TlsWhen::Required), ..none() };
        assert!(why(required).contains("--tls-cert"));
        // Files that can not be used are refused although TLS is off, before they are needed.
        for tls in [None, Some(TlsWhen::Off)] {
            let options = TlsOptions { tls_cert: file(), tls_key: file(), tls, ..none() };
            let text = why(options);
            assert!(text.contains("/nonexistent/x.pem") && text.contains("No such file"), "{text}");
        }
    }
}
