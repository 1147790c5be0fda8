//! Who may do what in a cluster, without any I/O on a network.
//!
//! Everything follows from one file, the cluster's [`secret`]: whoever holds it makes the same certificate
//! authority and issues its own short-lived certificate with its name and role.
//!
//! * [`secret`]: the file and the keys that are derived from it;
//! * [`authority`]: the cluster's certificate authority, and what it issues;
//! * [`principal`]: names and roles, and how a certificate carries them;
//! * [`keyring`]: the TLS configurations of a program, renewed while it runs; [`verify`]: whom they trust;
//! * [`token`]: bearer tokens; [`join`]: tokens with which a new machine gets the secret;
//! * [`permissions`]: the one table of methods and roles;
//! * [`volume_keys`]: data keys of volumes, wrapped under the secrets;
//! * [`audit`]: records that are chained by their hashes;
//! * [`credentials`]: the command line options of clients.

pub mod audit;
pub mod authority;
pub mod credentials;
mod der;
pub mod join;
pub mod keyring;
pub mod permissions;
pub mod principal;
pub mod secret;
mod text;
pub mod token;
pub mod verify;
pub mod volume_keys;

pub use credentials::Credentials;
pub use keyring::Keyring;
pub use principal::{Principal, Role};
pub use secret::{Secret, Secrets};

/// Why something of this crate could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// A file can not be read, written or used.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// A certificate can not be made or understood.
    #[error("{0}")]
    Certificate(String),
    /// A text is none of ours, or over.
    #[error("{0}")]
    Invalid(String),
}

impl SecurityError {
    fn file(path: &std::path::Path, why: impl ToString) -> SecurityError {
        SecurityError::File { path: path.display().to_string(), why: why.to_string() }
    }
}
