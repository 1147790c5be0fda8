//! The words for what is declared: classes, quotas, documents, and for looking at resources of any kind.

use super::{Change, label, new_id, seconds};
use basalt_api::v1::Qos;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

pub(super) const AFTER_GET: &str = "\
Kinds: volumes, snapshots, classes, quotas, nodes, events, operations. A filter compares fields, which 'basalt
explain' names: labels.env = \"prod\" AND NOT state = READY, size_bytes > 1073741824, labels:env.

Examples:
  basalt get volumes --filter 'labels.team = a'
  basalt get snapshots volumes/demo
  basalt get events -w
  basalt get volumes -w -o json | jq -c .";

pub(super) const AFTER_APPLY: &str = "\
Documents are YAML or JSON, several in one file behind '---'. Fields that a document leaves out stay as they are;
sizes may have units. Nothing is ever deleted. What fails is told with its document, and the status is 4 then.

  kind: StorageClass
  name: fast
  qos: {iops_max: 5000}
  ---
  kind: Volume
  name: demo
  size_bytes: 10GiB
  storage_class: storageClasses/fast
  labels: {env: prod}

Examples:
  basalt diff -f cluster.yaml && basalt apply -f cluster.yaml
  kustomize build . | basalt apply -f -";

pub(super) const AFTER_DIFF: &str = "\
The status is 0 if nothing would change, 4 if something would, or would be refused.

Example:
  basalt diff -f cluster.yaml";

pub(super) const AFTER_EXPLAIN: &str = "\
Examples:
  basalt explain
  basalt explain volume
  basalt explain volume.qos.iops_max";

pub(super) const AFTER_DOCTOR: &str = "\
The status is 0 if all is well, and 4 if something is not.

Examples:
  basalt doctor
  basalt doctor -o json | jq -r '.findings[] | select(.severity == \"error\") | .what'";

const AFTER_CLASS: &str = "\
Volumes that name no class get the default one. What a class bounds holds for each of its volumes that has no bound
of its own, and changes for all of them with the class.

Examples:
  basalt class create fast --iops-max 20000 --bandwidth-max 500MiB
  basalt class create standard --iops-max 2000 --iops-burst 10000 --default
  basalt volume create db --size 100GiB --class fast";

const AFTER_QUOTA: &str = "\
A quota counts the volumes that have all labels of its selector; without one it counts all. A volume that is being
deleted counts until it is gone.

Examples:
  basalt quota create team-a --selector team=a --max-volumes 20 --max-bytes 2TiB
  basalt quota list";

/// Bounds of a volume or a class.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct QosArgs {
    /// Requests a second at most.
    #[arg(long, value_name = "IOPS")]
    pub iops_max: Option<u64>,
    /// Requests a second that are guaranteed: others wait where there is not enough for all.
    #[arg(long, value_name = "IOPS")]
    pub iops_min: Option<u64>,
    /// Requests beyond the bound at once, after it was not made use of.
    #[arg(long, value_name = "COUNT")]
    pub iops_burst: Option<u64>,
    /// Bytes a second at most, such as 200MiB.
    #[arg(long, value_name = "SIZE", value_parser = basalt_api::size::parse)]
    pub bandwidth_max: Option<u64>,
    /// Bytes beyond that at once, after it was not made use of.
    #[arg(long, value_name = "SIZE", value_parser = basalt_api::size::parse)]
    pub bandwidth_burst: Option<u64>,
}

impl QosArgs {
    /// The bounds that were given, and the paths of the fields.
    pub fn given(&self) -> (Qos, Vec<&'static str>) {
        let given = [
            (self.iops_max, "qos.iops_max"),
            (self.iops_min, "qos.iops_min"),
            (self.iops_burst, "qos.iops_burst"),
            (self.bandwidth_max, "qos.bandwidth_max"),
            (self.bandwidth_burst, "qos.bandwidth_burst"),
        ];
        let paths = given.iter().filter(|(value, _)| value.is_some()).map(|(_, path)| *path);
        let qos = Qos {
            iops_max: self.iops_max.unwrap_or_default(),
            iops_min: self.iops_min.unwrap_or_default(),
            iops_burst: self.iops_burst.unwrap_or_default(),
            bandwidth_max: self.bandwidth_max.unwrap_or_default(),
            bandwidth_burst: self.bandwidth_burst.unwrap_or_default(),
        };
        (qos, paths.collect())
    }
}

#[derive(Clone, Debug, Subcommand)]
#[command(after_help = AFTER_CLASS)]
pub(crate) enum ClassCommand {
    /// Create a class.
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and '-', a letter first.
        #[arg(value_parser = plain_id)]
        name: String,
        /// Its volumes are encrypted. That is never changed.
        #[arg(long)]
        encrypted: bool,
        #[command(flatten)]
        fields: ClassFields,
        #[command(flatten)]
        change: Change,
    },
    /// List all classes.
    List,
    /// Show one class.
    Show {
        /// Its name.
        name: String,
    },
    /// Change a class, and with it what its volumes may do.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        fields: ClassFields,
        #[command(flatten)]
        change: Change,
    },
    /// Delete a class that no volume has.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        change: Change,
    },
}

