//! Encrypted volumes: what stands on the devices, who gets keys, and where keys are never to be seen.

use anyhow::{Context, Result, bail, ensure};
use basalt_api::dial::{channel_as, plain};
use basalt_api::v1::encryption_client::EncryptionClient;
use basalt_api::v1::{
    EncryptionStatus, GetEncryptionStatusRequest, IssueVolumeKeyRequest, IssueVolumeKeyResponse,
};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::process::{run, wait_until, work_dir};
use basalt_meta::{KeyRecord, backup};
use basalt_security::authority::Subject;
use basalt_security::keyring::Source;
use basalt_security::{Credentials, Keyring, Role, Secrets};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;
const KIB: usize = 1 << 10;

/// A folder that goes when the test is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Folder> {
        let folder = Folder(work_dir().join(format!("{name}-{}", std::process::id())));
        std::fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn cluster(name: &str, folder: &Folder) -> Result<Cluster> {
    let secret = PathBuf::from(folder.file("secret"));
    Secrets::new().create(&secret)?;
    let shape = Shape { secret: Some(secret), device: "512MiB", groups: 4, ..Shape::default() };
    Cluster::start_with(name, &shape)
}

/// Data that stand nowhere else.
fn pattern(word: &str) -> Vec<u8> {
    format!("{word} of process {:9} stands here in the clear; ", std::process::id())
        .into_bytes()
        .repeat(MIB / 16)[..MIB]
        .to_vec()
}

/// Writes with qemu-io; a pattern that is not there when it is read is an error.
fn io(uri: &str, commands: &[&str]) -> Result<()> {
    let mut words = vec!["-f", "raw", uri];
    commands.iter().for_each(|command| words.extend(["-c", command]));
    let said = run("qemu-io", &words)?;
    ensure!(!said.contains("verification failed"), "{said}");
    Ok(())
}

/// All of an export.
fn content(uri: &str, folder: &Folder) -> Result<Vec<u8>> {
    let copy = folder.file("copy");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, &copy])?;
    Ok(std::fs::read(copy)?)
}

/// The files below a folder that hold one of these byte strings.
fn holding(folder: &Path, wanted: &[Vec<u8>]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(holding(&path, wanted)?);
        } else if path.is_file() && holds(&path, wanted)? {
            found.push(path);
        }
    }
    Ok(found)
}

fn holds(path: &Path, wanted: &[Vec<u8>]) -> Result<bool> {
    let longest = wanted.iter().map(Vec::len).max().context("nothing is looked for")?;
    let mut file = File::open(path)?;
    let (mut window, mut kept) = (vec![0; 8 * MIB], 0);
    loop {
        let read = file.read(&mut window[kept..])?;
        if read == 0 {
            return Ok(false);
        }
        let end = kept + read;
        if wanted.iter().any(|one| contains(&window[..end], one)) {
            return Ok(true);
        }
        kept = end.min(longest - 1);
        window.copy_within(end - kept..end, 0);
    }
}

/// Looks for the first byte with the fast search of the library, then for the rest.
fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Calls of the service, as a holder of the cluster's secret.
struct Keys {
    runtime: tokio::runtime::Runtime,
    credentials: Credentials,
    address: String,
}

impl Keys {
    fn of(cluster: &Cluster, role: Role) -> Result<Keys> {
        let (name, lifetime) = ("keys".to_owned(), Duration::from_secs(3600));
        let subject = Subject { name, role, addresses: Vec::new(), lifetime };
        let keyring = Keyring::open(Source::Secret(cluster.secret()), subject)?;
        let credentials = Credentials { keyring: Some(Arc::new(keyring)), token: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Keys { runtime, credentials, address: cluster.nodes[0].address() })
    }

    fn issue(&self, name: &str, host: &str, epoch: u64) -> Result<IssueVolumeKeyResponse, String> {
        let (name, host) = (name.to_owned(), host.to_owned());
        let answer = self.runtime.block_on(async {
            let channel = channel_as(&self.address, PATIENCE, &self.credentials)?;
            let request = IssueVolumeKeyRequest { name, host, epoch };
            EncryptionClient::new(channel).issue_volume_key(request).await
        });
        answer.map(tonic::Response::into_inner).map_err(|status| plain(&status))
    }

