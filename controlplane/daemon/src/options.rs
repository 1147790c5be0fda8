//! The command line of `basaltd`.

mod healing;

pub use healing::HealingOptions;

use crate::joining::JoinOption;
use basalt_api::size::show;
use basalt_attach::door::TlsOptions;
use basalt_attach::listen::{NbdListen, open_nbd};
use basalt_attach::options::machine_name;
use basalt_telemetry::{LogOptions, TraceOptions};
use basalt_wire::disk::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_UNIT, SUPERBLOCK_AREA_BYTES};
use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const AFTER: &str = "\
Examples:
  A node on this machine, waiting to be made part of a cluster:
    basalt secret new /var/lib/basalt/a/secret
    basaltd --name a --data-dir /var/lib/basalt/a --listen 127.0.0.1:7101 --data-listen 127.0.0.1:7201
  Then, once all nodes run:
    basalt cluster bootstrap --node 127.0.0.1:7101 --node 127.0.0.1:7102 --node 127.0.0.1:7103
  A node that also serves NBD (volumes attached to its name), here over TLS to clients with a
  certificate of the authority in ca.pem:
    basaltd --name a --data-dir /var/lib/basalt/a --nbd-listen 10.0.0.1:10809 \
      --tls-cert server-cert.pem --tls-key server-key.pem --tls-client-ca ca.pem
  A node on a disk of its own, reached by others under its host name:
    basaltd --data-dir /var/lib/basalt --device /dev/disk/by-id/... --advertise n1 \
      --listen 0.0.0.0:7100 --data-listen 0.0.0.0:7200

A node keeps its identity in its data directory and finds its cluster again after a restart.
SIGTERM and SIGINT stop it gracefully: it hands its leaderships over first.

Nodes know each other, and who may ask them, by the cluster's secret: make one with 'basalt secret new FILE',
and give every node a copy (--secret-file, or the file 'secret' in the data directory). A new machine gets it
with a token of 'basalt node token' (--join), and is added to the cluster at once.
The data path is not authenticated yet: let it listen on loopback or on a network of your own.

Exit status: 0 after a stop, 1 if it could not start or had to end, 2 for a wrong command line.";

/// One node of a Basalt cluster: storage, metadata, front door and gRPC API.
#[derive(Clone, Debug, Parser)]
#[command(name = "basaltd", version, after_help = AFTER)]
pub struct Options {
    /// Directory of the node: identity, lock and, by default, its device. Created if it is missing.
    #[arg(long, env = "BASALT_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,

    /// Block device, partition or file that holds the data. Everything on it that is not Basalt's is
    /// left alone and refused. Default: the file 'device' in the data directory.
    #[arg(long, env = "BASALT_DEVICE", value_name = "PATH")]
    pub device: Option<PathBuf>,

