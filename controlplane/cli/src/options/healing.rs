//! What becomes of nodes that fail, and where replicas go.

use basalt_api::v1::{Failover, FailureDomain};
use clap::{Args, Subcommand, ValueEnum};

const AFTER_PLAN: &str = "\
Nothing is changed. What is shown goes on by itself if there is anything, a few groups at a time.

Examples:
  basalt cluster plan                        # what would move now; nothing, most of the time
  basalt cluster plan --without n3           # if n3 were lost for good
  basalt cluster plan --drain n3 -o json | jq .bytes
  basalt cluster plan --failure-domain zone";

const AFTER_DOMAIN: &str = "\
No two replicas of a group are in one failure domain if there are enough of them with room. Nodes say where they
stand with --location (basaltd); those that do not are taken to be in one place.

Example:
  basalt cluster failure-domain zone";

/// What becomes of an attachment when its node is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenDown {
    /// It stays until somebody attaches the volume elsewhere.
    None,
    /// Another node gets the volume.
    Node,
}

impl WhenDown {
    pub fn value(self) -> Failover {
        match self {
            WhenDown::None => Failover::None,
            WhenDown::Node => Failover::Node,
        }
    }
}

/// What replicas are kept apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Domain {
    /// Nodes.
    Host,
    /// Racks.
    Rack,
    /// Zones.
    Zone,
    /// Regions.
    Region,
}

impl Domain {
    pub fn value(self) -> FailureDomain {
        match self {
            Domain::Host => FailureDomain::Host,
            Domain::Rack => FailureDomain::Rack,
            Domain::Zone => FailureDomain::Zone,
            Domain::Region => FailureDomain::Region,
        }
    }
}

/// What becomes of the attachment of a volume.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct FailoverArgs {
    /// What becomes of its attachment when its node counts as dead: with 'node' another node that serves NBD
    /// gets it by itself, in the same zone if there is one. Without this it stays until it is attached elsewhere.
    #[arg(long = "failover", value_name = "WHAT")]
    pub when_down: Option<WhenDown>,
}

impl FailoverArgs {
    /// As the API takes it; nothing if it was not given.
    pub fn value(self) -> Failover {
        self.when_down.map_or(Failover::Unspecified, WhenDown::value)
    }
}

/// What replicas of a new cluster are kept apart by.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct DomainArgs {
    /// What the replicas of a group are kept apart by; can be changed.
    #[arg(long, value_name = "DOMAIN", default_value = "host")]
    pub failure_domain: Domain,
}

/// Where replicas go.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Placement {
    /// Show which groups would move where, now or if something were otherwise.
    #[command(after_help = AFTER_PLAN)]
    Plan {
        #[command(flatten)]
        what_if: WhatIf,
    },
    /// Say what the replicas of a group are to be kept apart by.
    #[command(after_help = AFTER_DOMAIN)]
    FailureDomain {
        /// What has to be another one for each replica.
        domain: Domain,
    },
}

/// One node.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum NodeShow {
    /// Show one node: what the cluster makes of it, since when and why.
    Show {
        /// Its name or number.
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// What a plan supposes.
#[derive(Args, Clone, Debug)]
pub(crate) struct WhatIf {
    /// As if this node were lost for good; may be given several times.
    #[arg(long, value_name = "NODE")]
    pub without: Vec<String>,
    /// As if this node were drained; may be given several times.
    #[arg(long, value_name = "NODE")]
    pub drain: Vec<String>,
    /// As if replicas were kept apart by this.
    #[arg(long, value_name = "DOMAIN")]
    pub failure_domain: Option<Domain>,
}
