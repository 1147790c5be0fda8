//! A new machine joins with a token: it gets the cluster's secret, and asks to be added.

use crate::daemon::Daemon;
use anyhow::{Context, Result, anyhow};
use basalt_api::dial;
use basalt_api::v1::security_client::SecurityClient;
use basalt_api::v1::{AddNodeRequest, AdmitRequest};
use basalt_security::authority::Subject;
use basalt_security::credentials::Token;
use basalt_security::join::JoinToken;
use basalt_security::keyring::Source;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

const ADMIT: Duration = Duration::from_secs(20);
/// A node that is added formats its device.
const ADD: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_secs(2);

/// `TOKEN@HOST:PORT`: a join token, and a node of the cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinOption {
    token: JoinToken,
    /// The node's gRPC address.
    pub address: String,
}

impl std::fmt::Debug for JoinOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret as long as it holds.
        write!(f, "JoinOption({})", self.address)
    }
}

impl FromStr for JoinOption {
    type Err = String;

    fn from_str(text: &str) -> Result<JoinOption, String> {
        let (token, address) =
            text.split_once('@').filter(|(_, address)| address.contains(':')).ok_or(
                "give TOKEN@HOST:PORT: a token of 'basalt node token', and a node's gRPC address",
            )?;
        let token = JoinToken::parse(token).map_err(|problem| problem.to_string())?;
        Ok(JoinOption { token, address: address.to_owned() })
    }
}

/// Gets the secret, and writes it to a file.
///
/// # Errors
/// If the cluster is not the one that the token is of, or does not take it.
pub async fn get_secret(join: &JoinOption, name: &str, file: &Path) -> Result<()> {
    let subject =
        Subject { name: name.to_owned(), role: Role::Node, addresses: Vec::new(), lifetime: ADMIT };
    let keyring = Keyring::open(Source::Fingerprint(join.token.fingerprint), subject)?;
    let token = Token::fixed(join.token.text());
    let credentials =
        Credentials { keyring: Some(Arc::new(keyring)), token: Some(Arc::new(token)) };
    let channel = dial::channel_as(&join.address, ADMIT, &credentials)
        .map_err(|status| anyhow!("--join: {}", dial::plain(&status)))?;
    let answer = SecurityClient::new(channel).admit(AdmitRequest {}).await;
    let answer = answer.map_err(|status| {
        anyhow!("--join: the node at {} gives no secret: {}", join.address, dial::plain(&status))
    })?;
    let secrets = Secrets::parse(&answer.into_inner().secrets)
        .map_err(|why| anyhow!("--join: what the cluster gave can not be used: {why}"))?;
    secrets.create(file).context("--join: the secret can not be kept")?;
    tracing::info!(file = %file.display(), "the cluster's secret is kept");
    Ok(())
}

/// Has the cluster add this node, as soon as it can. A refusal ends it: the node then waits for an operator.
pub async fn ask_to_be_added(daemon: Arc<Daemon>, join: JoinOption) {
    let own = match daemon.options.advertised(daemon.options.listen) {
        Ok(own) => own,
        Err(why) => return tracing::error!("this node can not be added: {why}"),
    };
    while daemon.engine().is_err() {
        match add(&join.address, &own).await {
            Ok(()) => return,
            Err(status) if passes(status.code()) => {
                tracing::warn!("the cluster does not add this node yet: {}", dial::plain(&status));
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => {
                return tracing::error!(
                    "the cluster does not add this node: {}",
                    dial::plain(&status)
                );
            }
        }
    }
}

async fn add(cluster: &str, own: &str) -> Result<(), Status> {
    let request = AddNodeRequest { address: own.to_owned(), replaces: String::new() };
    dial::admin(cluster, ADD)?.add_node(request).await.map(drop)
}

/// Whether another attempt may have another answer.
fn passes(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_and_an_address_are_wanted() {
        let token = JoinToken::create(&Secrets::new(), 1).expect("made").text();
        let join: JoinOption = format!("{token}@n1:7100").parse().expect("good");
        assert_eq!((join.address.as_str(), join.token.text()), ("n1:7100", token.clone()));
        assert!(!format!("{join:?}").contains(&token));
        for bad in ["", "n1:7100", &token, &format!("{token}@n1"), "x@n1:7100"] {
            assert!(bad.parse::<JoinOption>().is_err(), "{bad}");
        }
    }
}