    /// Size of the device's file when it is created, such as 16GiB: room for 8 segments at least.
    /// A device that exists keeps the size that it has.
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = basalt_api::size::parse)]
    pub device_size: u64,

    /// Size of a log segment, fixed when the device is first used: a multiple of 64KiB from 1MiB to
    /// 1GiB.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = segment_size)]
    pub segment_size: u64,

    /// Bytes of log after which a checkpoint of the index is taken, such as 256MiB; 0 takes none. It is
    /// taken sooner where room is short. A start replays about as much; each checkpoint costs a part
    /// of it in writes. Without checkpoints the log is never truncated, and a replica that the others'
    /// logs do not reach back to stays behind.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = basalt_api::size::parse)]
    pub checkpoint_every: u64,

    /// Memory for the index, such as 256MiB: where blocks stand that were used lately. The rest of it is read
    /// from the data directory when it is needed, which costs a read of it. Changes since the last checkpoint
    /// and what snapshots keep are in memory beyond that. 0 stands for a 2048th of the device, 64MiB at least.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = basalt_api::size::parse)]
    pub index_memory: u64,

    /// Bytes of Raft log that a checkpoint leaves for nodes that were away, such as 256MiB, if the device has
    /// room. A node that needs older entries is brought up by comparing pages, which moves what differs.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = basalt_api::size::parse)]
    pub log_retain: u64,

    /// Bytes a second with which lost or new replicas are brought up at least, however busy clients keep the node. More
    /// goes as long as clients hardly notice. Higher is sooner safe again, lower leaves more to clients.
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = rebuild_least)]
    pub rebuild_least: u64,

    /// Changes of volumes, attachments and members after which their state is saved: a start makes no more of
    /// them again than these, and the log forgets what the saved state stands for.
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub metadata_save_every: u64,

    /// Such changes that are kept in memory, 4MiB of them at most, for nodes that were away although the saved
    /// state stands for them. A node that needs older ones gets the state.
    #[arg(long, value_name = "COUNT", default_value_t = 4096)]
    pub metadata_retain: u64,

    /// Time in which the node reads and verifies all that it holds, again and again, such as 7d or 12h; 0 leaves it
    /// to 'basalt scrub start'. Damage is looked for at an even pace over nine tenths of it.
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = interval)]
    pub scrub_interval: Duration,

    /// Time after which a node that lost all it had is taken in again: if a node that belongs to no cluster, with a
    /// blank device, answers for so long at the addresses and under the name of a member that does not,
    /// it takes that member's place, as with 'basalt node add --replaces'. Of the nodes the setting of the one that
    /// leads the metadata group counts. 0 leaves it to an operator.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = grace)]
    pub replace_blank_after: Duration,

    /// The only cluster that this node may become a member of, as 'basalt cluster status' shows its id. Default:
    /// whichever takes it first.
    #[arg(long, value_name = "ID", value_parser = cluster_id)]
    pub only_cluster: Option<u64>,

    /// Begin with the state of this file, which 'basalt cluster restore' made of a backup, instead of the node's own:
    /// for a cluster whose metadata is lost. It is taken once; with the same file again the node goes on.
    #[arg(long, value_name = "FILE")]
    pub restore: Option<PathBuf>,

    /// What is made of nodes that fail.
    #[command(flatten)]
    pub healing: HealingOptions,

    /// Name of the node, unique in its cluster. Default: the machine's name.
    #[arg(long, env = "BASALT_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// Where the gRPC API listens.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7100")]
    pub listen: SocketAddr,

    /// Where the data path listens, for other nodes and for clients.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7200")]
    pub data_listen: SocketAddr,

    /// Host name or address under which other machines reach this node, if it is not the one that
    /// it listens on.
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,

    /// Serve the volumes attached to this node over NBD: an address, or unix:/path. Default: not.
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub nbd_listen: Option<NbdListen>,

    /// TLS for NBD.
    #[command(flatten)]
    pub tls: TlsOptions,

    /// The cluster's secret ('basalt secret new'), which only its owner may read. Read again when it changes.
    /// Default: the file 'secret' in the data directory, if there is one.
    #[arg(long, env = "BASALT_SECRET_FILE", value_name = "FILE", help_heading = "Who may ask")]
    pub secret_file: Option<PathBuf>,

    /// Get the secret from a node of a cluster, with a token ('basalt node token'), and ask to be added there. A
    /// node that has a secret already only asks to be added, and a member does neither.
    #[arg(long, env = "BASALT_JOIN", value_name = "TOKEN@HOST:PORT", help_heading = "Who may ask")]
    pub join: Option<JoinOption>,

    /// Run without a secret: everybody on this machine may do everything. Only loopback is listened on.
    #[arg(long, help_heading = "Who may ask")]
    pub insecure: bool,

    /// Serve NBD beyond this machine to clients that show no certificate.
    #[arg(long, help_heading = "Who may ask")]
    pub insecure_nbd: bool,

    /// Accept a file system without O_DIRECT (such as tmpfs). For tests: what is acknowledged is not
    /// on the device then.
    #[arg(long)]
    pub allow_buffered: bool,

    /// Logs.
    #[command(flatten)]
    pub logs: LogOptions,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceOptions,
}

