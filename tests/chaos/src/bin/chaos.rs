//! Long runs of the tests of this crate.

use anyhow::{Context, Result, ensure};
use basalt_chaos::absence::{self, Reach};
use basalt_chaos::clones;
use basalt_chaos::creates;
use basalt_chaos::cuts;
use basalt_chaos::fence::{self, Cut};
use basalt_chaos::fill;
use basalt_chaos::headless;
use basalt_chaos::heal;
use basalt_chaos::load::{DEPTH, Hot};
use basalt_chaos::many;
use basalt_chaos::members;
use basalt_chaos::metadata;
use basalt_chaos::minimum;
use basalt_chaos::overwrite::{self, Plan};
use basalt_chaos::power::campaign::Campaign;
use basalt_chaos::rot;
use basalt_chaos::rounds::{self, Report};
use basalt_chaos::snapshots;
use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

const AFTER: &str = "\
Examples:
  chaos rounds --rounds 25 --seed 3 -o json > rounds-3.json
  chaos summary rounds-*.json
  chaos absence --volume-mib 1024
  chaos clones --volume-mib 256
  chaos creates --count 1000 --deaths 5
  chaos fence --cut network --rounds 10
  chaos fill --times 50
  chaos many --count 10000
  chaos members --volume-mib 1024
  chaos members --volume-mib 512 --only-losses --losses 5
  chaos metadata --volumes 10000 --changes 100000
  chaos overwrite --full 80 --times 10
  chaos snapshots --count 1000
  chaos cuts --count 100 --deaths 20
  chaos rot --volume-mib 256 --rounds 6
  chaos power-cut --runs 40 --cuts 2000
The programs of the cluster are looked for beside this one, or in BASALT_BIN_DIR. Its devices and logs are put
there too, or into BASALT_TEST_DIR: 'scripts/memory-disk.sh DIR' mounts one in memory, so that what is
measured is not one disk under three nodes.";