/// What a class is.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClassFields {
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A label; may be given several times. All that are given replace those that there are.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    #[command(flatten)]
    pub qos: QosArgs,
    /// Volumes that name no class get this one; '--default=false' calls that off.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub default: Option<bool>,
}

#[derive(Clone, Debug, Subcommand)]
#[command(after_help = AFTER_QUOTA)]
pub(crate) enum QuotaCommand {
    /// Create a quota.
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and '-', a letter first.
        #[arg(value_parser = plain_id)]
        name: String,
        #[command(flatten)]
        fields: QuotaFields,
        #[command(flatten)]
        change: Change,
    },
    /// List all quotas, and what is used of them.
    List,
    /// Show one quota.
    Show {
        /// Its name.
        name: String,
    },
    /// Change a quota.
    Update {
        /// Its name.
        name: String,
        #[command(flatten)]
        fields: QuotaFields,
        #[command(flatten)]
        change: Change,
    },
    /// Delete a quota.
    Delete {
        /// Its name.
        name: String,
        #[command(flatten)]
        change: Change,
    },
}

/// What a quota is.
#[derive(Clone, Debug, Args)]
pub(crate) struct QuotaFields {
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A label that volumes have which it counts; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub selector: Vec<(String, String)>,
    /// How many volumes there may be; 0: any number.
    #[arg(long, value_name = "COUNT")]
    pub max_volumes: Option<u32>,
    /// How large they may be together, such as 2TiB; 0: any size.
    #[arg(long, value_name = "SIZE", value_parser = basalt_api::size::parse)]
    pub max_bytes: Option<u64>,
    /// Requests a second that they may be guaranteed together; 0: any number.
    #[arg(long, value_name = "IOPS")]
    pub max_iops_min: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Operations under way and such as ended lately, newest last.
    List {
        /// Only those under way.
        #[arg(long)]
        open: bool,
    },
    /// Show one operation.
    Show {
        /// Its number, or its name.
        operation: String,
    },
    /// Wait until an operation has ended.
    Wait {
        /// Its number, or its name.
        operation: String,
        /// How long.
        #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
        wait: Duration,
    },
    /// Call off the draining of a node or the flattening of a clone.
    Cancel {
        /// Its number, or its name.
        operation: String,
    },
    /// Forget an operation that has ended.
    Delete {
        /// Its number, or its name.
        operation: String,
    },
}

/// Looking at resources.
#[derive(Clone, Debug, Args)]
pub(crate) struct GetArgs {
    /// The kind: volumes, snapshots, classes, quotas, nodes, events, operations.
    #[arg(value_parser = kind)]
    pub kind: &'static str,
    /// Only the one of this name, or what is below it.
    pub name: Option<String>,
    /// Only those that it holds for.
    #[arg(long, value_name = "FILTER", default_value = "")]
    pub filter: String,
    /// Go on, and show each whenever it has changed.
    #[arg(long, short)]
    pub watch: bool,
}

/// Documents.
#[derive(Clone, Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file with documents, or - for the standard input; may be given several times.
    #[arg(long = "file", short, value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Names the whole: repeating it under the same id takes effect once. Default: an id drawn anew.
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
}

/// What is to be explained.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A kind of resource, and a field of it behind a dot. All kinds without it.
    pub path: Option<String>,
}

/// Looking for what is wrong.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Show what is well, too.
    #[arg(long)]
    pub all: bool,
}

fn plain_id(text: &str) -> Result<String, String> {
    new_id(text.to_owned())
}

/// The collection that a kind names, in one number or the other.
fn kind(text: &str) -> Result<&'static str, String> {
    let known: [(&str, &'static str); 7] = [
        ("volume", "volumes"),
        ("snapshot", "snapshots"),
        ("class", "storageClasses"),
        ("quota", "quotas"),
        ("node", "nodes"),
        ("event", "events"),
        ("operation", "operations"),
    ];
    let asked = text.to_ascii_lowercase();
    let asked = asked.trim_start_matches("storage").trim_start_matches('-');
    let is = |one: &str| {
        asked == one
            || asked.strip_suffix('s') == Some(one)
            || asked.strip_suffix("es") == Some(one)
    };
    let found = known.iter().find(|(one, _)| is(one));
    found.map(|(_, collection)| *collection).ok_or_else(|| {
        "write volumes, snapshots, classes, quotas, nodes, events or operations".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_several_words() {
        for (word, collection) in [
            ("volumes", "volumes"),
            ("volume", "volumes"),
            ("class", "storageClasses"),
            ("classes", "storageClasses"),
            ("storageClasses", "storageClasses"),
            ("storage-class", "storageClasses"),
            ("nodes", "nodes"),
        ] {
            assert_eq!(kind(word), Ok(collection), "{word}");
        }
        assert!(kind("disks").is_err());
    }

    #[test]
    fn given_bounds_are_named() {
        let args = QosArgs { iops_max: Some(0), bandwidth_max: Some(9), ..QosArgs::default() };
        let (qos, paths) = args.given();
        assert_eq!((qos.iops_max, qos.bandwidth_max), (0, 9));
        assert_eq!(paths, ["qos.iops_max", "qos.bandwidth_max"]);
    }
}
