//! `basalt cluster backup`.

use crate::options::Options;
use crate::{Failure, call, output};
use basalt_api::dial::Cluster;
use basalt_api::error::invalid;
use basalt_api::v1::{BackupMetadataRequest, BackupMetadataResponse};
use basalt_meta::backup::{self as format, Backup as Read};
use basalt_meta::{BackupHeader, StateReader};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Streaming;

/// The longest file that is taken for a backup: more than the largest cluster's takes.
const FILE_MAX: u64 = 1 << 30;

const AFTER: &str = "\
The file is checked while it comes, and written anew: one that is there is not touched. What it holds is the state
as of one moment, with every change that was answered before. 'verify' needs no cluster.

Examples:
  basalt cluster backup /backups/basalt-$(date +%F).meta
  basalt cluster backup verify /backups/basalt-2026-11-26.meta";

/// Keep everything but the volumes' data in a file: volumes, attachments, snapshots, members.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Backup {
    /// The file that is written; there must be none yet.
    #[arg(value_name = "FILE", required = true)]
    file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<BackupCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Read a backup and see whether it is whole.
    Verify {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    what: &Backup,
) -> Result<(), Failure> {
    match (&what.command, &what.file) {
        (Some(BackupCommand::Verify { file }), _) => verify(options, file),
        (None, Some(file)) => take(options, cluster, file).await,
        (None, None) => Err(invalid("file", "say which file is to be written").into()),
    }
}

fn failed(file: &Path, problem: impl std::fmt::Display) -> Failure {
    Failure::Output(format!("{}: {problem}", file.display()))
}

async fn take(options: &Options, cluster: &Cluster, path: &Path) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let file = opened.map_err(|problem| failed(path, problem))?;
    let written = write(cluster, file).await;
    if written.is_err() {
        // A part of one is worth nothing.
        let _ = std::fs::remove_file(path);
    }
    written.map_err(|failure| match failure {
        Failure::Output(problem) => failed(path, problem),
        other => other,
    })?;
    tell(options, path, &read(path)?)
}

async fn write(cluster: &Cluster, mut file: File) -> Result<(), Failure> {
    let output = |problem: &dyn std::fmt::Display| Failure::Output(problem.to_string());
    let mut pieces: Streaming<BackupMetadataResponse> =
        call!(cluster, backup_metadata, BackupMetadataRequest {})?;
    let mut reader = StateReader::default();
    let mut all = Vec::new();
    let mut version = String::new();
    while let Some(piece) = pieces.message().await? {
        reader.add(&piece.chunk).map_err(|problem| output(&problem))?;
        if !piece.version.is_empty() {
            version = piece.version;
        }
        all.push(piece.chunk);
    }
    let state = reader.finish().map_err(|problem| output(&problem))?;
    let cluster = state.cluster().map_or(0, |spec| spec.id);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let taken_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|problem| output(&problem));
    let header = BackupHeader { cluster, taken_ms, version, restore: None };
    put(&format::begin(&header))?;
    all.iter().try_for_each(|piece| put(&format::framed(piece)))?;
    file.sync_all().map_err(|problem| output(&problem))
}

fn verify(options: &Options, path: &Path) -> Result<(), Failure> {
    tell(options, path, &read(path)?)
}

/// Reads a backup from its file.
pub(crate) fn read(path: &Path) -> Result<Read, Failure> {
    let length = std::fs::metadata(path).map_err(|problem| failed(path, problem))?.len();
    if length > FILE_MAX {
        return Err(failed(path, format!("it has {length} bytes: it is no backup")));
    }
    let bytes = std::fs::read(path).map_err(|problem| failed(path, problem))?;
    format::read(&bytes).map_err(|problem| failed(path, problem))
}

fn tell(options: &Options, path: &Path, backup: &Read) -> Result<(), Failure> {
    let document = document(path, backup);
    output::write(options.output, &document, || text(&document))
}

fn document(path: &Path, backup: &Read) -> Value {
    let Read { header, state, digest } = backup;
    let digest = digest.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let snapshots: usize =
        state.volumes().map(|volume| state.snapshots_after(volume.number, None).count()).sum();
    json!({
        "file": path.display().to_string(),
        "cluster": format!("{:016x}", header.cluster),
        "taken_ms": header.taken_ms,
        "version": header.version,
        "entry": state.applied(),
        "nodes": state.cluster().map_or(0, |spec| spec.members.len()),
        "volumes": state.volumes().count(),
        "snapshots": snapshots,
        "sha256": digest,
    })
}

fn text(document: &Value) -> String {
    format!(
        "{}: cluster {} as of entry {}: {} nodes, {} volumes, {} snapshots\nsha256 {}",
        document["file"].as_str().unwrap_or_default(),
        document["cluster"].as_str().unwrap_or_default(),
        document["entry"],
        document["nodes"],
        document["volumes"],
        document["snapshots"],
        document["sha256"].as_str().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use crate::options::{ClusterCommand, Command, Options};
    use clap::Parser;

    #[test]
    fn a_backup_is_taken_or_verified() {
        let parse = |text: &str| Options::try_parse_from(text.split_whitespace());
        let Command::Cluster(ClusterCommand::Backup(backup)) =
            parse("basalt cluster backup f").expect("good").command
        else {
            panic!("another command")
        };
        assert!(backup.command.is_none() && backup.file.is_some());
        let Command::Cluster(ClusterCommand::Backup(backup)) =
            parse("basalt cluster backup verify f").expect("good").command
        else {
            panic!("another command")
        };
        assert!(backup.command.is_some() && backup.file.is_none());
        parse("basalt cluster backup").expect_err("no file");
    }
}
