//! Who calls: a name and a role.

use crate::SecurityError;
use crate::der;
use rustls::pki_types::CertificateDer;
use std::fmt;
use std::str::FromStr;

/// What somebody may do; the table of [`crate::permissions`] says what that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks at everything but tokens and audit records.
    Viewer,
    /// Handles volumes and snapshots.
    Operator,
    /// Does everything that people do.
    Admin,
    /// A node of the cluster.
    Node,
    /// A host that attaches volumes, or its CSI driver.
    Csi,
}

impl Role {
    /// All roles, in the order of the columns of the table.
    pub const ALL: [Role; 5] = [Role::Viewer, Role::Operator, Role::Admin, Role::Node, Role::Csi];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
            Role::Node => "node",
            Role::Csi => "csi",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Role, String> {
        let found = Role::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| {
            let all = Role::ALL.map(Role::as_str).join(", ");
            format!("'{}' is no role; there are {all}", text.escape_debug())
        })
    }
}

/// Whether `name` may name a principal: what a node or a host may be called.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !name.is_empty() && name.len() <= 63 && name.chars().all(good) {
        return Ok(());
    }
    Err(format!(
        "'{}' can not be a name: use 1 to 63 letters, digits, '-', '_', '.' and ':'",
        name.escape_debug()
    ))
}

/// How somebody has shown who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By a certificate of the cluster's authority.
    Certificate,
    /// By a bearer token.
    Token,
    /// By a token with which a machine joins.
    JoinToken,
    /// Not at all: the node was started so.
    Insecure,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The name in the certificate, or of the token.
    pub name: String,
    /// What it may do; nothing stands for the one thing that a joining machine may do.
    pub role: Option<Role>,
    /// How it is known.
    pub means: Means,
}

impl Principal {
    /// Everybody, at a node that authenticates nobody.
    pub fn insecure() -> Principal {
        Principal { name: "anybody".to_owned(), role: None, means: Means::Insecure }
    }

    /// The role's name for people.
    pub fn role_name(&self) -> &'static str {
        match (self.role, self.means) {
            (Some(role), _) => role.as_str(),
            (None, Means::Insecure) => "all",
            (None, _) => "none",
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let means = match self.means {
            Means::Certificate => "certificate",
            Means::Token => "token",
            Means::JoinToken => "join-token",
            Means::Insecure => "insecure",
        };
        write!(f, "{means}:{}", self.name)
    }
}

/// What a certificate of the cluster's authority says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Name of the authority that issued it.
    pub authority: String,
    /// Until when it holds, in seconds since 1970.
    pub not_after: u64,
}

impl Holder {
    /// Reads a certificate. Whether it is to be believed is not asked here.
    ///
    /// # Errors
    /// If it is none that an authority of ours would issue.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Holder, SecurityError> {
        let wrong = |what: &str| SecurityError::Certificate(format!("the certificate {what}"));
        let parts = der::certificate(certificate).ok_or_else(|| wrong("can not be read"))?;
        let name = parts.subject.common.ok_or_else(|| wrong("names no holder"))?;
        check_name(&name).map_err(SecurityError::Certificate)?;
        let role = parts.subject.unit.ok_or_else(|| wrong("names no role"))?;
        let role = role.parse().map_err(SecurityError::Certificate)?;
        let authority = parts.issuer.common.ok_or_else(|| wrong("names no authority"))?;
        let not_after = parts.not_after;
        Ok(Holder { name, role, authority, not_after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_have_names() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().unwrap_err().contains("viewer, operator"));
    }

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "node-1", "10.0.0.1:7100", &"x".repeat(63)] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bytes in [&b""[..], b"nonsense", &[0x30, 0x82, 0xff, 0xff, 0]] {
            assert!(Holder::of(&CertificateDer::from(bytes.to_vec())).is_err());
        }
    }
}
