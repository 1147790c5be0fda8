//! The words of `basalt snapshot`, and of going back to one.

use super::{Change, label, new_id, volume_id};
use clap::{Args, Subcommand};

const AFTER_CREATE: &str = "\
A snapshot is one point in time, taken without a pause whether the volume is attached or not: writes
answered before the command are in it, writes submitted after it ended are not. What a file system
holds in its memory is not: it looks like one after a power cut. It takes the space of what is
overwritten since.

Snapshots of several volumes are taken together, at one point in time, wherever the volumes are
attached: if a write is in one of them, so is every write that was answered before it was submitted.
If that can not be had within a second, because a group has no leader, none of them is kept.

Examples:
  basalt snapshot create demo@monday
  basalt snapshot create db@before-upgrade --label by=ops
  basalt snapshot create db@nightly log@nightly";

const AFTER_DELETE: &str = "\
What only the snapshot holds is given back. One that was taken together with others is deleted with
them (--together), or alone if that is said (--alone).

Examples:
  basalt snapshot delete demo@monday
  basalt snapshot delete db@nightly --together";

const AFTER_DIFF: &str = "\
Tells which bytes of a volume differ between two of its snapshots, as extents: data, to be read from
the newer one, or zeros. FROM '-' stands for the beginning: everything that holds data. Without TO the
volume is compared as it is now: a snapshot is taken for that and deleted afterwards. The bytes
themselves are read from the newer snapshot, for instance with basalt-attach.

If it breaks off, --offset goes on from the end of the last extent.

Examples:
  basalt snapshot diff demo - monday -o json         # for a first, full backup
  basalt snapshot diff demo monday tuesday -o json   # for the next one
  basalt-attach --volume demo@tuesday --listen 127.0.0.1:10810";

pub(super) const AFTER_REVERT: &str = "\
The volume becomes what it was when the snapshot was taken. It may not be attached: a client would not
notice that its caches are wrong. Snapshots that are later than the one gone back to can not be kept,
and are deleted if that is said (--drop-later). To keep both, make a new volume from the snapshot instead.

Examples:
  basalt volume detach db && basalt volume revert db before-upgrade
  basalt volume revert db monday --drop-later";

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep volumes as they are now.
    #[command(after_help = AFTER_CREATE)]
    Create {
        /// The volume and the snapshot's name: 1 to 63 of a-z, 0-9 and '-', a letter first. Several of
        /// different volumes are one point in time together.
        #[arg(value_name = "VOLUME@NAME", value_parser = new_snapshot, required = true)]
        names: Vec<SnapshotName>,
        /// A label; may be given several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Return at once, not when the snapshot is complete.
        #[arg(long)]
        no_wait: bool,
        /// Names the change: repeating it under the same id takes effect once. Default: an id drawn
        /// anew.
        #[arg(long, value_name = "ID")]
        request_id: Option<String>,
    },
    /// List a volume's snapshots, oldest first.
    List {
        /// The volume.
        #[arg(value_parser = volume_id)]
        volume: String,
    },
    /// Show one snapshot.
    Show {
        /// The volume and the snapshot's name.
        #[arg(value_name = "VOLUME@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
    },
    /// Tell what differs between two snapshots.
    #[command(after_help = AFTER_DIFF)]
    Diff(Diff),
    /// Delete a snapshot, for good.
    #[command(after_help = AFTER_DELETE)]
    Delete {
        /// The volume and the snapshot's name.
        #[arg(value_name = "VOLUME@NAME", value_parser = snapshot_name)]
        name: SnapshotName,
        /// Delete all snapshots that were taken together with it too.
        #[arg(long, conflicts_with_all = ["alone", "etag"])]
        together: bool,
        /// Delete it although others that were taken together with it stay.
        #[arg(long)]
        alone: bool,
        /// Return at once, not when the snapshot is gone.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        change: Change,
    },
}

/// What is compared.
#[derive(Clone, Debug, Args)]
pub(crate) struct Diff {
    /// The volume.
    #[arg(value_parser = volume_id)]
    pub volume: String,
    /// The older snapshot's name; '-' for the beginning.
    pub from: String,
    /// The newer snapshot's name; the volume as it is now without one.
    pub to: Option<String>,
    /// From which byte of the volume on.
    #[arg(long, default_value = "0", value_name = "BYTES")]
    pub offset: u64,
}

/// The name of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotName {
    /// Its volume's.
    pub volume: String,
    /// Its own.
    pub id: String,
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.id)
    }
}

pub(super) fn snapshot_name(text: &str) -> Result<SnapshotName, String> {
    let parts = text
        .strip_prefix("volumes/")
        .and_then(|rest| rest.split_once("/snapshots/"))
        .or_else(|| text.split_once('@'));
    let good = |part: &str| !part.is_empty() && !part.contains(['/', '@']);
    match parts {
        Some((volume, id)) if good(volume) && good(id) => {
            Ok(SnapshotName { volume: volume.to_owned(), id: id.to_owned() })
        }
        _ => Err("write the volume's and the snapshot's name, such as demo@monday".to_owned()),
    }
}

fn new_snapshot(text: &str) -> Result<SnapshotName, String> {
    let name = snapshot_name(text)?;
    new_id(name.id.clone())?;
    Ok(name)
}