impl Options {
    /// Looks for what can not work, before anything is opened or made.
    ///
    /// # Errors
    /// Says what is wrong and what would be right.
    pub fn check(&self) -> Result<(), String> {
        self.healing.check()?;
        let least = SEGMENTS_MIN * self.segment_size + SUPERBLOCK_AREA_BYTES;
        let device = self.device_path();
        if !device.exists() && self.device_size < least {
            return Err(format!(
                "--device-size {} is too small for segments of {}: {} at least, for {SEGMENTS_MIN} \
                 segments; or give smaller segments with --segment-size",
                show(self.device_size),
                show(self.segment_size),
                show(SEGMENTS_MIN * self.segment_size + DEVICE_MARGIN)
            ));
        }
        if device.is_dir() {
            return Err(format!(
                "--device {}: it is a directory; give a block device, or the path of a file in it",
                device.display()
            ));
        }
        if device.starts_with("/dev") && !device.exists() {
            return Err(format!(
                "--device {}: there is no such device; 'lsblk' shows those that there are",
                device.display()
            ));
        }
        let mut ports = vec![("--listen", self.listen), ("--data-listen", self.data_listen)];
        if let Some(NbdListen::Tcp(nbd)) = self.nbd_listen {
            ports.push(("--nbd-listen", nbd));
        }
        for (at, (one, address)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[at + 1..].iter().find(|(_, a)| a == address) {
                return Err(format!(
                    "{one} and {other} are both {address}: each needs a port of its own"
                ));
            }
        }
        if self.nbd_listen.is_none() && self.tls.tls_cert.is_some() {
            return Err(
                "--tls-cert is for NBD, which this node does not serve: give --nbd-listen \
                        too, or leave it out"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The node's name.
    ///
    /// # Errors
    /// If the name, given or the machine's, can not name a node.
    pub fn node_name(&self) -> Result<String, String> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => machine_name().map_err(|e| format!("the machine's name: {e}; give --name"))?,
        };
        basalt_meta::check_host(&name).map_err(|e| format!("--name: {e}"))?;
        Ok(name)
    }

    /// The address under which others reach what listens on `bound`.
    ///
    /// # Errors
    /// If it listens on every address or on a port that is not known yet.
    pub fn advertised(&self, bound: SocketAddr) -> Result<String, String> {
        if bound.port() == 0 {
            return Err(format!("{bound}: give a port, others must be able to find it again"));
        }
        match &self.advertise {
            Some(host) if host.contains(':') && !host.starts_with('[') => {
                Ok(format!("[{host}]:{}", bound.port()))
            }
            Some(host) => Ok(format!("{host}:{}", bound.port())),
            None if bound.ip().is_unspecified() => Err(format!(
                "{bound} means every address of this machine; say with --advertise under which one \
                 the other nodes reach it"
            )),
            None => Ok(bound.to_string()),
        }
    }

    /// The device's path.
    pub fn device_path(&self) -> PathBuf {
        self.device.clone().unwrap_or_else(|| self.data_dir.join("device"))
    }

    /// Where the secret is, or is to be kept.
    pub fn secret_path(&self) -> PathBuf {
        self.secret_file.clone().unwrap_or_else(|| self.data_dir.join("secret"))
    }

    /// Whether NBD is served with the node's own certificate.
    pub fn nbd_uses_own(&self) -> bool {
        !self.insecure
            && !self.insecure_nbd
            && self.nbd_listen.as_ref().is_some_and(|nbd| self.tls.uses_own(nbd))
    }

    /// Whether the node authenticates whoever calls. One that does not must be told so, and is reached from this
    /// machine only.
    ///
    /// # Errors
    /// Says what is missing, or open to other machines.
    pub fn check_access(&self) -> Result<bool, String> {
        let has_secret = self.secret_path().exists() || self.join.is_some();
        if self.insecure && (self.secret_file.is_some() || has_secret) {
            return Err(format!(
                "--insecure is for a node without a secret, and there is one in {}; leave out one of both",
                self.secret_path().display()
            ));
        }
        if self.insecure {
            let mut ports = vec![("--listen", self.listen), ("--data-listen", self.data_listen)];
            if let Some(NbdListen::Tcp(nbd)) = self.nbd_listen {
                ports.push(("--nbd-listen", nbd));
            }
            return match ports.iter().find(|(_, at)| !at.ip().is_loopback()) {
                Some((option, at)) => Err(format!(
                    "{option} {at} can be reached from other machines, and with --insecure nobody is asked who \
                     he is: listen on 127.0.0.1, or give the node a secret (basalt secret new)"
                )),
                None => Ok(false),
            };
        }
        if !has_secret && self.secret_file.is_none() {
            return Err(format!(
                "there is no secret in {}: make one with 'basalt secret new' for a new cluster, copy that of \
                 the other nodes, or join a cluster with --join; --insecure runs without, on this machine only",
                self.secret_path().display()
            ));
        }
        match &self.nbd_listen {
            Some(nbd)
                if !self.insecure_nbd
                    && !nbd.is_local()
                    && !self.nbd_uses_own()
                    && !self.tls.authenticates() =>
            {
                Err(open_nbd(nbd, "--nbd-listen"))
            }
            _ => Ok(true),
        }
    }
}

/// Segments that a device should have: fewer leave hardly any room beside the reserve.
const SEGMENTS_MIN: u64 = 8;
/// What a device has beside its segments, rounded up.
const DEVICE_MARGIN: u64 = 1 << 20;
const SEGMENT_MIN: u64 = 1 << 20;

/// The shortest time in which a node may be told to look at all that it holds.
const INTERVAL_MIN: Duration = Duration::from_secs(60);
const INTERVAL_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Below it pages would hardly ever move in whole pieces, above it nothing is left to yield.
const REBUILD_LEAST_MIN: u64 = 64 << 10;
const REBUILD_LEAST_MAX: u64 = 256 << 20;

fn cluster_id(text: &str) -> Result<u64, String> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = u64::from_str_radix(text, 16).ok().filter(|id| digits && *id != 0);
    id.ok_or_else(|| format!("'{text}' is no id of a cluster: give its 16 hexadecimal digits"))
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if !time.is_zero() && !(INTERVAL_MIN..=INTERVAL_MAX).contains(&time) {
        return Err(format!("{text} is not from 1m to 365d; 0 is for never"));
    }
    Ok(time)
}

