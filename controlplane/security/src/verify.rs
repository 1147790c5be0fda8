//! Whom a client trusts, and whom a front door.
//!
//! A client of a cluster asks one thing of a server's certificate: that the cluster's authority issued it to a
//! node. Under which name or address the node is reached says nothing: nodes move, and every one of them holds
//! the secret. A certificate of another role is no server's, so that who may only look can not pose as a node.

use crate::authority::fingerprint;
use crate::principal::{Holder, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use std::sync::Arc;

/// The cryptography of all connections.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// What is trusted.
#[derive(Debug)]
enum Trust {
    /// These authorities.
    Authorities(RootCertStore),
    /// The authority with this fingerprint, which the server shows.
    Fingerprint([u8; 32]),
}

/// Trusts nodes of a cluster.
#[derive(Debug)]
pub struct NodeVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl NodeVerifier {
    /// Trusts nodes with a certificate of one of these authorities.
    pub fn of_authorities(authorities: RootCertStore) -> NodeVerifier {
        NodeVerifier { trust: Trust::Authorities(authorities), provider: provider() }
    }

    /// Trusts nodes with a certificate of the authority that has this fingerprint.
    pub fn of_fingerprint(expected: [u8; 32]) -> NodeVerifier {
        NodeVerifier { trust: Trust::Fingerprint(expected), provider: provider() }
    }
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown;
        let roots = match &self.trust {
            Trust::Authorities(roots) => roots,
            Trust::Fingerprint(expected) => {
                let known = intermediates.iter().find(|one| fingerprint(one) == *expected);
                let known =
                    known.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut store = RootCertStore::empty();
                store.add(known.clone().into_owned())?;
                shown = store;
                &shown
            }
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            roots,
            intermediates,
            now,
            algorithms,
        )?;
        match Holder::of(end_entity) {
            Ok(holder) if holder.role == Role::Node => Ok(ServerCertVerified::assertion()),
            Ok(_) => Err(Error::InvalidCertificate(CertificateError::InvalidPurpose)),
            Err(_) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Both sides speak TLS 1.3 only.
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Who may use volumes: a certificate of one of the authorities, of a role that attaches them.
#[derive(Debug)]
pub struct UserVerifier {
    inner: Arc<dyn ClientCertVerifier>,
}

impl UserVerifier {
    /// On top of one that knows the authorities.
    pub fn new(inner: Arc<dyn ClientCertVerifier>) -> UserVerifier {
        UserVerifier { inner }
    }
}

impl ClientCertVerifier for UserVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        match Holder::of(end_entity).map(|holder| holder.role) {
            Ok(Role::Operator | Role::Admin | Role::Node | Role::Csi) => Ok(verified),
            Ok(Role::Viewer) | Err(_) => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
