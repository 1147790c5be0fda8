//! Who may call what, at nodes that run: every method of the API in every role, and without any.

use anyhow::{Context, Result, ensure};
use basalt_api::FILE_DESCRIPTOR_SET;
use basalt_api::dial::{Channel, channel_as};
use basalt_api::error::{code_of, fact_of, reason_of};
use basalt_api::v1::ErrorReason;
use basalt_interop::cluster::{Cluster, Shape};
use basalt_interop::ports::listening;
use basalt_interop::process::{run, secret_file, work_dir};
use basalt_security::authority::{Authority, Subject};
use basalt_security::credentials::Token;
use basalt_security::keyring::Source;
use basalt_security::permissions::{Access, METRICS, Rule, TABLE, rule_of};
use basalt_security::secret::write_private;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use bytes::Buf;
use prost::Message;
use prost_types::FileDescriptorSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::tokio_stream::once;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(30);

/// Messages as the bytes that they are: nothing, here.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = ();
    type Decode = ();
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = ();
    type Error = Status;

    fn encode(&mut self, _item: (), _into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let left = from.remaining();
        from.advance(left);
        Ok(Some(()))
    }
}

/// Calls any method with an empty request, and says how that ended, or that a first answer came.
async fn call(channel: &Channel, method: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    let path = format!("/{method}").parse().expect("a path");
    let request = tonic::Request::new(once(()));
    let answer = client.streaming(request, path, Raw).await?;
    answer.into_inner().message().await.map(drop)
}

/// All methods of the API, as its own description names them.
fn methods() -> Vec<String> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("the API's description");
    let mut all = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            all.extend(service.method.iter().map(|method| format!("{name}/{}", method.name())));
        }
    }
    // What comes with libraries has no description here.
    let others = TABLE.iter().map(|rule| rule.method).filter(|one| one.starts_with("grpc."));
    all.extend(others.map(str::to_owned));
    all
}