    fn status(&self) -> Result<EncryptionStatus> {
        let answer = self.runtime.block_on(async {
            let channel = channel_as(&self.address, PATIENCE, &self.credentials)?;
            EncryptionClient::new(channel)
                .get_encryption_status(GetEncryptionStatusRequest {})
                .await
        });
        Ok(answer?.into_inner())
    }
}

/// The wrapped keys in the state of the metadata group.
fn wrapped(cluster: &Cluster, folder: &Folder) -> Result<Vec<KeyRecord>> {
    let file = folder.file("backup");
    let _ = std::fs::remove_file(&file);
    cluster.basalt(&["cluster", "backup", &file])?;
    Ok(backup::read(&std::fs::read(&file)?)?.state.keys().cloned().collect())
}

fn epoch(volume: &Value) -> Result<u64> {
    volume["epoch"].as_u64().with_context(|| format!("no epoch in {volume}"))
}

#[test]
fn devices_hold_nothing_in_the_clear_and_reads_are_right_everywhere() -> Result<()> {
    let folder = Folder::new("encryption")?;
    let mut cluster = cluster("encryption", &folder)?;
    cluster.basalt(&["volume", "create", "open", "--size", "64MiB"])?;
    let made = cluster.basalt(&["volume", "create", "safe", "--size", "64MiB", "--encrypted"])?;
    ensure!(made["encrypted"] == true && made["cipher"] == "AES-256-XTS", "{made}");
    ensure!(made["key_version"] == 1, "{made}");
    let (open, safe) = (pattern("an open block"), pattern("a secret block"));
    std::fs::write(folder.file("open"), &open)?;
    std::fs::write(folder.file("safe"), &safe)?;
    for volume in ["open", "safe"] {
        cluster.basalt(&["volume", "attach", volume, "--host", "node-2"])?;
        let uri = cluster.nodes[1].uri(volume);
        cluster.wait_served(&uri)?;
        let write = format!("write -s {} 5M 1M", folder.file(volume));
        // Whole blocks, parts of blocks in what was written and in holes, and what is unmapped again.
        let parts =
            ["write -P 0x5a 6292992 512", "write -P 0x77 20972032 1024", "read -P 0 20M 512"];
        io(&uri, &[&[write.as_str()][..], &parts, &["discard 5251072 4096"]].concat())?;
    }
    let mut wanted = vec![0; 64 * MIB];
    wanted[5 * MIB..6 * MIB].copy_from_slice(&safe);
    wanted[6292992..6292992 + 512].fill(0x5a);
    wanted[20972032..20972032 + KIB].fill(0x77);
    wanted[5251072..5251072 + 4 * KIB].fill(0);
    let uri = cluster.nodes[1].uri("safe");
    ensure!(content(&uri, &folder)? == wanted, "the host reads something else");

    // A snapshot, a clone of it, and a write behind it.
    cluster.basalt(&["snapshot", "create", "safe@then"])?;
    io(&uri, &["write -P 0x11 5M 64k"])?;
    let clone = cluster.basalt(&["volume", "create", "twin", "--from", "safe@then"])?;
    ensure!(clone["encrypted"] == true, "{clone}");
    let refused = cluster.basalt(&["snapshot", "create", "open@then"]).and_then(|_| {
        cluster.basalt(&["volume", "create", "no", "--from", "open@then", "--encrypted"])
    });
    let refused = format!("{:#}", refused.err().context("it was made")?);
    ensure!(refused.contains("is not encrypted") && refused.contains("copy the data"), "{refused}");
    let mut attached = cluster.attach("twin,safe@then", "elsewhere", false)?;
    for export in ["twin", "safe@then"] {
        ensure!(
            content(&attached.uri(export), &folder)? == wanted,
            "{export} reads something else"
        );
    }
    io(&attached.uri("twin"), &["write -P 0x22 5M 4k"])?;
    cluster.basalt(&["volume", "flatten", "twin", "--wait", "60"])?;
    wanted[5 * MIB..5 * MIB + 4 * KIB].fill(0x22);
    ensure!(content(&attached.uri("twin"), &folder)? == wanted, "the flattened clone reads wrong");
    attached.process.stop(PATIENCE)?;

    // On another node, and after a restart of all.
    wanted[5 * MIB..5 * MIB + 64 * KIB].fill(0x11);
    cluster.basalt(&["volume", "attach", "safe", "--host", "node-3", "--move"])?;
    let uri = cluster.nodes[2].uri("safe");
    cluster.wait_served(&uri)?;
    wait_until("the new host reads what was written", PATIENCE, || {
        Ok(content(&uri, &folder).is_ok_and(|found| found == wanted))
    })?;
    cluster.stop()?;
    cluster.restart()?;
    cluster.wait_served(&uri)?;
    ensure!(content(&uri, &folder)? == wanted, "it reads wrong after a restart");

    let marks = |text: &[u8]| vec![text[..48].to_vec()];
    let found = holding(cluster.folder(), &marks(&open))?;
    ensure!(found.len() >= 3, "the open volume's data are only in {found:?}");
    let found = holding(cluster.folder(), &marks(&safe))?;
    ensure!(found.is_empty(), "the encrypted volume's data are in {found:?}");
    cluster.finish()
}

