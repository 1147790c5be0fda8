//! The cluster's certificate authority.
//!
//! Its key follows from the secret and its certificate from its key, so that every holder of the secret makes
//! the same bytes and nobody has to hand it out. What it issues is short-lived: there is no list of certificates
//! that are called back.

use crate::SecurityError;
use crate::principal::{Role, check_name};
use crate::secret::{Purpose, Secret};
use crate::text::{hex, random, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData, SanType,
    SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const ORGANIZATION: &str = "Basalt";
/// Machines' clocks may be so far apart.
pub const SKEW: Duration = Duration::from_secs(3600);
/// How long an authority's certificate holds; it goes with its secret long before.
const FIRST_YEAR: i32 = 2020;
const LAST_YEAR: i32 = 2120;

/// A certificate authority, with its key.
pub struct Authority {
    name: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate that was issued, with its key.
pub struct Issued {
    /// The certificate, then that of the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Until when it holds.
    pub not_after: SystemTime,
}

impl Clone for Issued {
    fn clone(&self) -> Issued {
        let (chain, key) = (self.chain.clone(), self.key.clone_key());
        Issued { chain, key, not_after: self.not_after }
    }
}

impl Issued {
    /// The key for a TLS configuration.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// The certificate and its authority's, PEM.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|one| pem("CERTIFICATE", one)).collect()
    }

    /// The private key, PEM.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_pkcs8_der())
    }
}

/// For whom a certificate is.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Host names and addresses under which it is reached, for clients that look at them.
    pub addresses: Vec<String>,
    /// How long it holds.
    pub lifetime: Duration,
}

impl Authority {
    /// The authority of a secret.
    ///
    /// # Errors
    /// If the certificate can not be made.
    pub fn of(secret: &Secret) -> Result<Authority, SecurityError> {
        let seed = [&PKCS8_ED25519[..], &secret.key(Purpose::Authority)].concat();
        let key = PrivatePkcs8KeyDer::from(seed);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519).map_err(wrong)?;
        let digest = sha256(key.der_bytes());
        let name = format!("Basalt cluster {}", hex(&digest[..16]));
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(FIRST_YEAR, 1, 1);
        params.not_after = date_time_ymd(LAST_YEAR, 1, 1);
        params.serial_number = Some(SerialNumber::from_slice(&[1]));
        params.distinguished_name = named(&name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(wrong)?.der().clone();
        Ok(Authority { name, certificate, issuer: Issuer::new(params, key) })
    }

    /// Its name, which no other authority has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// SHA-256 of its certificate.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// If the name can not be one.
    pub fn issue(&self, subject: &Subject, now: SystemTime) -> Result<Issued, SecurityError> {
        check_name(&subject.name).map_err(SecurityError::Certificate)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(wrong)?;
        let not_after = now + subject.lifetime;
        let mut serial: [u8; 16] = random();
        // Serial numbers are positive, and have no zero in front.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.not_before = (now - SKEW).into();
        params.not_after = not_after.into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = named(&subject.name, Some(subject.role));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.subject_alt_names = alternative_names(&subject.addresses);
        let leaf = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Issued { chain, key, not_after })
    }
}

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    sha256(certificate)
}

fn named(name: &str, role: Option<Role>) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::OrganizationName, ORGANIZATION);
    if let Some(role) = role {
        full.push(DnType::OrganizationalUnitName, role.as_str());
    }
    full.push(DnType::CommonName, name);
    full
}

/// What can not stand in a certificate is left out: nobody of ours looks at it.
fn alternative_names(addresses: &[String]) -> Vec<SanType> {
    let name = |address: &String| match address.parse::<IpAddr>() {
        Ok(ip) => Some(SanType::IpAddress(ip)),
        Err(_) => address.as_str().try_into().ok().map(SanType::DnsName),
    };
    addresses.iter().filter_map(name).collect()
}

fn pem(label: &str, bytes: &[u8]) -> String {
    let text = crate::text::base64(bytes);
    let lines: Vec<&str> =
        (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn wrong(error: rcgen::Error) -> SecurityError {
    SecurityError::Certificate(format!("a certificate can not be made: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::Holder;

    fn subject(name: &str, role: Role) -> Subject {
        let addresses = vec!["127.0.0.1".to_owned(), "n1.example".to_owned(), "n 1".to_owned()];
        Subject { name: name.to_owned(), role, addresses, lifetime: Duration::from_secs(60) }
    }

    #[test]
    fn every_holder_makes_the_same_authority() {
        let secret = Secret::new();
        let (one, other) =
            (Authority::of(&secret).expect("made"), Authority::of(&secret).expect("made"));
        assert_eq!(one.certificate(), other.certificate());
        let another = Authority::of(&Secret::new()).expect("made");
        assert_ne!(one.name(), another.name());
        assert_ne!(one.fingerprint(), another.fingerprint());
    }

    #[test]
    fn certificates_carry_name_and_role() {
        let authority = Authority::of(&Secret::new()).expect("made");
        let now = SystemTime::now();
        for role in Role::ALL {
            let issued = authority.issue(&subject("somebody", role), now).expect("issued");
            let holder = Holder::of(&issued.chain[0]).expect("ours");
            assert_eq!((holder.name.as_str(), holder.role), ("somebody", role));
            assert_eq!(holder.authority, authority.name());
            let expected = (now + Duration::from_secs(60)).duration_since(SystemTime::UNIX_EPOCH);
            assert_eq!(holder.not_after, expected.expect("after 1970").as_secs());
        }
        assert!(authority.issue(&subject("a b", Role::Node), now).is_err());
        // The authority's own certificate is nobody's.
        assert!(Holder::of(authority.certificate()).is_err());
    }
}
