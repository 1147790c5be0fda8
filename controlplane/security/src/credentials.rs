//! The credentials of a client, as its command line names them.

use crate::SecurityError;
use crate::authority::Subject;
use crate::keyring::{Keyring, LIFETIME, Source};
use crate::principal::Role;
use crate::secret::Stamp;
use crate::token;
use clap::Args;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

/// What a client shows to a cluster. Nothing is for one that authenticates nobody.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Certificates; without them connections are in the clear.
    pub keyring: Option<Arc<Keyring>>,
    /// A bearer token.
    pub token: Option<Arc<Token>>,
}

/// A bearer token, and the file that it comes from.
#[derive(Debug)]
pub struct Token {
    file: Option<PathBuf>,
    now: RwLock<(Option<Stamp>, String)>,
}

impl Token {
    /// A token that does not change.
    pub fn fixed(text: String) -> Token {
        Token { file: None, now: RwLock::new((None, text)) }
    }

    fn load(path: PathBuf) -> Result<Token, SecurityError> {
        let stamp = Stamp::of(&path);
        let text = token::load(&path)?;
        Ok(Token { file: Some(path), now: RwLock::new((stamp, text)) })
    }

    /// The token.
    pub fn text(&self) -> String {
        self.now.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    fn refresh(&self) -> Result<(), SecurityError> {
        let Some(path) = &self.file else { return Ok(()) };
        let stamp = Stamp::of(path);
        if stamp == self.now.read().unwrap_or_else(PoisonError::into_inner).0 {
            return Ok(());
        }
        let text = token::load(path)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = (stamp, text);
        Ok(())
    }
}

impl Credentials {
    /// Reads again what changed, and renews what is due.
    ///
    /// # Errors
    /// If what is new can not be used; what was before stays in use.
    pub fn refresh(&self) -> Result<(), SecurityError> {
        if let Some(keyring) = &self.keyring {
            keyring.refresh(SystemTime::now())?;
        }
        self.token.as_ref().map_or(Ok(()), |token| token.refresh())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keyring.is_none() && self.token.is_none()
    }
}

/// How a client shows who it is.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Who asks")]
pub struct CredentialOptions {
    /// The cluster's secret: the program issues a certificate for itself.
    #[arg(long, global = true, env = "BASALT_SECRET_FILE", value_name = "FILE")]
    pub secret_file: Option<PathBuf>,

    /// Certificate of the cluster's authority, PEM; with --cert and --key, or a token.
    #[arg(long, global = true, env = "BASALT_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Certificate of the one who asks, PEM ('basalt identity issue').
    #[arg(long, global = true, env = "BASALT_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// Private key of the certificate, PEM.
    #[arg(long, global = true, env = "BASALT_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// File with a token ('basalt token create'); the variable BASALT_TOKEN holds a token itself.
    #[arg(long, global = true, env = "BASALT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// The variable that holds a token itself. It is no option: a command line can be seen by others.
const TOKEN: &str = "BASALT_TOKEN";

impl CredentialOptions {
    /// The credentials. A holder of the secret is what `role` and `name` say.
    ///
    /// # Errors
    /// If options do not fit together, or a file can not be used.
    pub fn credentials(&self, name: &str, role: Role) -> Result<Credentials, SecurityError> {
        let named = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
        self.with_token(named, name, role)
    }

    fn with_token(
        &self,
        named: Option<String>,
        name: &str,
        role: Role,
    ) -> Result<Credentials, SecurityError> {
        let invalid = |why: &str| Err(SecurityError::Invalid(why.to_owned()));
        let token = match (&self.token_file, named) {
            (Some(path), _) => Some(Token::load(path.clone())?),
            (None, Some(text)) => {
                token::digest(&text)?;
                Some(Token::fixed(text))
            }
            (None, None) => None,
        };
        let own = match (&self.cert, &self.key) {
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            (None, None) => None,
            _ => return invalid("--cert and --key belong together: give both"),
        };
        let source = match (&self.ca, &self.secret_file) {
            // What was said in detail counts: whoever holds the secret may want to ask as somebody else.
            (Some(authority), _) if own.is_some() || token.is_some() => {
                Some(Source::Files { authority: authority.clone(), own })
            }
            (Some(_), None) => {
                return invalid(
                    "--ca only says whom to believe; give --cert and --key, or a token",
                );
            }
            (None, _) if own.is_some() => {
                return invalid("--cert and --key need --ca, the cluster's authority");
            }
            (_, Some(secret)) => Some(Source::Secret(secret.clone())),
            (None, None) => None,
        };
        if source.is_none() && token.is_some() {
            return invalid("a token is shown only to a cluster that is known by --ca");
        }
        let subject =
            Subject { name: name.to_owned(), role, addresses: Vec::new(), lifetime: LIFETIME };
        let keyring = source.map(|source| Keyring::open(source, subject)).transpose()?;
        // The holder of the secret shows a certificate, which counts before any token.
        Ok(Credentials { keyring: keyring.map(Arc::new), token: token.map(Arc::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(options: CredentialOptions, token: Option<String>) -> String {
        options.with_token(token, "me", Role::Admin).expect_err("refused").to_string()
    }

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let file = || Some(PathBuf::from("/nonexistent/x"));
        let none = CredentialOptions::default;
        let empty = none().with_token(None, "me", Role::Admin).expect("nothing");
        assert!(empty.is_empty());
        assert!(why(CredentialOptions { ca: file(), ..none() }, None).contains("--cert and --key"));
        assert!(why(CredentialOptions { cert: file(), ..none() }, None).contains("give both"));
        let pair = CredentialOptions { cert: file(), key: file(), ..none() };
        assert!(why(pair.clone(), None).contains("need --ca"));
        let all = CredentialOptions { ca: file(), ..pair };
        assert!(why(all, None).contains("/nonexistent/x"));
        assert!(why(none(), Some(token::create())).contains("--ca"));
        assert!(why(none(), Some("hunter2".to_owned())).contains("no token"));
        let secret = CredentialOptions { secret_file: file(), ..none() };
        assert!(why(secret, None).contains("/nonexistent/x"));
    }
}
