//! The words of `basalt events`.

use super::seconds;
use clap::{Args, ValueEnum};
use std::time::Duration;

pub(super) const AFTER_EVENTS: &str = "\
The newest 2,048 events are kept. Without --watch they are shown once, the newest last.

Examples:
  basalt events
  basalt events --severity warning --since 3600
  basalt events --filter 'target = \"volumes/demo\"' --watch
  basalt events -o json | jq -r '.events[].reason'";

/// What is to be told of what happened.
#[derive(Clone, Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only those that it holds for.
    #[arg(long, value_name = "FILTER", default_value = "")]
    pub filter: String,
    /// Only those that are so grave, or graver.
    #[arg(long, value_name = "SEVERITY", default_value = "info")]
    pub severity: Severity,
    /// Only those of so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub since: Option<Duration>,
    /// Of these the newest.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub last: u32,
    /// Go on, and show each as it happens.
    #[arg(long, short, conflicts_with = "last")]
    pub watch: bool,
}

/// How grave an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Severity {
    /// All are.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Something is lost, or out of reach.
    Error,
}
