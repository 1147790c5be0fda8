//! The words of the command line.

mod declared;
mod events;
mod healing;
mod nodes;
mod security;
mod snapshots;
mod why;

pub(crate) use declared::{
    ApplyArgs, ClassCommand, ClassFields, DoctorArgs, ExplainArgs, GetArgs, OperationCommand,
    QosArgs, QuotaCommand, QuotaFields,
};
pub(crate) use events::{EventsArgs, Severity};
pub(crate) use healing::{Domain, DomainArgs, FailoverArgs, NodeShow, Placement, WhatIf};
pub(crate) use nodes::NodeCommand;
pub(crate) use security::{AuditCommand, IdentityCommand, SecretCommand, TokenCommand};
pub(crate) use snapshots::{Diff, SnapshotCommand, SnapshotName};
pub(crate) use why::WhyArgs;

use basalt_api::random::request_id;
use basalt_security::credentials::CredentialOptions;
use basalt_telemetry::{LogOptions, TraceOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use std::collections::BTreeMap;
use std::time::Duration;

const AFTER: &str = "\
First steps, with three nodes waiting on this machine:
  export BASALT_SECRET_FILE=/var/lib/basalt/secret   # the nodes' secret (basalt secret new)
  basalt cluster bootstrap --node 127.0.0.1:7101 --node 127.0.0.1:7102 --node 127.0.0.1:7103
  export BASALT_CLUSTER=127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  basalt volume create demo --size 1GiB
  basalt-attach --volume demo --listen 127.0.0.1:10809 &
  nbdinfo nbd://127.0.0.1:10809/demo
  basalt cluster status

Any node answers any command; --cluster names some of them, which are asked in turn.

Exit status:
  0  done
  1  something is broken
  2  the command line or a value is wrong
  3  there is no such volume, snapshot or node
  4  the state does not allow it (attached elsewhere, exists already, changed in between)
  5  nobody answered in time, or the cluster has no quorum
  6  you are not known, or may not do this";

const AFTER_ATTACH: &str = "\
A volume is attached to one host at a time. If the host is the name of a node that serves NBD
(basaltd --nbd-listen), that node serves it. On any other machine, run basalt-attach instead: it
attaches by itself.

Examples:
  basalt volume attach demo --host node-a
  basalt volume attach demo --host node-b --move";

const AFTER_CREATE: &str = "\
A new volume reads as zeros and takes no space. With --from it is a clone of a snapshot: it may be written
to at once, takes the space of what is written to it, and nothing that happens to the other volume shows
in it. That snapshot, and its volume, can not be deleted before the clone is, or is flattened.

Examples:
  basalt volume create demo --size 1GiB
  basalt volume create db --size 512GiB --label app=orders --label env=prod";

const AFTER_DELETE: &str = "\
A volume that is attached is in use: it is deleted only with --yes, or after the question on a
terminal was answered with its name. It is detached then, which shuts its host out.

Examples:
  basalt volume delete demo
  basalt volume delete demo --yes";

const AFTER_RESIZE: &str = "\
A volume can be made larger at any time, attached or not, and never smaller. What is behind its former
end reads as zeros. The host that has it offers the new size within some 5 s to NBD clients that
connect from then on; those that are connected keep the size that they were told.

Examples:
  basalt volume resize demo --size 20GiB
  basalt volume resize demo --size +10GiB";

const AFTER_FLATTEN: &str = "\
A clone reads as its snapshot wherever it was not written to, so that the snapshot and its volume stay
as long as the clone needs them. Flattening gives the clone blocks of its own for all that, in the
background, attached or not; then it takes the space of a volume of its own, and the snapshot may be
deleted. A clone of a clone, and so on, more than 8 deep is flattened by itself; there can be 16.

Examples:
  basalt volume flatten test --wait 3600 && basalt snapshot delete demo@monday
  basalt volume show test                    # how far it is
  basalt volume flatten test --cancel";

const AFTER_STATUS: &str = "\
Without --groups only groups with a problem, and such as move, are shown.

Examples:
  basalt cluster status --wait 60 && echo healthy
  basalt cluster status -o json | jq -r '.nodes[] | select(.reachable | not) | .name'";

const AFTER_DEVICE_REPLACE: &str = "\
Each node has one device. When it failed: stop the node, move its data directory away, put a blank device in place of
the old one, start the node with the same addresses, and give this command. The node begins anew under a new number
and gets all groups that were on it from the other nodes.

Example:
  basalt device replace n3 --wait 3600";

const AFTER_SPACE: &str = "\
Space that volumes gave back is garbage first; the cleaner makes free space of it once that is short.

Examples:
  basalt space explain
  basalt space explain --node n1 -o json | jq '.nodes[0].space.garbage_bytes'";

const AFTER_SCRUB: &str = "\
Every node looks at all of its blocks once a week by itself. What is damaged is repaired from the other nodes.

Examples:
  basalt scrub start
  basalt scrub start --node n1 --wait 3600
  basalt scrub status -o json | jq '[.nodes[].scrub.blocks_waiting] | add'";

const AFTER_UPDATE: &str = "\
What is not named stays as it is. A bound of 0 is that of the volume's class. Bounds hold from the next second on,
attached or not.

Examples:
  basalt volume update demo --label env=prod --label tmp-
  basalt volume update demo --class fast --iops-max 5000";

const AFTER_LIST: &str = "\
Examples:
  basalt volume list
  basalt volume list --filter 'labels.env = prod AND size_bytes > 1073741824' --order-by 'size_bytes desc'
  basalt volume list -o json | jq -r '.volumes[] | select(.state == \"attached\") | .name'";

const AFTER_DETACH: &str = "\
A node that serves the volume closes its connections. Another host (basalt-attach) goes on with it
until it ends, or until the volume is attached anew, which shuts it out for good.

Examples:
  basalt volume detach demo
  basalt volume detach demo --host node-a";

const AFTER_COMPLETION: &str = "\
Examples:
  basalt completion bash > /etc/bash_completion.d/basalt
  basalt completion zsh > /usr/local/share/zsh/site-functions/_basalt
  basalt completion fish > ~/.config/fish/completions/basalt.fish";

const AFTER_BOOTSTRAP: &str = "\
The nodes must run and belong to no cluster. Their order gives the node ids, from 1. Each volume group
has its replicas on three of them; more nodes can be added later (basalt node add). If it breaks off, run
it again with the same list: it goes on where it stopped.

Example:
  basalt cluster bootstrap --node n1:7100 --node n2:7100 --node n3:7100";

/// Basalt: replicated block volumes.
#[derive(Clone, Debug, Parser)]
#[command(name = "basalt", version, after_help = AFTER)]
pub(crate) struct Options {
    /// gRPC addresses of some nodes, asked in turn until one answers.
    #[arg(
        long,
        global = true,
        env = "BASALT_CLUSTER",
        value_name = "ADDR,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:7100"
    )]
    pub cluster: Vec<String>,

    /// How the answer is written.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Format,

    /// How long one question may take at one node.
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// How the cluster knows who asks.
    #[command(flatten)]
    pub credentials: CredentialOptions,

    /// Logs.
    #[command(flatten)]
    pub logs: LogOptions,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceOptions,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs: one JSON document.
    Json,
    /// For programs and people: one YAML document.
    Yaml,
    /// For programs: the names alone, a line each.
    Name,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a cluster, look at it.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Add, drain, replace and remove nodes.
    #[command(subcommand, after_help = nodes::AFTER_NODE)]
    Node(NodeCommand),
    /// Show the nodes' devices, and replace one that failed.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Create, list, attach and delete volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// What the devices hold.
    #[command(subcommand)]
    Space(SpaceCommand),
    /// Look for damaged blocks and have them repaired.
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// Keep volumes as they are at a moment.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// What volumes of one kind have in common.
    #[command(subcommand, visible_alias = "storage-class")]
    Class(ClassCommand),
    /// How many volumes there may be, and how large they may be together.
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Work that takes longer than a call.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Show resources of any kind, once or whenever they change.
    #[command(after_help = declared::AFTER_GET)]
    Get(GetArgs),
    /// What happened in the cluster.
    #[command(after_help = events::AFTER_EVENTS)]
    Events(EventsArgs),
    /// Make resources what documents say.
    #[command(after_help = declared::AFTER_APPLY)]
    Apply(ApplyArgs),
    /// What 'basalt apply' would do, without doing it.
    #[command(after_help = declared::AFTER_DIFF)]
    Diff(ApplyArgs),
    /// What a kind of resource is, and what its fields mean.
    #[command(after_help = declared::AFTER_EXPLAIN)]
    Explain(ExplainArgs),
    /// Look for what is wrong, and say what to do about it.
    #[command(after_help = declared::AFTER_DOCTOR)]
    Doctor(DoctorArgs),
    /// Show where the time of a volume's requests goes, and what to do about it.
    #[command(after_help = why::AFTER_WHY)]
    Why(WhyArgs),
    /// Make and change the cluster's secret.
    #[command(subcommand, after_help = security::AFTER_SECRET)]
    Secret(SecretCommand),
    /// Certificates of people and programs.
    #[command(subcommand, after_help = security::AFTER_IDENTITY)]
    Identity(IdentityCommand),
    /// Bearer tokens.
    #[command(subcommand, after_help = security::AFTER_TOKEN)]
    Token(TokenCommand),
    /// Who changed what.
    #[command(subcommand, after_help = security::AFTER_AUDIT)]
    Audit(AuditCommand),
    /// Which role may call what.
    Permissions {
        /// As docs/permissions.md shows it.
        #[arg(long)]
        markdown: bool,
    },
    /// Words for the shell, so that it completes this program's.
    #[command(after_help = AFTER_COMPLETION)]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// The version of this program.
    Version,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    Backup(crate::backup::Backup),
    Restore(crate::restore::Restore),
    Orphans(crate::restore::Orphans),
    /// Make one cluster of nodes that belong to none.
    #[command(after_help = AFTER_BOOTSTRAP)]
    Bootstrap {
        /// gRPC address of a node; give it once for each node of the cluster.
        #[arg(long = "node", value_name = "ADDR", value_delimiter = ',', required = true)]
        nodes: Vec<String>,
        /// Volume groups, a power of two from 1 to 1024; fixed for good.
        #[arg(long, value_name = "COUNT", default_value = "16", value_parser = groups)]
        groups: u32,
        #[command(flatten)]
        domain: DomainArgs,
    },
    #[command(flatten)]
    Placement(Placement),
    /// Nodes, groups, leaders, and one sentence on their health.
    #[command(after_help = AFTER_STATUS)]
    Status {
        /// Show every group, not only those with a problem.
        #[arg(long)]
        groups: bool,
        /// Exit with status 4 unless everything works.
        #[arg(long)]
        check: bool,
        /// Wait so long for everything to work.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// The devices, how they are and how full.
    List,
    /// Bring up again, on a blank device, what was on a node's device that failed.
    #[command(after_help = AFTER_DEVICE_REPLACE)]
    Replace {
        /// The node's name or number.
        #[arg(value_name = "NODE")]
        node: String,
        /// Wait so long until the groups have come.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum SpaceCommand {
    /// Who owns each byte of each device.
    #[command(after_help = AFTER_SPACE)]
    Explain {
        /// Only the node of this name or number.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Have nodes look at all of their blocks now.
    #[command(after_help = AFTER_SCRUB)]
    Start {
        /// Only the node of this name or number.
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
        /// Wait so long until they have, and show what they found.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
    /// What was found and repaired, since each node was started.
    Status,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume.
    #[command(after_help = AFTER_CREATE)]
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and '-', a letter first.
        #[arg(value_parser = new_volume_id)]
        name: String,
        /// Its size, such as 1GiB. A clone has that of its snapshot if none is given, and never less.
        #[arg(long, value_name = "SIZE", value_parser = volume_size, required_unless_present = "from")]
        size: Option<u64>,
        /// Make it a clone of a snapshot: it begins with that content, at once and without a copy.
        #[arg(long, value_name = "VOLUME@SNAPSHOT", value_parser = snapshots::snapshot_name)]
        from: Option<SnapshotName>,
        /// A label; may be given several times.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Its storage class; the default one, if there is one, without it.
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// Encrypt its data, for good. Volumes of encrypted classes and clones of encrypted volumes are without it.
        #[arg(long)]
        encrypted: bool,
        #[command(flatten)]
        qos: QosArgs,
        #[command(flatten)]
        failover: FailoverArgs,
        /// Only say what it would come to.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        change: Change,
    },
    /// List all volumes.
    #[command(after_help = AFTER_LIST)]
    List {
        /// Only those that it holds for.
        #[arg(long, value_name = "FILTER", default_value = "")]
        filter: String,
        /// name, size_bytes or create_time_ms, and " desc" behind it or not.
        #[arg(long, value_name = "FIELD", default_value = "")]
        order_by: String,
    },
    /// Change the labels, the class or the bounds of a volume.
    #[command(after_help = AFTER_UPDATE)]
    Update {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// A label that it gets, or KEY- for one that it loses; may be given several times.
        #[arg(long = "label", value_name = "KEY=VALUE|KEY-", value_parser = label_change)]
        labels: Vec<(String, Option<String>)>,
        /// Its storage class; '' for none.
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        #[command(flatten)]
        qos: QosArgs,
        #[command(flatten)]
        failover: FailoverArgs,
        /// Only say what it would come to.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Show one volume.
    Show {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
    },
    /// Make a volume larger.
    #[command(after_help = AFTER_RESIZE)]
    Resize {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// Its new size, such as 20GiB, or how much it gets more, such as +10GiB.
        #[arg(long, value_name = "SIZE", value_parser = new_size)]
        size: NewSize,
        #[command(flatten)]
        change: Change,
    },
    /// Make a clone a volume of its own, that needs its snapshot no more.
    #[command(after_help = AFTER_FLATTEN)]
    Flatten {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// Call it off: it stays a clone.
        #[arg(long, conflicts_with = "wait")]
        cancel: bool,
        /// Wait so long until it is done.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
        #[command(flatten)]
        change: Change,
    },
    /// Delete a volume and everything in it, for good.
    #[command(after_help = AFTER_DELETE)]
    Delete {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// Delete it even if it is attached, and ask nothing.
        #[arg(long, short)]
        yes: bool,
        /// Delete its snapshots with it.
        #[arg(long)]
        with_snapshots: bool,
        /// Return at once, not when its blocks are deleted.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Make a volume what it was in one of its snapshots.
    #[command(after_help = snapshots::AFTER_REVERT)]
    Revert {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// The snapshot's name.
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
        /// Delete all later snapshots of the volume.
        #[arg(long)]
        drop_later: bool,
        /// Return at once, not when the volume is what it was.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Give a volume to a host.
    #[command(after_help = AFTER_ATTACH)]
    Attach {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// Who gets it: the name of a node, or of any other host.
        #[arg(long, value_name = "HOST")]
        host: String,
        /// Take it from another host that has it, and shut that out for good.
        #[arg(long = "move")]
        take: bool,
        #[command(flatten)]
        change: Change,
    },
    /// Take a volume from its host.
    #[command(after_help = AFTER_DETACH)]
    Detach {
        /// Its name.
        #[arg(value_parser = volume_id)]
        name: String,
        /// Only if this host has it.
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
        #[command(flatten)]
        change: Change,
    },
}

/// The size that a volume is to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// So many bytes.
    Whole(u64),
    /// So many bytes more than it has.
    More(u64),
}

/// Options of every change.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Change {
    /// Names the change: repeating it under the same id takes effect once. Default: an id drawn anew.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    /// Only if the volume did not change since it was shown with this etag.
    #[arg(long, value_name = "ETAG")]
    pub etag: Option<String>,
}

impl Change {
    /// The id that was given, or one of its own: a call that one node did not answer is made again
    /// at the next, and must not find what it did itself in its way.
    pub fn id(&self) -> String {
        self.request_id.clone().unwrap_or_else(|| request_id("cli"))
    }

    /// The etag, or nothing.
    pub fn etag(&self) -> String {
        self.etag.clone().unwrap_or_default()
    }
}

/// Labels as the API takes them.
pub(crate) fn label_map(labels: &[(String, String)]) -> BTreeMap<String, String> {
    labels.iter().cloned().collect()
}

fn volume_id(text: &str) -> Result<String, String> {
    // Both ways of naming a volume are understood.
    let id = text.strip_prefix("volumes/").unwrap_or(text);
    match id.is_empty() || id.contains('/') {
        true => Err("write the volume's name, such as demo".to_owned()),
        false => Ok(id.to_owned()),
    }
}

/// As the cluster checks it too, but before anybody is asked.
fn new_volume_id(text: &str) -> Result<String, String> {
    new_id(volume_id(text)?)
}

fn new_id(id: String) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let first = id.starts_with(|c: char| c.is_ascii_lowercase());
    if first && id.len() <= 63 && id.chars().all(inner) && !id.ends_with('-') {
        return Ok(id);
    }
    Err("use 1 to 63 of a-z, 0-9 and '-', a letter first and no '-' last, such as db-1".to_owned())
}

/// A volume's size: whole blocks, up to 1 PiB.
fn volume_size(text: &str) -> Result<u64, String> {
    let bytes = basalt_api::size::parse(text)?;
    if bytes == 0 || bytes > 1 << 50 || !bytes.is_multiple_of(4096) {
        return Err(format!(
            "a volume can not have {bytes} bytes: give a multiple of 4KiB from 4KiB to 1024TiB"
        ));
    }
    Ok(bytes)
}

fn new_size(text: &str) -> Result<NewSize, String> {
    match text.trim().strip_prefix('+') {
        Some(more) => volume_size(more).map(NewSize::More),
        None => volume_size(text).map(NewSize::Whole),
    }
}

fn groups(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(count) if count.is_power_of_two() && count <= 1024 => Ok(count),
        _ => Err("give a power of two from 1 to 1024, such as 16 or 64".to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is not a label; write key=value")),
    }
}

/// A label that is set, or taken away.
fn label_change(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err(format!(
            "'{text}' is no change of a label; write key=value, or key- to take it away"
        )),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("'{text}' is not a time; write whole seconds, such as 10")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &str) -> Result<Options, clap::Error> {
        Options::try_parse_from(words.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn commands_are_understood() {
        let options = parse("basalt volume create demo --size 1GiB --label a=b -o json").unwrap();
        assert_eq!(options.output, Format::Json);
        let Command::Volume(VolumeCommand::Create { name, size, labels, .. }) = options.command
        else {
            panic!("another command")
        };
        assert_eq!((name.as_str(), size), ("demo", Some(1 << 30)));
        assert_eq!(label_map(&labels)["a"], "b");

        let options = parse("basalt volume create test --from demo@monday").unwrap();
        let Command::Volume(VolumeCommand::Create { size, from, .. }) = options.command else {
            panic!("another command")
        };
        let from = from.map(|from| from.to_string());
        assert_eq!((size, from.as_deref()), (None, Some("demo@monday")));

        let options = parse("basalt --cluster a:1,b:2 volume show volumes/demo").unwrap();
        assert_eq!(options.cluster, ["a:1", "b:2"]);
        let Command::Volume(VolumeCommand::Show { name }) = options.command else {
            panic!("another command")
        };
        assert_eq!(name, "demo");

        let options = parse("basalt cluster bootstrap --node a:1 --node b:2").unwrap();
        let Command::Cluster(ClusterCommand::Bootstrap { nodes, groups, .. }) = options.command
        else {
            panic!("another command")
        };
        assert_eq!((nodes.len(), groups), (2, 16));

        for (size, wanted) in
            [("20GiB", NewSize::Whole(20 << 30)), ("+512MiB", NewSize::More(512 << 20))]
        {
            let options = parse(&format!("basalt volume resize demo --size {size}")).unwrap();
            let Command::Volume(VolumeCommand::Resize { size, .. }) = options.command else {
                panic!("another command")
            };
            assert_eq!(size, wanted);
        }

        for text in ["demo@monday", "volumes/demo/snapshots/monday"] {
            let options = parse(&format!("basalt snapshot create {text}")).unwrap();
            let Command::Snapshot(SnapshotCommand::Create { names, .. }) = options.command else {
                panic!("another command")
            };
            assert_eq!(names[0].to_string(), "demo@monday");
        }
        let options = parse("basalt snapshot create a@x b@y").unwrap();
        let Command::Snapshot(SnapshotCommand::Create { names, .. }) = options.command else {
            panic!("another command")
        };
        assert_eq!(names.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a@x", "b@y"]);

        let options = parse("basalt node add n5:7100 --replaces n3 --wait 60").unwrap();
        let Command::Node(NodeCommand::Add { address, replaces, wait }) = options.command else {
            panic!("another command")
        };
        assert_eq!((address.as_str(), replaces.as_deref()), ("n5:7100", Some("n3")));
        assert_eq!(wait, Some(Duration::from_secs(60)));

        let options = parse("basalt volume delete demo --yes").unwrap();
        let Command::Volume(VolumeCommand::Delete { yes, no_wait, .. }) = options.command else {
            panic!("another command")
        };
        assert!(yes && !no_wait);
    }

    #[test]
    fn mistakes_are_named() {
        for (words, named) in [
            ("basalt volume create demo --size 1GB", "decimal"),
            ("basalt volume create demo", "--size"),
            ("basalt volume create Demo --size 1GiB", "a letter first"),
            ("basalt volume create test --from demo", "demo@monday"),
            ("basalt volume flatten test --cancel --wait 5", "--wait"),
            ("basalt volume create demo- --size 1GiB", "no '-' last"),
            ("basalt volume create demo --size 1000", "multiple of 4KiB"),
            ("basalt volume create demo --size 1025TiB", "1024TiB"),
            ("basalt volume resize demo --size +1000", "multiple of 4KiB"),
            ("basalt volume resize demo --size ++1GiB", "not a size"),
            ("basalt volume resize demo", "--size"),
            ("basalt snapshot create demo", "demo@monday"),
            ("basalt snapshot create demo@Monday", "a letter first"),
            ("basalt snapshot delete a@b@c", "demo@monday"),
            ("basalt snapshot delete a@b --alone --together", "--alone"),
            ("basalt snapshot diff demo", "FROM"),
            ("basalt volume revert demo", "SNAPSHOT"),
            ("basalt cluster bootstrap --node a:1 --groups 12", "power of two"),
            ("basalt volume attach demo", "--host"),
            ("basalt volume create demo --size 1GiB --label x", "key=value"),
            ("basalt --timeout 0 volume list", "whole seconds"),
            ("basalt volume list -o xml", "xml"),
            ("basalt apply", "--file"),
            ("basalt get disks", "volumes"),
            ("basalt class create fast --iops-max many", "many"),
            ("basalt quota create q --selector team", "key=value"),
            ("basalt node add", "ADDRESS"),
            ("basalt node drain n1 --cancel --wait 5", "--wait"),
        ] {
            let error = parse(words).expect_err(words).to_string();
            assert!(error.contains(named), "{words}: {error}");
        }
    }
}
