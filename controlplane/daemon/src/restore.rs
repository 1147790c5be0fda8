//! A node goes over to a state that was prepared from a backup (`--restore`), before it starts.
//!
//! The data directory may be lost or not; the device is there. What the node says of the metadata group from then on is
//! of a new one, which begins at the restored state: its term and index stand in the store, and whatever the device
//! or the store has of a lower term is not of it. All nodes take the same file. Nothing on the device is changed.

use crate::engine::identity_of;
use crate::options::Options;
use anyhow::{Context, Result, anyhow, bail, ensure};
use basalt_api::v1::ClusterSpec;
use basalt_meta::backup::{self, Backup};
use basalt_meta::{RestoreHeader, RestoreRecord};
use basalt_store::{BeginningRecord, Identity, Store};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::SUPERBLOCK_OFFSETS;
use basalt_wire::disk::superblock::{Superblock, choose};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest file that is taken.
const FILE_MAX: u64 = 1 << 30;

/// Takes the file's state, unless it was taken already. Blocks.
///
/// # Errors
/// If the file is not whole or not prepared, or the node is none of its cluster, or knows of something later.
pub fn take(options: &Options, store: &Store, path: &Path) -> Result<()> {
    let Backup { header, state, .. } =
        read(path).with_context(|| format!("--restore {}", path.display()))?;
    let RestoreHeader { record, forced, .. } = header.restore.ok_or_else(|| {
        anyhow!(
            "{} is a backup that nothing was raised in: prepare it once for all nodes with 'basalt cluster restore \
             {} --out FILE', and give each node that file",
            path.display(),
            path.display()
        )
    })?;
    let record = record.filter(|record| state.restored() == Some(record));
    let record = record.context("the file says another thing of its restore than its state")?;
    let spec = state.cluster().context("it is of no cluster")?;
    let identity = who(options, store, spec)?;
    let known = store.beginning()?;
    let own = crate::state::load(store, spec.id);
    let same = known.is_some_and(|known| known.term == record.term && known.index == record.index);
    if same && own.applied() >= record.index {
        tracing::info!(entry = record.index, "--restore: the state of the file was taken before");
        return Ok(());
    }
    check_later(&record, forced, known, own.applied())?;
    // First what makes the state count, which without it is asked of others; then the state.
    store.begin_anew(identity, BeginningRecord::new(record.term, record.index))?;
    store.save_metadata(state.chunks())?;
    tracing::warn!(
        entry = record.index,
        from = record.from_index,
        volumes = state.volume_count(),
        "--restore: the node goes on from the backup's state"
    );
    Ok(())
}

fn read(path: &Path) -> Result<Backup> {
    let length = std::fs::metadata(path)?.len();
    ensure!(length <= FILE_MAX, "it has {length} bytes: it is no backup");
    Ok(backup::read(&std::fs::read(path)?)?)
}

/// Refuses to go back behind what the node knows.
fn check_later(
    record: &RestoreRecord,
    forced: bool,
    known: Option<BeginningRecord>,
    applied: u64,
) -> Result<()> {
    if let Some(known) = known.filter(|known| known.term >= record.term) {
        bail!(
            "this node goes on from a restore that was prepared later, at {} microseconds since 1970: prepare the \
             file anew",
            known.term
        );
    }
    ensure!(
        applied < record.index,
        "this node's own state is of entry {applied}, behind the restore's {}: prepare the file anew, with a clock \
         that is right",
        record.index
    );
    // How much further its log goes is not known before it is opened.
    ensure!(
        forced || applied == 0,
        "this node has records of its own, as of entry {applied} at least, and the backup is of entry {}: what was \
         changed since would be undone. Nodes that lost theirs get them from it, if a majority of the metadata \
         group's voters is there; else prepare the file with --force",
        record.from_index
    );
    Ok(())
}

/// Which member of the cluster this node is: as its data directory says, else as its device does.
fn who(options: &Options, store: &Store, spec: &ClusterSpec) -> Result<Identity> {
    let known = store.identity()?;
    let (cluster, node) = match &known {
        Some(known) => (known.cluster, known.node),
        None => {
            let device = options.device_path();
            let superblock = superblock(&device).with_context(|| {
                format!("the data directory is blank, and so it is asked of {}", device.display())
            })?;
            (superblock.cluster.0, superblock.node.0)
        }
    };
    ensure!(
        cluster == spec.id,
        "this node is of cluster {cluster:016x}, and the backup of cluster {:016x}",
        spec.id
    );
    let member = spec.members.iter().find(|member| member.node == node);
    let member = member.with_context(|| {
        format!("this node is node {node}, which is no member of the cluster as of the backup")
    })?;
    let name = options.node_name().map_err(|e| anyhow!(e))?;
    ensure!(
        known.is_some() || name == member.name,
        "the device is that of '{}' (node {node}), and this node is '{name}': is it the right device?",
        member.name
    );
    let mut identity = identity_of(spec, node);
    identity.begun = true;
    // Without the data directory it holds what it founded: what came later, came in pages, and nothing leads to it.
    if let Some(known) = known {
        identity.replicas = known.replicas;
    }
    Ok(identity)
}

fn superblock(device: &Path) -> Result<Superblock> {
    let file = File::open(device)?;
    let copy = |at: u64| -> std::io::Result<_> {
        let mut block = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut block, at)?;
        Ok(Superblock::decode(&block))
    };
    choose(&[copy(SUPERBLOCK_OFFSETS[0])?, copy(SUPERBLOCK_OFFSETS[1])?]).map_err(|e| anyhow!(e))
}
