//! Long runs of the tests of this crate.

use anyhow::{Result, ensure};
use basalt_chaos::power::campaign::Campaign;
use basalt_chaos::rounds;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

const AFTER: &str = "\
Examples:
  chaos rounds --rounds 100
  chaos power-cut --runs 40 --cuts 2000
The programs of the cluster are looked for beside this one, or in BASALT_BIN_DIR.";

/// Puts clusters through faults, longer than the tests do.
#[derive(Debug, Parser)]
#[command(name = "chaos", after_help = AFTER)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A node is killed or stopped while fio writes and verifies, again and again.
    Rounds {
        /// How often.
        #[arg(long, default_value = "100")]
        rounds: u32,
        /// Seed of the choice of nodes and times.
        #[arg(long, default_value = "1")]
        seed: u64,
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
        Command::Rounds { rounds, seed } => {
            let report = rounds::run("chaos", rounds, seed)?;
            print!("{report}");
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
