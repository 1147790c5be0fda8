//! The words of `basalt why`.

use clap::Args;

pub(in crate::options) const AFTER_WHY: &str = "\
Whoever has the volume traces about ten of its requests a second, from their submission to their answer. At any moment
a request is in exactly one stage, so the stages of a row of requests add up to what they took:

  limit           until the volume's bounds (--iops-max, --bandwidth-max) let it begin
  parts, order    until earlier parts of it, or writes of the same blocks, were answered
  read_first      reading a block of which only a part is written
  route, credit   until there was a leader and a link, and the link took more
  retry           attempts that were refused or lost, and pauses between them
  link            between the host and who served it, there and back
  admission       held back so that other volumes get their guaranteed minimum
  batch, room     at the leader: until the log's write before was over, or there was room
  log_queue       at the leader: until the log's write began
  log_write       at the leader: the log's write
  follower_*      the same at the follower that was needed for a majority, and the link to it
  commit, gate    at the leader: until it acted on the majority; while several volumes are cut
  pages           until a part of the index was loaded
  device_read     the device's reads
  other           nobody says

ORDINARY is the mean of the fifth of all requests in the middle, SLOWEST that of the slowest hundredth, BEST the
shortest time that the stage took in any of them, or its device at its best.

Examples:
  basalt why demo
  basalt why demo --watch
  basalt why demo -o json | jq -r .verdict";

/// Where the time of a volume's requests goes.
#[derive(Clone, Debug, Args)]
pub(crate) struct WhyArgs {
    /// The volume.
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// Show it again every two seconds, until interrupted.
    #[arg(long)]
    pub watch: bool,
}