#[test]
fn keys_are_given_to_sessions_seen_nowhere_else_and_erased() -> Result<()> {
    let folder = Folder::new("keys")?;
    let cluster = cluster("keys", &folder)?;
    cluster.basalt(&["class", "create", "vault", "--encrypted"])?;
    let made =
        cluster.basalt(&["volume", "create", "safe", "--size", "8MiB", "--class", "vault"])?;
    ensure!(made["encrypted"] == true, "{made}");
    let keys = Keys::of(&cluster, Role::Csi)?;
    let early = keys.issue("volumes/safe", "host", 0).err().context("nobody has it")?;
    ensure!(early.contains("is not attached"), "{early}");
    let attached = cluster.basalt(&["volume", "attach", "safe", "--host", "host"])?;
    let epoch = epoch(&attached)?;
    let issued = keys.issue("volumes/safe", "host", epoch).map_err(anyhow::Error::msg)?;
    ensure!((issued.key.len(), issued.cipher.as_str()) == (64, "AES-256-XTS"));
    for (host, epoch) in [("other", epoch), ("host", epoch + 1), ("host", 0)] {
        ensure!(
            keys.issue("volumes/safe", host, epoch).is_err(),
            "{host} with {epoch} got the key"
        );
    }
    let viewer = Keys::of(&cluster, Role::Viewer)?.issue("volumes/safe", "host", epoch);
    ensure!(viewer.is_err(), "a viewer got the key");
    cluster.basalt(&["snapshot", "create", "safe@then"])?;
    let of_snapshot =
        keys.issue("volumes/safe/snapshots/then", "", 0).map_err(anyhow::Error::msg)?;
    ensure!(of_snapshot.key == issued.key);
    let clone = cluster.basalt(&["volume", "create", "twin", "--from", "safe@then"])?;
    ensure!(clone["encrypted"] == true, "{clone}");

    let before = wrapped(&cluster, &folder)?;
    let [record] = before.as_slice() else { bail!("{} keys", before.len()) };
    let first = record.key.clone().context("a key")?;
    exchange_secret(&cluster, &keys, &first.secret)?;
    let after = wrapped(&cluster, &folder)?;
    let second = after[0].key.clone().context("a key")?;
    ensure!(
        second.secret != first.secret && second.wrapped != first.wrapped,
        "it is not wrapped anew"
    );
    let keys = Keys::of(&cluster, Role::Csi)?;
    let again = keys.issue("volumes/safe", "host", epoch).map_err(anyhow::Error::msg)?;
    ensure!(again.key == issued.key, "another key under the new secret");

    // Neither the key nor its wrapped forms are in anything that the cluster says, or writes as text; the key itself
    // is in no file at all.
    let secret: Vec<Vec<u8>> = [&issued.key, &first.wrapped, &second.wrapped]
        .iter()
        .flat_map(|key| forms(&key[12..44]))
        .collect();
    for words in SAID {
        let said = cluster.basalt(words).or_else(|_| cluster.basalt(&["cluster", "status"]))?;
        let said = said.to_string();
        ensure!(
            !secret.iter().any(|form| contains(said.as_bytes(), form)),
            "{words:?} shows a key"
        );
    }
    for node in &cluster.nodes {
        for log in logs(cluster.folder(), &node.name)? {
            ensure!(!holds(&log, &secret)?, "a key is in {}", log.display());
        }
    }
    let clear = [&issued.key[..32], &issued.key[32..]].map(<[u8]>::to_vec);
    let found = holding(cluster.folder(), &clear)?;
    ensure!(found.is_empty(), "the key is in the clear in {found:?}");

    // It goes with the last volume that needs it, in the step that deletes that.
    cluster.basalt(&["volume", "flatten", "twin", "--wait", "60"])?;
    cluster.basalt(&["volume", "delete", "safe", "--yes", "--with-snapshots"])?;
    ensure!(wrapped(&cluster, &folder)?.len() == 1, "the clone has no key any more");
    cluster.basalt(&["volume", "delete", "twin", "--no-wait"])?;
    ensure!(wrapped(&cluster, &folder)?.is_empty(), "a key is left");
    cluster.finish()
}