/// Files of this test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Folder> {
        let folder = work_dir().join(format!("access-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Folder(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn subject(role: Role) -> Subject {
    let lifetime = Duration::from_secs(3600);
    Subject { name: format!("test-{role}"), role, addresses: Vec::new(), lifetime }
}

/// The credentials of a holder of a secret.
fn certified(secret: &Path, role: Role) -> Result<Credentials> {
    let keyring = Keyring::open(Source::Secret(secret.to_owned()), subject(role))?;
    Ok(Credentials { keyring: Some(Arc::new(keyring)), token: None })
}

/// Credentials that believe the cluster, with another certificate or none, and a token or none.
fn believing(
    own: Option<(PathBuf, PathBuf)>,
    token: Option<&str>,
    folder: &Folder,
) -> Result<Credentials> {
    let authority = folder.path("ca.pem");
    let secrets = Secrets::load(&secret_file())?;
    write_private(&authority, Authority::of(secrets.first())?.pem().as_bytes(), false)?;
    let keyring = Keyring::open(Source::Files { authority, own }, subject(Role::Viewer))?;
    let token = token.map(|text| Arc::new(Token::fixed(text.to_owned())));
    Ok(Credentials { keyring: Some(Arc::new(keyring)), token })
}

/// A certificate of another cluster, in files.
fn foreign(folder: &Folder, role: Role) -> Result<(PathBuf, PathBuf)> {
    let issued = Authority::of(Secrets::new().first())?.issue(&subject(role), SystemTime::now())?;
    let (cert, key) = (folder.path("foreign.pem"), folder.path("foreign-key.pem"));
    write_private(&cert, issued.chain_pem().as_bytes(), false)?;
    write_private(&key, issued.key_pem().as_bytes(), false)?;
    Ok((cert, key))
}

/// Holds one call against the table. Services of libraries may not be served.
fn judge(method: &str, who: &str, allowed: bool, outcome: Result<(), Status>) -> Result<()> {
    let code = outcome.as_ref().map_or_else(Status::code, |()| Code::Ok);
    let denied = matches!(code, Code::PermissionDenied | Code::Unauthenticated);
    ensure!(denied != allowed, "{method} as {who}, allowed: {allowed}: {outcome:?}");
    let served = code != Code::Unimplemented || method.starts_with("grpc.");
    ensure!(served, "{method} is not served: {outcome:?}");
    if let Err(status) = outcome.as_ref()
        && denied
    {
        let reason = reason_of(status).with_context(|| format!("{method} as {who}: no reason"))?;
        ensure!(code_of(reason) == code, "{method} as {who}: {status:?}");
        if reason == ErrorReason::PermissionDenied {
            let rule = rule_of(&format!("/{method}")).context("a method of the table")?;
            ensure!(fact_of(status, "permission").as_deref() == Some(rule.permission));
            let said = format!("Permission '{}' denied on resource", rule.permission);
            ensure!(status.message().starts_with(&said), "{status}");
        }
    }
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[test]
fn every_method_in_every_role() -> Result<()> {
    let cluster = Cluster::start_with("roles", &Shape { nodes: 1, ..Shape::default() })?;
    let folder = Folder::new("roles")?;
    let address = cluster.nodes[0].address();
    let all = methods();
    for method in &all {
        ensure!(rule_of(&format!("/{method}")).is_some(), "{method} does not stand in the table");
    }
    for rule in TABLE.iter().filter(|rule| rule.method != METRICS) {
        ensure!(all.iter().any(|one| one == rule.method), "there is no method {}", rule.method);
    }
    let mut callers = Vec::new();
    for role in Role::ALL {
        callers.push((
            format!("{role}, by certificate"),
            Some(role),
            certified(&secret_file(), role)?,
        ));
        if role != Role::Node {
            let (name, role_name) = (format!("t-{role}"), role.to_string());
            let made = cluster.basalt(&["token", "create", &name, "--role", &role_name])?;
            let token = made["token"].as_str().context("a token")?.to_owned();
            let shown = believing(None, Some(&token), &folder)?;
            callers.push((format!("{role}, by token"), Some(role), shown));
        }
    }
    callers.push(("nobody".to_owned(), None, believing(None, None, &folder)?));
    let unknown = basalt_security::token::create();
    callers.push(("an unknown token".to_owned(), None, believing(None, Some(&unknown), &folder)?));
    let runtime = runtime()?;
    runtime.block_on(async {
        for (who, role, credentials) in &callers {
            let channel = channel_as(&address, PATIENCE, credentials)?;
            for method in &all {
                let rule: &Rule = rule_of(&format!("/{method}")).context("a line")?;
                let allowed = match role {
                    Some(role) => rule.allows_role(*role),
                    None => rule.access == Access::Open,
                };
                judge(method, who, allowed, call(&channel, method).await)?;
            }
        }
        anyhow::Ok(())
    })?;
    // A method that does not exist tells nobody more than one that is denied.
    runtime.block_on(async {
        let admin = channel_as(&address, PATIENCE, &certified(&secret_file(), Role::Admin)?)?;
        let unknown = call(&admin, "basalt.v1.Admin/Unknown").await.expect_err("denied by default");
        ensure!(unknown.code() == Code::PermissionDenied, "{unknown}");
        anyhow::Ok(())
    })?;
    // A token that is revoked is unknown at once to the node that answered.
    cluster.basalt(&["token", "revoke", "t-admin"])?;
    let (who, _, credentials) =
        callers.iter().find(|one| one.0 == "admin, by token").context("it")?;
    runtime.block_on(async {
        let channel = channel_as(&address, PATIENCE, credentials)?;
        judge(
            "basalt.v1.Admin/GetCluster",
            who,
            false,
            call(&channel, "basalt.v1.Admin/GetCluster").await,
        )
    })?;
    cluster.finish()
}

#[test]
fn strangers_get_nothing_but_health_from_any_port() -> Result<()> {
    let cluster = Cluster::start("strangers")?;
    let folder = Folder::new("strangers")?;
    let runtime = runtime()?;
    let strangers = |role| -> Result<Vec<(&str, Credentials)>> {
        Ok(vec![
            ("in the clear", Credentials::default()),
            ("without a certificate", believing(None, None, &folder)?),
            ("of another cluster", believing(Some(foreign(&folder, role)?), None, &folder)?),
        ])
    };
    for node in &cluster.nodes {
        let ports = node.ports;
        let mut known = vec![ports.grpc, ports.data, ports.nbd];
        known.sort_unstable();
        let found = listening(node.process.id())?;
        ensure!(found == known, "{} listens on {found:?}, and should on {known:?}", node.name);
        for role in [Role::Node, Role::Admin] {
            for (who, credentials) in strangers(role)? {
                runtime.block_on(async {
                    let channel = channel_as(&node.address(), PATIENCE, &credentials)?;
                    for method in methods() {
                        let open = rule_of(&format!("/{method}")).map(|rule| rule.access);
                        if open == Some(Access::Open) {
                            continue;
                        }
                        let outcome = call(&channel, &method).await;
                        ensure!(outcome.is_err(), "{method} answered a stranger {who}");
                    }
                    anyhow::Ok(())
                })?;
            }
        }
    }
    cluster.finish()
}

#[test]
fn what_was_changed_is_recorded_and_a_changed_record_is_seen() -> Result<()> {
    let mut cluster = Cluster::start_with("audit", &Shape { nodes: 1, ..Shape::default() })?;
    cluster.basalt(&["volume", "create", "one", "--size", "64MiB"])?;
    cluster.basalt(&["volume", "list"])?;
    let folder = Folder::new("audit")?;
    let out = folder.path("viewer");
    let secret = secret_file().to_string_lossy().into_owned();
    let issue = ["--secret-file", &secret, "identity", "issue", "eve", "--role", "viewer", "--out"];
    run("basalt", &[&issue[..], &[&out.to_string_lossy()]].concat())?;
    let file = |name: &str| out.join(name).to_string_lossy().into_owned();
    let (ca, cert, key) = (file("ca-cert.pem"), file("client-cert.pem"), file("client-key.pem"));
    let eve = ["--ca", &ca, "--cert", &cert, "--key", &key, "--cluster", &cluster.addresses()];
    run("basalt", &[&eve[..], &["volume", "list"]].concat())?;
    let denied = run("basalt", &[&eve[..], &["volume", "delete", "one"]].concat());
    let denied = format!("{:#}", denied.expect_err("a viewer deletes nothing"));
    ensure!(denied.contains("Permission 'volumes.delete' denied"), "{denied}");

    let all = cluster.basalt(&["audit", "list"])?;
    let records = all["records"].as_array().context("records")?;
    let has = |method: &str, who: &str, resource: &str, code: &str| {
        records.iter().any(|record| {
            record["method"] == format!("basalt.v1.Admin/{method}")
                && record["principal"].as_str().is_some_and(|name| name.starts_with(who))
                && record["resource"].as_str().is_some_and(|text| text.contains(resource))
                && record["code"] == code
        })
    };
    ensure!(has("Bootstrap", "certificate:", "nodes=", "OK"), "{all}");
    ensure!(has("CreateVolume", "certificate:", "volume_id=\"one\"", "OK"), "{all}");
    ensure!(has("DeleteVolume", "certificate:eve", "volumes/one", "PERMISSION_DENIED"), "{all}");
    let reads = |record: &serde_json::Value| record["method"] == "basalt.v1.Admin/ListVolumes";
    ensure!(!records.iter().any(reads), "what changes nothing is not recorded: {all}");

    let good = cluster.basalt(&["audit", "verify"])?;
    ensure!(good["nodes"][0]["problem"].is_null(), "{good}");
    cluster.nodes[0].process.kill()?;
    cluster.nodes[0].process.restart()?;
    cluster.wait_healthy()?;
    let after = cluster.basalt(&["audit", "verify"])?;
    let count = |value: &serde_json::Value| value["nodes"][0]["records"].as_u64();
    ensure!(count(&after) >= count(&good), "a kill loses no record: {good}, {after}");

    let audit = cluster.nodes[0].folder.join("audit");
    let path = std::fs::read_dir(&audit)?.next().context("a file")??.path();
    let text = std::fs::read_to_string(&path)?;
    let at = text.find("certificate:eve").context("her record")?;
    let line = text[..at].lines().count();
    let mut bytes = text.into_bytes();
    bytes[at + 12] ^= 1;
    std::fs::write(&path, bytes)?;
    let offline = audit.to_string_lossy().into_owned();
    for words in [&["audit", "verify"][..], &["audit", "verify", "--folder", &offline]] {
        let broken = format!("{:#}", cluster.basalt(words).expect_err("one byte is another"));
        ensure!(broken.contains(&format!("record {line} was changed")), "{line}: {broken}");
    }
    cluster.finish()
}
