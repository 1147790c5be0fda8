//! Bearer tokens: 256 random bits that stand for a name and a role.
//!
//! The cluster keeps a token's SHA-256 only. The token itself is drawn and shown once by whoever asks for it, and
//! can not be found out from what the cluster keeps, its backups or its logs.

use crate::SecurityError;
use crate::text::{base64url, from_base64url, random, sha256};
use std::path::Path;

const PREFIX: &str = "basalt-token-v1:";

/// A new token.
pub fn create() -> String {
    format!("{PREFIX}{}", base64url(&random::<32>()))
}

/// What the cluster keeps of a token.
///
/// # Errors
/// If the text is no token.
pub fn digest(token: &str) -> Result<[u8; 32], SecurityError> {
    let bytes = token.strip_prefix(PREFIX).and_then(from_base64url);
    match bytes {
        Some(bytes) if bytes.len() == 32 => Ok(sha256(token.as_bytes())),
        _ => Err(SecurityError::Invalid(format!("this is no token; one begins with {PREFIX}"))),
    }
}

/// Reads a token from a file.
///
/// # Errors
/// If it can not be read or holds no token.
pub fn load(path: &Path) -> Result<String, SecurityError> {
    let text = std::fs::read_to_string(path).map_err(|e| SecurityError::file(path, e))?;
    let token = text.trim();
    digest(token).map_err(|e| SecurityError::file(path, e))?;
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_differ() {
        let (one, other) = (create(), create());
        assert_ne!(one, other);
        assert_ne!(digest(&one).expect("a token"), digest(&other).expect("a token"));
        assert_eq!(one.len(), PREFIX.len() + 43);
        for bad in ["", "secret", PREFIX, &one[..one.len() - 1], &format!("{one}x")] {
            let why = digest(bad).expect_err(bad).to_string();
            assert!(bad.is_empty() || !why.contains(&one), "{why}");
        }
    }
}