fn grace(text: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time > INTERVAL_MAX {
        return Err(format!("{text} is more than 365d; 0 is for never"));
    }
    Ok(time)
}

fn rebuild_least(text: &str) -> Result<u64, String> {
    let bytes = basalt_api::size::parse(text)?;
    if !(REBUILD_LEAST_MIN..=REBUILD_LEAST_MAX).contains(&bytes) {
        return Err(format!(
            "{text} a second is not from {} to {}: 8MiB is usual",
            show(REBUILD_LEAST_MIN),
            show(REBUILD_LEAST_MAX)
        ));
    }
    Ok(bytes)
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: give a number and s, m, h or d, such as 7d, or 0");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn segment_size(text: &str) -> Result<u64, String> {
    let bytes = basalt_api::size::parse(text)?;
    let cut = bytes.is_multiple_of(SEGMENT_BYTES_UNIT);
    if !cut || !(SEGMENT_MIN..=SEGMENT_BYTES_MAX).contains(&bytes) {
        return Err(format!(
            "a segment can not have {bytes} bytes: give a multiple of {} from {} to {}, such as 64MiB",
            show(SEGMENT_BYTES_UNIT),
            show(SEGMENT_MIN),
            show(SEGMENT_BYTES_MAX)
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn sizes_and_addresses_that_can_not_work_are_named() {
        let parse = |extra: &[&str]| {
            let args = ["basaltd", "--data-dir", "/nonexistent"].into_iter();
            Options::try_parse_from(args.chain(extra.iter().copied()))
        };
        parse(&[]).expect("good options").check().expect("the defaults work");
        for (size, named) in
            [("1000", "64 KiB"), ("65536", "1 MiB"), ("2GiB", "1 GiB"), ("1GB", "decimal")]
        {
            let error = parse(&["--segment-size", size]).expect_err(size).to_string();
            assert!(error.contains(named), "{size}: {error}");
        }
        for size in ["0", "4KiB", "1GiB"] {
            let error = parse(&["--rebuild-least", size]).expect_err(size).to_string();
            assert!(error.contains("from 64 KiB to 256 MiB"), "{size}: {error}");
        }
        for (extra, named) in [
            (&["--device-size", "64MiB"][..], "513 MiB at least"),
            (&["--device", "/tmp"], "is a directory"),
            (&["--device", "/dev/no-such-disk"], "lsblk"),
            (&["--data-listen", "127.0.0.1:7100"], "--listen and --data-listen"),
            (&["--nbd-listen", "127.0.0.1:7200"], "--data-listen and --nbd-listen"),
            (&["--tls-cert", "c", "--tls-key", "k"], "--nbd-listen"),
        ] {
            let error = parse(extra).expect("parsed").check().expect_err(named);
            assert!(error.contains(named), "{extra:?}: {error}");
        }
    }

    #[test]
    fn a_node_that_asks_nobody_is_reached_from_this_machine_only() {
        let check = |extra: &[&str]| {
            let args = ["basaltd", "--data-dir", "/nonexistent"].into_iter();
            let parsed = Options::try_parse_from(args.chain(extra.iter().copied()));
            let mut options = parsed.expect("good options");
            options.secret_file = options.secret_file.filter(|_| extra.contains(&"--secret-file"));
            options.check_access()
        };
        assert!(check(&[]).expect_err("no secret").contains("basalt secret new"));
        assert_eq!(check(&["--secret-file", "/x"]), Ok(true), "whether it is good is seen later");
        assert_eq!(check(&["--insecure"]), Ok(false));
        for open in ["--listen", "--data-listen", "--nbd-listen"] {
            let why = check(&["--insecure", open, "0.0.0.0:7300"]).expect_err(open);
            assert!(why.contains(open), "{why}");
        }
        assert!(check(&["--insecure", "--secret-file", "/x"]).expect_err("both").contains("/x"));
        let nbd = ["--secret-file", "/x", "--nbd-listen", "10.0.0.1:10809"];
        assert_eq!(check(&nbd), Ok(true), "with the node's own certificate");
        for open in [&["--tls-cert", "c", "--tls-key", "k"][..], &["--tls", "off"]] {
            let open = [&nbd[..], open].concat();
            assert!(check(&open).expect_err("open").contains("--tls-client-ca"));
            assert_eq!(check(&[&open[..], &["--insecure-nbd"]].concat()), Ok(true));
        }
        let tls = ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"];
        assert_eq!(check(&[&nbd[..], &tls].concat()), Ok(true));
        assert_eq!(check(&["--secret-file", "/x", "--nbd-listen", "unix:/s"]), Ok(true));
    }

    #[test]
    fn a_cluster_is_named_by_its_id() {
        assert_eq!(cluster_id("00000000000000ff"), Ok(255));
        for wrong in ["", "ff", "0000000000000000", "+00000000000000f", "00000000000000fg"] {
            assert!(cluster_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_grace_may_be_short() {
        assert_eq!(grace("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(grace("0"), Ok(Duration::ZERO));
        assert!(grace("366d").is_err() && grace("2").is_err());
    }

    #[test]
    fn times_are_numbers_with_units() {
        for (text, seconds) in
            [("0", 0), ("60s", 60), ("90m", 5_400), ("12h", 43_200), ("7d", 604_800)]
        {
            assert_eq!(interval(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "7", "d", "-1d", "1.5d", "7w", "7ä", "59s", "366d", "99999999999999999999d"]
        {
            interval(text).expect_err(text);
        }
    }

    #[test]
    fn an_address_that_others_can_use_is_wanted() {
        let parse = |extra: &[&str]| {
            let args = ["basaltd", "--data-dir", "/d"].into_iter().chain(extra.iter().copied());
            Options::try_parse_from(args).expect("good options")
        };
        let all: SocketAddr = "0.0.0.0:7100".parse().expect("an address");
        assert!(parse(&[]).advertised(all).unwrap_err().contains("--advertise"));
        assert_eq!(parse(&["--advertise", "n1"]).advertised(all).unwrap(), "n1:7100");
        assert_eq!(parse(&["--advertise", "::1"]).advertised(all).unwrap(), "[::1]:7100");
    }
}