/// What a cluster says of itself.
const SAID: &[&[&str]] = &[
    &["volume", "list"],
    &["volume", "show", "safe"],
    &["volume", "show", "twin"],
    &["snapshot", "list", "safe"],
    &["class", "list"],
    &["get", "volumes"],
    &["get", "events"],
    &["get", "operations"],
    &["audit", "list", "--limit", "1000"],
    &["cluster", "status"],
    &["doctor", "--all"],
];

/// Bytes as they stand, in hexadecimal digits and in base64.
fn forms(bytes: &[u8]) -> [Vec<u8>; 3] {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed: Vec<String> = bytes[..12].iter().map(u8::to_string).collect();
    [bytes.to_vec(), hex.into_bytes(), listed.join(", ").into_bytes()]
}

/// The logs of a node, and the records of its audit.
fn logs(folder: &Path, node: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && name.ends_with(".log") {
            found.push(path.clone());
        }
        if path.is_dir() && name.contains(node) {
            let audit = path.join("audit");
            if audit.is_dir() {
                found.extend(std::fs::read_dir(audit)?.flatten().map(|entry| entry.path()));
            }
        }
    }
    ensure!(found.len() > 1, "no logs and no audit in {}", folder.display());
    Ok(found)
}

/// Takes the three steps to another secret, each when the cluster is ready for it.
fn exchange_secret(cluster: &Cluster, keys: &Keys, old: &[u8]) -> Result<()> {
    let file = cluster.secret().to_string_lossy().into_owned();
    let old: String = old.iter().map(|byte| format!("{byte:02x}")).collect();
    let waits = |what: &str, holds: &dyn Fn(&EncryptionStatus) -> bool| {
        wait_until(what, PATIENCE, || {
            keys.credentials.refresh()?;
            Ok(keys.status().is_ok_and(|status| holds(&status)))
        })
    };
    run("basalt", &["secret", "add", &file])?;
    waits("the next secret is known", &|status| status.secrets.len() == 2)?;
    run("basalt", &["secret", "promote", &file])?;
    waits("keys are wrapped anew", &|status| {
        let of_old = status.secrets.iter().find(|secret| secret.id == old);
        of_old.is_some_and(|secret| !secret.signs && secret.keys == 0)
            && status.sentence.contains("none of the others is needed")
    })?;
    run("basalt", &["secret", "drop", &file])?;
    waits("the old secret is gone", &|status| status.secrets.len() == 1)
}
