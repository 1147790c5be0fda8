//! Words about who may ask: secrets, identities, tokens, records.

use basalt_security::Role;
use clap::Subcommand;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) const AFTER_SECRET: &str = "\
Whoever holds the secret is the cluster: nodes know each other by it, and everything that is issued follows
from it. Make it once, and give every node a copy over a way that you trust.

A secret follows another without a gap, if every node has taken a step before the next one is made:
  basalt secret add FILE        # the next one, which is accepted from now on; copy FILE to all nodes
  basalt secret promote FILE    # it signs from now on; copy FILE to all nodes
  basalt secret drop FILE       # the old one is accepted no more; copy FILE to all nodes
Nodes read the file within a second, and at once on SIGHUP.";

pub(crate) const AFTER_IDENTITY: &str = "\
Examples:
  basalt identity issue alice --role operator --ttl 30d --out alice
  basalt --ca alice/ca-cert.pem --cert alice/client-cert.pem --key alice/client-key.pem volume list";

pub(crate) const AFTER_TOKEN: &str = "\
Examples:
  basalt token create ci --role operator --ttl 90d > ci.token
  basalt --ca ca-cert.pem --token-file ci.token volume list
  basalt token revoke ci";

pub(crate) const AFTER_AUDIT: &str = "\
Every node records the calls that changed something, or were to, in a chain of its own. What a chain can not show is
that its end is missing: keep what 'verify' prints, and compare.

Examples:
  basalt audit list --limit 20
  basalt audit verify
  basalt audit verify --folder /var/lib/basalt/audit";

pub(crate) const AFTER_NODE_TOKEN: &str = "\
One machine gets the secret with it, once, within the time, and is added to the cluster:

  basaltd --data-dir ... --device ... --join \"$(basalt node token)@n1:7100\"";

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Make a new secret, in a file that does not exist yet.
    New {
        /// The file.
        file: PathBuf,
    },
    /// Add the next secret to a file: it is accepted, and does not sign yet.
    Add {
        /// The file.
        file: PathBuf,
    },
    /// Have the secret that was added sign.
    Promote {
        /// The file.
        file: PathBuf,
    },
    /// Drop all secrets but the one that signs.
    Drop {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Issue a certificate. It needs the secret (--secret-file), and no cluster.
    Issue {
        /// Whose it is.
        name: String,
        /// What its holder may do: viewer, operator, admin or csi.
        #[arg(long, value_parser = role)]
        role: Role,
        /// How long it holds, such as 30d or 12h; 10 years at most.
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = ttl)]
        ttl: Duration,
        /// Folder for ca-cert.pem, client-cert.pem and client-key.pem.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Print the authorities' certificates, for clients that show a token. It needs the secret, and no cluster.
    Authority,
    /// Who the cluster says that you are.
    Show,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token, and print it: it is not kept, and can not be shown again.
    Create {
        /// Its name.
        name: String,
        /// What its holder may do: viewer, operator, admin or csi.
        #[arg(long, value_parser = role)]
        role: Role,
        /// How long it holds, such as 90d or 12h; 10 years at most.
        #[arg(long, value_name = "TIME", default_value = "90d", value_parser = ttl)]
        ttl: Duration,
    },
    /// The tokens, without what they are made of.
    List,
    /// Take a token back.
    Revoke {
        /// Its name.
        name: String,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// What was changed, by whom, on every node.
    List {
        /// Name of a node. Default: all.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// The last so many records of each node.
        #[arg(long, value_name = "COUNT", default_value = "100")]
        limit: usize,
    },
    /// Whether the records are as they were written; names the first that is not.
    Verify {
        /// Name of a node. Default: all.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Look at the records in this folder, 'audit' in a node's data directory, and ask nobody.
        #[arg(long, value_name = "DIR", conflicts_with = "node")]
        folder: Option<PathBuf>,
    },
}

const TTL_MAX: Duration = Duration::from_secs(3650 * 86_400);

fn role(text: &str) -> Result<Role, String> {
    match text.parse()? {
        Role::Node => Err("a node issues its own certificate; give it the secret".to_owned()),
        role => Ok(role),
    }
}

/// A time with a unit.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: give a number and s, m, h or d, such as 30d");
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let time = number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)?;
    if time.is_zero() || time > TTL_MAX {
        return Err(format!("{text} is not from 1s to 3650d"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_roles_are_read() {
        assert_eq!(ttl("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in ["", "0s", "5", "5w", "4000d", "99999999999999999999d", "ä"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
        assert_eq!(role("csi"), Ok(Role::Csi));
        assert!(role("node").is_err() && role("root").is_err());
    }
}
