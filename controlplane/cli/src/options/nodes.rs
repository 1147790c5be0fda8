//! Words about nodes.

use super::healing::NodeShow;
use super::{seconds, security};
use clap::Subcommand;
use std::time::Duration;

pub(crate) const AFTER_NODE: &str = "\
A cluster keeps three replicas of everything, evenly on its nodes, while nodes come and go. Volumes serve on.

Grow:
  basaltd --data-dir ... --device ... &      # on the new machine, with addresses that others reach
  basalt node add n4:7100 --wait 3600        # at any node that is a member

Shrink, or take a machine out for good:
  basalt node drain n2 --wait 3600           # its groups move to the others
  basalt node remove n2                      # it holds nothing any more: it may be stopped

Replace a machine that is lost, or has lost its device; the new one may have its name and addresses:
  basalt node add n5:7100 --replaces n3 --wait 3600";

const AFTER_NODE_ADD: &str = "\
The node must run and belong to no cluster. It formats its device, and groups move to it until all nodes
hold equally many. If the command breaks off, give it again: it goes on where it stopped.

With --replaces the groups of a node that does not come back move to the new one, and that node is a member
no more when they have. If it does come back before, it serves until then.

Examples:
  basalt node add 10.0.0.4:7100
  basalt node add 10.0.0.3:7100 --replaces n3 --wait 3600";

const AFTER_NODE_DRAIN: &str = "\
Its groups move to other nodes one by one, while volumes serve. Volumes that are attached to it stay so.
The cluster needs as many other nodes as it has replicas; if it has not, add one first. --wait only
watches: what goes on does so without it.

Examples:
  basalt node drain n2 --wait 3600 && basalt node remove n2
  basalt node drain n2 --cancel";

const AFTER_NODE_REMOVE: &str = "\
A node is removed when no group is on it and no volume is attached to it. Stop it afterwards; to use the
machine again, give it a new data directory and a blank device.

Example:
  basalt node remove n2";

const AFTER_NODE_LIST: &str = "\
GROUPS are the replicas of volume groups that are to be on a node, DATA the live bytes on its device.

Examples:
  basalt node list
  basalt node list -o json | jq -r '.nodes[] | select(.draining and .going == 0) | .name'";

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// The nodes, what they do and what they hold.
    #[command(after_help = AFTER_NODE_LIST)]
    List,
    #[command(flatten)]
    Show(NodeShow),
    /// Add a node, whose share of the groups moves to it.
    #[command(after_help = AFTER_NODE_ADD)]
    Add {
        /// The new node's gRPC address.
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// Name or number of a node that does not come back, in whose place it comes.
        #[arg(long, value_name = "NODE")]
        replaces: Option<String>,
        /// Wait so long until the groups have moved.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
    /// A token with which a new machine gets the secret and is added.
    #[command(after_help = security::AFTER_NODE_TOKEN)]
    Token {
        /// How long it holds, a day at most.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = security::ttl)]
        ttl: Duration,
    },
    /// Have all groups of a node move to the others.
    #[command(after_help = AFTER_NODE_DRAIN)]
    Drain {
        /// Its name or number.
        #[arg(value_name = "NODE")]
        node: String,
        /// Call it off: groups may be on the node again.
        #[arg(long, conflicts_with = "wait")]
        cancel: bool,
        /// Wait so long until the groups have moved.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
    /// Take a node that holds no groups any more out of the cluster.
    #[command(after_help = AFTER_NODE_REMOVE)]
    Remove {
        /// Its name or number.
        #[arg(value_name = "NODE")]
        node: String,
    },
}
