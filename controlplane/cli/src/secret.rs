//! `basalt secret` and `basalt identity`: what the holder of the secret does without a cluster.

use crate::options::{IdentityCommand, Options, SecretCommand};
use crate::{Failure, output};
use basalt_api::dial;
use basalt_api::v1::IdentifyRequest;
use basalt_api::v1::security_client::SecurityClient;
use basalt_security::authority::{Authority, Subject};
use basalt_security::secret::write_private;
use basalt_security::volume_keys;
use basalt_security::{Role, Secrets, SecurityError};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, SystemTime};
use tonic::Status;

pub(crate) fn change(options: &Options, command: &SecretCommand) -> Result<(), Failure> {
    let rewritten = |file: &Path, next: fn(&Secrets) -> Result<Secrets, String>| {
        let next = next(&Secrets::load(file)?).map_err(SecurityError::Invalid)?;
        next.replace(file)?;
        Ok::<_, SecurityError>(next)
    };
    let (file, secrets) = match command {
        SecretCommand::New { file } => {
            let secrets = Secrets::new();
            secrets.create(file)?;
            (file, secrets)
        }
        SecretCommand::Add { file } => (file, rewritten(file, Secrets::with_next)?),
        SecretCommand::Promote { file } => (file, rewritten(file, Secrets::promoted)?),
        SecretCommand::Drop { file } => (file, rewritten(file, Secrets::only_first)?),
    };
    let names: Vec<String> = secrets
        .iter()
        .map(|secret| Authority::of(secret).map(|authority| authority.name().to_owned()))
        .collect::<Result<_, _>>()?;
    let ids: Vec<String> =
        secrets.iter().map(|secret| volume_keys::shown(&volume_keys::id_of(secret))).collect();
    let document = json!({ "file": file, "signs": names[0], "accepted": names, "ids": ids });
    output::write(options.output, &document, || {
        let others = names.len() - 1;
        let mut text =
            format!("{}: '{}' signs, {others} other(s) accepted", file.display(), names[0]);
        match command {
            SecretCommand::Promote { .. } => text.push_str(
                "\nkeys of encrypted volumes are wrapped anew when all nodes have the file: drop the old secret when \
                 'basalt doctor --all' says that all of them are",
            ),
            SecretCommand::Drop { .. } => text.push_str(
                "\nif 'basalt doctor' says that keys are wrapped under a secret that is missing, put the former file \
                 back",
            ),
            _ => {}
        }
        text
    })
}

/// What needs the secret and no cluster; whether it was that.
pub(crate) fn issue(options: &Options, command: &IdentityCommand) -> Result<bool, Failure> {
    match command {
        IdentityCommand::Issue { name, role, ttl, out } => {
            let authority = Authority::of(secrets(options)?.first())?;
            let subject =
                Subject { name: name.clone(), role: *role, addresses: Vec::new(), lifetime: *ttl };
            write_identity(options, &authority, &subject, out)?;
            Ok(true)
        }
        IdentityCommand::Authority => {
            let secrets = secrets(options)?;
            let all: Result<String, SecurityError> =
                secrets.iter().map(|one| Ok(Authority::of(one)?.pem())).collect();
            output::print(all?.as_bytes())?;
            Ok(true)
        }
        IdentityCommand::Show => Ok(false),
    }
}

fn secrets(options: &Options) -> Result<Secrets, Failure> {
    let Some(file) = &options.credentials.secret_file else {
        let text = "this needs the cluster's secret: give --secret-file";
        return Err(Failure::Status(Status::invalid_argument(text)));
    };
    Ok(Secrets::load(file)?)
}

fn write_identity(
    options: &Options,
    authority: &Authority,
    subject: &Subject,
    out: &Path,
) -> Result<(), Failure> {
    let issued = authority.issue(subject, SystemTime::now())?;
    std::fs::create_dir_all(out)
        .map_err(|e| SecurityError::File { path: out.display().to_string(), why: e.to_string() })?;
    // The names under which NBD clients look for them, too.
    for (name, text) in [
        ("ca-cert.pem", authority.pem()),
        ("client-cert.pem", issued.chain_pem()),
        ("client-key.pem", issued.key_pem()),
    ] {
        write_private(&out.join(name), text.as_bytes(), false)?;
    }
    let since = issued.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let until = output::time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let (name, role) = (&subject.name, subject.role.as_str());
    let document = json!({ "name": name, "role": role, "folder": out, "expire_time": until });
    output::write(options.output, &document, || {
        format!("{}: a certificate of '{name}', {role}, until {until}", out.display())
    })
}

/// `basalt identity show`.
pub(crate) async fn show(options: &Options, cluster: &dial::Cluster) -> Result<(), Failure> {
    let who = cluster
        .call_through(|channel| async move {
            SecurityClient::new(channel).identify(IdentifyRequest {}).await
        })
        .await?;
    let document = json!({ "name": who.name, "role": who.role, "means": who.means });
    output::write(options.output, &document, || {
        output::table(&["NAME", "ROLE", "KNOWN BY"], &[vec![who.name, who.role, who.means]])
    })
}

/// The name and role of whoever asks with the secret.
pub(crate) fn own_name() -> (String, Role) {
    let user = std::env::var("USER").unwrap_or_default();
    let good = basalt_security::principal::check_name(&user).is_ok();
    (if good { user } else { "cli".to_owned() }, Role::Admin)
}
