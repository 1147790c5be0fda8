//! `basalt cluster restore`, `basalt cluster orphans`.

use crate::options::Options;
use crate::{Failure, call_of, output};
use basalt_api::dial::{self, Cluster};
use basalt_api::error::invalid;
use basalt_api::size::{parse, show};
use basalt_api::v1::recovery_client::RecoveryClient;
use basalt_api::v1::{
    AdoptVolumeRequest, GetClusterRequest, GetInventoryRequest, Health, Inventory, Orphan,
};
use basalt_meta::backup as format;
use basalt_meta::restore::Plan;
use basalt_meta::{MetaState, RestoreHeader};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a node may take to say that the cluster works.
const ASK: Duration = Duration::from_secs(3);

const AFTER: &str = "\
Nothing is changed by this: it verifies the backup, asks the nodes that it names whether the cluster works, raises in
a copy whatever must not be given out twice, and writes that to a file. Each node then takes the same file:

  basalt cluster restore /backups/basalt-2026-11-26.meta --dry-run
  basalt cluster restore /backups/basalt-2026-11-26.meta --out restored.meta
  basaltd --restore restored.meta ...                    # on each node, with its other options as always
  basalt cluster status --wait 60
  basalt cluster orphans                                 # what nodes hold and the backup does not know

Bearer tokens end, as some may have been revoked since the backup; --keep-tokens lets them be.";

/// Prepare a backup for a cluster whose metadata is lost.
#[derive(Clone, Debug, Args)]
#[command(after_help = AFTER)]
pub(crate) struct Restore {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The file that is written; there must be none yet.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Only say what would be.
    #[arg(long)]
    dry_run: bool,
    /// A voter of the new metadata group, by name; once for each. Default: those of the backup. Without the others the
    /// cluster goes on if these are up.
    #[arg(long = "voter", value_name = "NODE")]
    voters: Vec<String>,
    /// Let bearer tokens count on.
    #[arg(long)]
    keep_tokens: bool,
    /// Although the cluster works, or nodes have later records, which are lost then: the id of the cluster.
    #[arg(long, value_name = "CLUSTER")]
    force: Option<String>,
}