/// Puts clusters through faults, longer than the tests do.
#[derive(Debug, Parser)]
#[command(name = "chaos", after_help = AFTER)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A node is killed, frozen or stopped while fio writes and verifies, again and again.
    Rounds {
        /// How often.
        #[arg(long, default_value = "100")]
        rounds: u32,
        /// Seed of the choice of nodes and times.
        #[arg(long, default_value = "1")]
        seed: u64,
        /// What is printed at the end; the rounds are told on the standard error meanwhile.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// Puts the rounds of several runs together, from what they printed with `-o json`.
    Summary {
        /// Their files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Very many volumes are created, listed, watched and deleted; prints rates, times and memory.
    Many {
        /// Volumes.
        #[arg(long, default_value = "10000")]
        count: usize,
        /// Calls under way at once.
        #[arg(long, default_value = "32")]
        clients: usize,
    },
    /// A volume that is guaranteed a minimum, beside others that ask for as much as they can get.
    Minimum {
        /// Requests a second that are guaranteed.
        #[arg(long, default_value = "2000")]
        iops: u64,
        /// Writes that the promised volume has under way.
        #[arg(long, default_value = "4")]
        depth: u32,
        /// Other volumes, each with 64 writes under way.
        #[arg(long, default_value = "4")]
        others: usize,
        /// Rounds without and with.
        #[arg(long, default_value = "3")]
        rounds: usize,
    },
    /// A node is away while a hundredth of a volume changes, and comes back.
    Absence {
        /// MiB of the volume.
        #[arg(long, default_value = "1024")]
        volume_mib: u64,
        /// Seed of what is drawn.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// Volumes are cloned, flattened and deleted under load, while nodes die.
    Clones {
        /// MiB of the volume.
        #[arg(long, default_value = "256")]
        volume_mib: u64,
        /// Writes a second to each volume at most; as many as go without it.
        #[arg(long)]
        rate: Option<u64>,
        /// Seconds of each step.
        #[arg(long, default_value = "10")]
        rest: u64,
        /// Seed of the blocks.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// Volumes are created by several clients while the leader of the metadata group is killed.
    Creates {
        /// How many volumes.
        #[arg(long, default_value = "1000")]
        count: usize,
        /// Clients that create them.
        #[arg(long, default_value = "4")]
        clients: usize,
        /// How often the leader is killed.
        #[arg(long, default_value = "5")]
        deaths: usize,
    },
    /// A node with a volume is frozen, cut off or killed under a writer, and the volume goes on elsewhere.
    Fence {
        /// What is done to the node; cutting it off needs to be root.
        #[arg(long, value_enum)]
        cut: Cut,
        /// How often: by itself and on demand in turn.
        #[arg(long, default_value = "10")]
        rounds: usize,
    },
    /// Every thread but the reactors is stopped while fio writes and verifies; needs to be root.
    Headless {
        /// Seconds.
        #[arg(long, default_value = "60")]
        seconds: u64,
    },
    /// A node dies under load, is rebuilt on the others, and comes back.
    Heal {
        /// MiB of the volume.
        #[arg(long, default_value = "512")]
        volume_mib: u64,
        /// Volume groups.
        #[arg(long, default_value = "16")]
        groups: usize,
        /// Writes a second at most; as many as go without it.
        #[arg(long)]
        rate: Option<u64>,
        /// How long the node is dead before it is given up.
        #[arg(long, default_value = "10s")]
        rebuild_after: String,
    },
    /// The devices are filled to the last byte and emptied again.
    Fill {
        /// How often.
        #[arg(long, default_value = "50")]
        times: u32,
        /// Seed of what is drawn.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// One node with many volumes and many changes of them is started again; prints what that takes.
    Metadata {
        /// Volumes.
        #[arg(long, default_value = "10000")]
        volumes: u64,
        /// Changes beside those that make them.
        #[arg(long, default_value = "100000")]
        changes: u64,
    },
    /// Three nodes become five and three others, and one is lost and replaced, under load; prints a table.
    Members {
        /// MiB of the volume.
        #[arg(long, default_value = "1024")]
        volume_mib: u64,
        /// Volume groups.
        #[arg(long, default_value = "64")]
        groups: usize,
        /// Writes a second at most; as many as go without it.
        #[arg(long)]
        rate: Option<u64>,
        /// Seconds at rest that are compared with.
        #[arg(long, default_value = "15")]
        rest: u64,
        /// How often a node is lost and replaced.
        #[arg(long, default_value = "1")]
        losses: u32,
        /// No nodes come and leave: they are only lost and replaced.
        #[arg(long)]
        only_losses: bool,
        /// Bytes a second with which replicas are brought up at least, as the nodes take it.
        #[arg(long, default_value = "8MiB")]
        rebuild_least: String,
        /// Seed of the blocks.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// Devices that are nearly full are overwritten at random; prints a table.
    Overwrite {
        /// Bytes of each device.
        #[arg(long, default_value = "1GiB")]
        device: String,
        /// Some blocks get more writes than others: 10:90 is nine tenths of them for a tenth of the blocks.
        #[arg(long, value_name = "BLOCKS:WRITES")]
        hot: Option<Hot>,
        /// Writes under way.
        #[arg(long, default_value_t = DEPTH)]
        depth: usize,
        /// Hundredths of the device that the volume takes. Of 1 GiB 885 MiB can be live: 69 is 80 % of that.
        #[arg(long, default_value = "80")]
        full: u64,
        /// Bytes overwritten, as a multiple of the device.
        #[arg(long, default_value = "10")]
        times: u64,
        /// Writes a second at most; as many as go without it.
        #[arg(long)]
        rate: Option<u64>,
        /// Seed of the blocks.
        #[arg(long, default_value = "1")]
        seed: u64,
        /// File for a picture of the table, as SVG.
        #[arg(long, value_name = "FILE")]
        picture: Option<PathBuf>,
    },
    /// Snapshots are taken of a volume that is written all the time, read back, and dropped in any order.
    Snapshots {
        /// How many.
        #[arg(long, default_value = "1000")]
        count: usize,
        /// How often reads and writes are measured with all of them, and without any, in turn.
        #[arg(long, default_value = "5")]
        pairs: usize,
        /// Snapshots a second at most; as many as go without it.
        #[arg(long)]
        rate: Option<u64>,
        /// Seed of the order in which they are dropped.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// Several volumes that are written in turn are cut together, read back, compared, and gone back to.
    Cuts {
        /// How many.
        #[arg(long, default_value = "100")]
        count: usize,
        /// How many more while a node is killed.
        #[arg(long, default_value = "10")]
        deaths: usize,
        /// Seed of the nodes and moments.
        #[arg(long, default_value = "1")]
        seed: u64,
    },
    /// One copy of everything is damaged, each on another node, and a scrub repairs all of it.
    Rot {
        /// MiB of the volume.
        #[arg(long, default_value = "256")]
        volume_mib: u64,
        /// How often: while all nodes are down, while all run, while one after the other is down, and so on.
        #[arg(long, default_value = "6")]
        rounds: u32,
        /// Seed of everything drawn.
        #[arg(long, default_value = "1")]
        seed: u64,
        /// What is printed at the end; the rounds are told on the standard error meanwhile.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
    /// All nodes lose power at one instant: images of recorded devices are cut and revived.
    PowerCut {
        /// Clusters that are recorded.
        #[arg(long, default_value = "20")]
        runs: u64,
        /// Cuts of each record.
        #[arg(long, default_value = "1000")]
        cuts: u64,
        /// Seed of everything drawn.
        #[arg(long, default_value = "1")]
        seed: u64,
        /// Let the devices lie about durability: losses must be found then.
        #[arg(long)]
        lying: bool,
        /// Where the devices stand; removed at the end.
        #[arg(long, default_value = "power-cut-devices")]
        folder: PathBuf,
    },
}

fn main() -> Result<()> {
    match Options::parse().command {
        Command::Rounds { rounds, seed, output } => {
            let report = rounds::run("chaos", rounds, seed, |round| eprintln!("{round}"))?;
            match output {
                Output::Text => print!("{report}"),
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
            judge(&report)?;
        }
        Command::Summary { files } => {
            let mut all = Report::default();
            for file in files {
                let text = std::fs::read_to_string(&file);
                let text = text.with_context(|| file.display().to_string())?;
                let one = serde_json::from_str(&text);
                all.extend(one.with_context(|| file.display().to_string())?);
            }
            print!("{all}");
            judge(&all)?;
        }
        Command::Absence { volume_mib, seed } => {
            for reach in [Reach::Entries, Reach::Pages] {
                println!("{}", absence::run("chaos-absence", reach, volume_mib << 20, 100, seed)?);
            }
        }
        Command::Minimum { iops, depth, others, rounds } => {
            let time = Duration::from_secs(8);
            let plan =
                minimum::Plan { minimum: iops, depth, others, others_depth: 64, rounds, time };
            print!("{}", minimum::run("chaos-minimum", plan, |said| eprintln!("{said}"))?);
        }
        Command::Clones { volume_mib, rate, rest, seed } => {
            let (volume_bytes, rest) = (volume_mib << 20, Duration::from_secs(rest));
            let plan = clones::Plan { volume_bytes, rate, rest, seed };
            print!("{}", clones::run("chaos-clones", &plan, |said| eprintln!("{said}"))?);
        }
        Command::Creates { count, clients, deaths } => {
            let plan = creates::Plan { count, clients, deaths };
            print!("{}", creates::run("chaos-creates", &plan, |said| eprintln!("{said}"))?);
        }
        Command::Fence { cut, rounds } => {
            let plan = fence::Plan { cut, rounds, node_args: Vec::new() };
            let rounds = fence::run("chaos-fence", &plan, |round| println!("{round}"))?;
            println!("{}", fence::summary(cut, &rounds));
        }
        Command::Headless { seconds } => {
            println!("{}", headless::run("chaos-headless", Duration::from_secs(seconds))?);
        }
        Command::Heal { volume_mib, groups, rate, rebuild_after } => {
            let (volume_bytes, node_args) =
                (volume_mib << 20, vec!["--rebuild-after".to_owned(), rebuild_after]);
            let plan = heal::Plan { volume_bytes, groups, rate, node_args };
            println!("{}", heal::run("chaos-heal", &plan, |said| eprintln!("{said}"))?);
        }
        Command::Fill { times, seed } => {
            fill::run("chaos-fill", times, seed, |round| println!("{round:?}"))?;
        }
        Command::Overwrite { device, hot, depth, full, times, rate, seed, picture } => {
            println!("{}", overwrite::HEAD);
            // Once in the life of the program.
            let (device, segment, intervals) = (&*device.leak(), "4MiB", 2);
            let plan = Plan { device, segment, full, times, intervals, rate, hot, depth, seed };
            let tell = |interval: &overwrite::Interval| println!("{interval}");
            let intervals = overwrite::run("chaos-overwrite", &plan, tell)?;
            if let Some(file) = picture {
                std::fs::write(&file, overwrite::picture(&intervals))
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
        Command::Metadata { volumes, changes } => {
            for figures in metadata::figures("chaos-metadata", volumes, changes)? {
                println!("{figures}");
            }
        }
        Command::Members {
            volume_mib,
            groups,
            rate,
            rest,
            losses,
            only_losses,
            rebuild_least,
            seed,
        } => {
            println!("{}", members::HEAD);
            let plan = members::Plan {
                volume_bytes: volume_mib << 20,
                groups,
                rate,
                rest: Duration::from_secs(rest),
                grows: !only_losses,
                losses,
                seed,
                node_args: vec!["--rebuild-least".to_owned(), rebuild_least],
            };
            let phases = members::run("chaos-members", &plan, |phase| println!("{phase}"))?;
            let tolls = members::Toll::all(&phases);
            tolls.iter().for_each(|toll| println!("replaced: {toll}"));
            if let Some(median) = members::Toll::median(&tolls) {
                println!("median: {median}");
            }
        }
        Command::Snapshots { count, pairs, rate, seed } => {
            let tell = |text| eprintln!("{text}");
            print!("{}", snapshots::run("chaos-snapshots", count, pairs, rate, seed, tell)?);
        }
        Command::Cuts { count, deaths, seed } => {
            let tell = |text| eprintln!("{text}");
            print!("{}", cuts::run("chaos-cuts", count, deaths, seed, tell)?);
        }
        Command::Many { count, clients } => {
            let plan = many::Plan { count, clients };
            println!("{}", many::run("chaos-many", plan, |told| eprintln!("{told}"))?);
        }
        Command::Rot { volume_mib, rounds, seed, output } => {
            let plan = rot::Plan::turns(volume_mib, rounds, seed);
            let report = rot::run("chaos-rot", &plan, |round| eprintln!("{round}"))?;
            match output {
                Output::Text => println!("{report}"),
                Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
            }
        }
        Command::PowerCut { runs, cuts, seed, lying, folder } => {
            let report = Campaign { seed, runs, cuts, lying }.carry_out(&folder)?;
            // It is empty: each run removed its own.
            let _ = std::fs::remove_dir(&folder);
            report.findings.iter().take(20).for_each(|finding| println!("{finding}"));
            println!("{report}");
            ensure!(lying != report.findings.is_empty(), "the power cuts did not end as they must");
        }
    }
    Ok(())
}

/// Data and errors decide, times do not.
fn judge(report: &Report) -> Result<()> {
    let failed = report.failures().count();
    ensure!(failed == 0, "{failed} rounds ended with an error or a mismatch");
    Ok(())
}
