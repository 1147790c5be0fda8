//! Tokens with which a new machine gets the cluster's secret.
//!
//! A token says which authority the machine is to believe, and until when the cluster takes it. It is
//! authenticated by a key that follows from the secret, so that any node can tell whether it is one without
//! asking anybody; that it is used once only is remembered by the metadata group.

use crate::SecurityError;
use crate::authority::Authority;
use crate::secret::{Purpose, Secrets};
use crate::text::{base64url, from_base64url, hex, random};
use ring::hmac;

/// What every token begins with.
pub const PREFIX: &str = "basalt-join-v1:";
const ID_BYTES: usize = 16;
const BODY_BYTES: usize = 32 + ID_BYTES + 8;
const MAC_BYTES: usize = 32;

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the authority's certificate.
    pub fingerprint: [u8; 32],
    /// Tells it from other tokens.
    pub id: [u8; ID_BYTES],
    /// Until when it holds, in milliseconds since 1970.
    pub expires_ms: u64,
    mac: [u8; MAC_BYTES],
}

impl JoinToken {
    /// A new one that holds until then.
    ///
    /// # Errors
    /// If the authority can not be made.
    pub fn create(secrets: &Secrets, expires_ms: u64) -> Result<JoinToken, SecurityError> {
        let fingerprint = Authority::of(secrets.first())?.fingerprint();
        let mut token = JoinToken { fingerprint, id: random(), expires_ms, mac: [0; MAC_BYTES] };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secrets.first().key(Purpose::Join));
        let mac = hmac::sign(&key, &token.body());
        token.mac.copy_from_slice(mac.as_ref());
        Ok(token)
    }

    fn body(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[..32].copy_from_slice(&self.fingerprint);
        body[32..32 + ID_BYTES].copy_from_slice(&self.id);
        body[32 + ID_BYTES..].copy_from_slice(&self.expires_ms.to_be_bytes());
        body
    }

    /// As people pass it on.
    pub fn text(&self) -> String {
        format!("{PREFIX}{}", base64url(&[&self.body()[..], &self.mac].concat()))
    }

    /// Reads one. Whether it is to be believed is not asked here.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<JoinToken, SecurityError> {
        let none =
            || SecurityError::Invalid(format!("this is no join token; one begins with {PREFIX}"));
        let bytes = text.strip_prefix(PREFIX).and_then(from_base64url).ok_or_else(none)?;
        if bytes.len() != BODY_BYTES + MAC_BYTES {
            return Err(none());
        }
        let mut token = JoinToken {
            fingerprint: [0; 32],
            id: [0; ID_BYTES],
            expires_ms: 0,
            mac: [0; MAC_BYTES],
        };
        let mut expires = [0; 8];
        let parts: [&mut [u8]; 4] =
            [&mut token.fingerprint, &mut token.id, &mut expires, &mut token.mac];
        let mut at = 0;
        for part in parts {
            let end = at + part.len();
            part.copy_from_slice(&bytes[at..end]);
            at = end;
        }
        token.expires_ms = u64::from_be_bytes(expires);
        Ok(token)
    }

    /// Whether a holder of one of the secrets made it, and it is not over.
    ///
    /// # Errors
    /// Says which of the two it is.
    pub fn check(&self, secrets: &Secrets, now_ms: u64) -> Result<(), SecurityError> {
        let ours = secrets.keys(Purpose::Join).into_iter().any(|key| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            hmac::verify(&key, &self.body(), &self.mac).is_ok()
        });
        if !ours {
            let why = "the join token is not of this cluster, or was changed";
            return Err(SecurityError::Invalid(why.to_owned()));
        }
        if now_ms >= self.expires_ms {
            let why = "the join token is over; make a new one with 'basalt node token'";
            return Err(SecurityError::Invalid(why.to_owned()));
        }
        Ok(())
    }

    /// Its id as text.
    pub fn id_text(&self) -> String {
        hex(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_for_its_cluster_and_its_time() {
        let secrets = Secrets::new();
        let token = JoinToken::create(&secrets, 1000).expect("made");
        let read = JoinToken::parse(&token.text()).expect("a token");
        assert_eq!(read, token);
        assert_eq!(read.check(&secrets, 999), Ok(()));
        assert!(read.check(&secrets, 1000).unwrap_err().to_string().contains("over"));
        let later = secrets.with_next().expect("room").promoted().expect("two");
        assert_eq!(read.check(&later, 999), Ok(()), "the former secret is accepted still");
        assert!(read.check(&Secrets::new(), 999).is_err());
        assert!(read.check(&later.only_first().expect("two"), 999).is_err());
    }

    #[test]
    fn nothing_of_a_token_can_be_changed() {
        let secrets = Secrets::new();
        let token = JoinToken::create(&secrets, 1000).expect("made");
        let bytes = from_base64url(token.text().strip_prefix(PREFIX).expect("ours")).expect("ours");
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let read = JoinToken::parse(&format!("{PREFIX}{}", base64url(&other))).expect("one");
            assert!(read.check(&secrets, 0).is_err(), "byte {at}");
        }
        for bad in ["", "basalt-join-v1:", "basalt-join-v1:AAAA", "x"] {
            assert!(JoinToken::parse(bad).is_err());
        }
    }
}