/// What nodes hold and no record names.
#[derive(Clone, Debug, Args)]
pub(crate) struct Orphans {
    #[command(subcommand)]
    command: Option<OrphansCommand>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OrphansCommand {
    /// Show it, and what records name and nodes do not hold.
    List,
    /// Make a volume of it.
    Adopt {
        /// The number under which it is held.
        #[arg(value_name = "NUMBER")]
        number: u64,
        /// The volume's name.
        #[arg(value_name = "NAME")]
        name: String,
        /// The volume's size, such as 10GiB. Default: as much as is held.
        #[arg(long, value_parser = parse)]
        size: Option<u64>,
    },
    /// Delete it, for good.
    Delete {
        /// The number under which it is held.
        #[arg(value_name = "NUMBER")]
        number: u64,
        /// It is meant.
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn run(options: &Options, asked: &Restore) -> Result<(), Failure> {
    let failed = |problem: String| Failure::Output(format!("{}: {problem}", asked.file.display()));
    let read = crate::backup::read(&asked.file)?;
    if read.header.restore.is_some() {
        return Err(failed("it is prepared already: give it to basaltd --restore".to_owned()));
    }
    let spec = read.state.cluster().ok_or_else(|| failed("it is of no cluster".to_owned()))?;
    let id = format!("{:016x}", spec.id);
    let forced = match &asked.force {
        Some(given) if *given != id => {
            let text = format!("--force names cluster {given}, and the backup is of {id}");
            return Err(invalid("force", text).into());
        }
        given => given.is_some(),
    };
    let number = |name: &String| {
        let member = spec.members.iter().find(|m| m.name == *name || m.node.to_string() == *name);
        let unknown = || invalid("voter", format!("the backup knows no node '{name}'"));
        member.map(|member| member.node).ok_or_else(unknown)
    };
    let voters: Vec<u32> = asked.voters.iter().map(number).collect::<Result<_, _>>()?;
    let works = who_works(&read.state).await;
    if let (Some(who), false, false) = (&works, forced, asked.dry_run) {
        return Err(Failure::Status(tonic::Status::failed_precondition(format!(
            "the cluster works, as the node at {who} says: a restore would undo what was changed since the backup. If \
             that is meant, stop all nodes and say so: --force {id}"
        ))));
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let plan = Plan {
        now_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX),
        taken_ms: read.header.taken_ms,
        voters,
        keep_tokens: asked.keep_tokens,
    };
    let state = read.state.restore(&plan).map_err(failed)?;
    if let Some(out) = asked.out.as_ref().filter(|_| !asked.dry_run) {
        let record = state.restored().copied();
        let restore = Some(RestoreHeader { record, forced, source: read.digest.clone() });
        let header = basalt_meta::BackupHeader { restore, ..read.header.clone() };
        write(out, &header, &state)?;
    }
    let document = document(asked, &read.state, &state, works.as_deref());
    output::write(options.output, &document, || text(&document))
}

/// The address of a node that says that the cluster works.
async fn who_works(state: &MetaState) -> Option<String> {
    let members = state.cluster().map(|spec| spec.members.clone()).unwrap_or_default();
    for member in members {
        let Ok(mut client) = dial::admin(&member.grpc_address, ASK) else { continue };
        let answer = client.get_cluster(GetClusterRequest {}).await;
        let Ok(cluster) = answer.map(tonic::Response::into_inner) else { continue };
        let metadata = cluster.groups.iter().find(|group| group.id == "metadata");
        let led = metadata.is_some_and(|group| group.leader != 0);
        if led || cluster.health() == Health::Ok {
            return Some(member.grpc_address);
        }
    }
    None
}

fn write(
    path: &Path,
    header: &basalt_meta::BackupHeader,
    state: &MetaState,
) -> Result<(), Failure> {
    let failed =
        |problem: &dyn std::fmt::Display| Failure::Output(format!("{}: {problem}", path.display()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|problem| failed(&problem))?;
    let pieces = std::iter::once(format::begin(header));
    let mut pieces = pieces.chain(state.chunks().map(|piece| format::framed(&piece)));
    let written =
        pieces.try_for_each(|piece| file.write_all(&piece)).and_then(|()| file.sync_all());
    if written.is_err() {
        // A part of one is worth nothing.
        let _ = std::fs::remove_file(path);
    }
    written.map_err(|problem| failed(&problem))?;
    // What was written is what a node will read.
    crate::backup::read(path).map(drop)
}

fn document(asked: &Restore, before: &MetaState, after: &MetaState, works: Option<&str>) -> Value {
    let record = after.restored().copied().unwrap_or_default();
    let spec = after.cluster().cloned().unwrap_or_default();
    let name = |node: &u32| {
        spec.members.iter().find(|m| m.node == *node).map_or(String::new(), |m| m.name.clone())
    };
    let voters = spec.metadata.clone().unwrap_or_default().nodes;
    json!({
        "file": asked.file.display().to_string(),
        "out": asked.out.as_ref().map(|out| out.display().to_string()),
        "cluster": format!("{:016x}", spec.id),
        "from_entry": record.from_index,
        "taken_ms": record.from_taken_ms,
        "begins_at": record.index,
        "nodes": spec.members.iter().map(|m| m.name.clone()).collect::<Vec<_>>(),
        "voters": voters.iter().map(name).collect::<Vec<_>>(),
        "volumes": after.volume_count(),
        "detached": before.attached_count(),
        "tokens_ended": if asked.keep_tokens { 0 } else { before.tokens_after("").count() },
        "works": works,
        "dry_run": asked.dry_run,
    })
}

fn text(document: &Value) -> String {
    let list = |field: &str| {
        let all = document[field].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "cluster {} as of entry {}: {} volumes, of which {} lose their attachments; {} tokens end\n\
         the metadata group begins anew at entry {}, with the voters {}; nodes: {}\n",
        document["cluster"].as_str().unwrap_or_default(),
        document["from_entry"],
        document["volumes"],
        document["detached"],
        document["tokens_ended"],
        document["begins_at"],
        list("voters"),
        list("nodes"),
    );
    if let Some(who) = document["works"].as_str() {
        let _ = writeln!(text, "THE CLUSTER WORKS, as the node at {who} says");
    }
    let _ = match document["out"].as_str().filter(|_| document["dry_run"] == false) {
        Some(out) => writeln!(text, "written to {out}: start every node with --restore {out}"),
        None => writeln!(text, "nothing was written"),
    };
    text
}

pub(crate) async fn orphans(
    options: &Options,
    cluster: &Cluster,
    asked: &Orphans,
) -> Result<(), Failure> {
    let (number, volume_id, size_bytes, delete) = match &asked.command {
        None | Some(OrphansCommand::List) => {
            let found = call_of!(cluster, RecoveryClient, get_inventory, GetInventoryRequest {})?;
            return output::write(options.output, &inventory(&found), || shown(&found));
        }
        Some(OrphansCommand::Adopt { number, name, size }) => {
            (*number, name.clone(), size.unwrap_or(0), false)
        }
        Some(OrphansCommand::Delete { number, yes: true }) => {
            (*number, format!("orphan-{number}"), 0, true)
        }
        Some(OrphansCommand::Delete { .. }) => {
            return Err(invalid("yes", "it is deleted for good; say --yes if that is meant").into());
        }
    };
    let request_id = basalt_api::random::request_id("orphan");
    let request = AdoptVolumeRequest { number, volume_id, size_bytes, delete, request_id };
    let volume = call_of!(cluster, RecoveryClient, adopt_volume, request)?;
    let document = json!({ "name": volume.name, "number": number, "deleted": delete });
    output::write(options.output, &document, || match delete {
        true => format!("what was held under the number {number} is being deleted"),
        false => format!("{} adopted, with {}", volume.name, show(volume.size_bytes)),
    })
}

fn inventory(found: &Inventory) -> Value {
    let orphan = |orphan: &Orphan| {
        json!({
            "number": orphan.number,
            "bytes": orphan.bytes,
            "end_bytes": orphan.end_bytes,
            "epoch": orphan.epoch,
            "generation": orphan.generation,
            "snapshots": orphan.snapshots,
            "parent": orphan.parent,
            "parent_generation": orphan.parent_generation,
        })
    };
    let lacks = found.lacks.iter();
    json!({
        "whole": found.whole,
        "problems": found.problems,
        "restored_revision": found.restored_revision,
        "settling": found.settling,
        "orphans": found.orphans.iter().map(orphan).collect::<Vec<_>>(),
        "lacks": lacks.map(|lack| json!({"name": lack.name, "problem": lack.problem})).collect::<Vec<_>>(),
    })
}

fn shown(found: &Inventory) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for problem in &found.problems {
        let _ = writeln!(text, "not asked: {problem}");
    }
    if found.settling {
        let _ =
            writeln!(text, "the restored records are not compared with what the nodes hold yet");
    }
    for orphan in &found.orphans {
        let clone = match orphan.parent {
            0 => String::new(),
            parent => format!(", a clone of volume {parent}"),
        };
        let _ = writeln!(
            text,
            "orphan {}: {} in {} snapshots and itself, up to {}{clone}",
            orphan.number,
            show(orphan.bytes),
            orphan.snapshots.len(),
            show(orphan.end_bytes),
        );
    }
    for lack in &found.lacks {
        let _ = writeln!(text, "{}: {}", lack.name, lack.problem);
    }
    if text.is_empty() {
        text.push_str("the records and what the nodes hold agree\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::options::Options;
    use clap::Parser;

    #[test]
    fn a_restore_is_written_or_only_shown() {
        let parse = |text: &str| Options::try_parse_from(text.split_whitespace());
        parse("basalt cluster restore f --out g --voter a --voter b").expect("good");
        parse("basalt cluster restore f --dry-run").expect("good");
        parse("basalt cluster restore f").expect_err("nowhere to write");
        parse("basalt cluster orphans").expect("good");
        parse("basalt cluster orphans adopt 7 db --size 1GiB").expect("good");
        parse("basalt cluster orphans adopt 7").expect_err("no name");
    }
}
