//! The command line of `basalt-attach`.

use crate::door::TlsOptions;
use crate::listen::NbdListen;
use crate::scrape::MetricsListen;
use basalt_security::credentials::CredentialOptions;
use basalt_telemetry::{LogOptions, TraceOptions};
use clap::Parser;
use std::time::Duration;

const AFTER: &str = "\
Examples:
  basalt-attach --cluster 127.0.0.1:7101,127.0.0.1:7102 --volume demo --listen 127.0.0.1:10809
  basalt-attach --cluster n1:7100 --volume db --volume logs --listen unix:/run/basalt.sock --move
Then, as the export has the volume's name:
  nbdinfo nbd://127.0.0.1:10809/demo
  qemu-system-x86_64 -drive driver=nbd,host=127.0.0.1,port=10809,export=demo ...

A volume is attached to one host at a time. Starting again under the same --host takes it back from a
process that died; any other host needs --move, which shuts the former session out for good. SIGTERM
and SIGINT finish what is under way and detach.

With LISTEN_FDS and LISTEN_PID (systemd socket activation) the inherited sockets are used, and
--listen may be left out.

Exit status: 0 after a stop, 1 if it could not start, 2 for a wrong command line, 3 if every session
was lost to another host, 101 after a bug.";

/// Serves volumes of a Basalt cluster over NBD, on a machine that holds no data.
#[derive(Clone, Debug, Parser)]
#[command(name = "basalt-attach", version, after_help = AFTER)]
pub struct Options {
    /// gRPC addresses of some nodes, asked in turn until one answers.
    #[arg(
        long,
        env = "BASALT_CLUSTER",
        value_name = "ADDR,...",
        value_delimiter = ',',
        required = true
    )]
    pub cluster: Vec<String>,

    /// Volumes to attach. VOLUME@SNAPSHOT shows a snapshot, which can only be read, and attaches nothing.
    #[arg(long = "volume", value_name = "NAME", value_delimiter = ',', required = true)]
    pub volumes: Vec<String>,

    /// Where NBD is served: an address, or unix:/path. May be given several times.
    #[arg(long, value_name = "ADDR:PORT|unix:PATH")]
    pub listen: Vec<NbdListen>,

    /// Name under which the volumes are attached. Default: the machine's name and '-attach'.
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,

    /// Take the volumes from other hosts that have them.
    #[arg(long = "move")]
    pub take: bool,

    /// Refuse writes.
    #[arg(long)]
    pub read_only: bool,

    /// How long one question to the cluster may take at one node.
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = seconds)]
    pub timeout: Duration,

    /// TLS for NBD.
    #[command(flatten)]
    pub tls: TlsOptions,

    /// Serve NBD beyond this machine to clients that show no certificate.
    #[arg(long)]
    pub insecure_nbd: bool,

    /// How the cluster knows this program.
    #[command(flatten)]
    pub credentials: CredentialOptions,

    /// Tell Prometheus at /metrics: a port, or an address. Beyond this machine only whoever shows a certificate of the
    /// cluster's authority over TLS is told, and the secret is needed (--secret-file). Default: not.
    #[arg(long, value_name = "[ADDR:]PORT")]
    pub metrics: Option<MetricsListen>,

    /// Logs.
    #[command(flatten)]
    pub logs: LogOptions,

    /// Traces.
    #[command(flatten)]
    pub traces: TraceOptions,
}

/// A time in whole seconds, at least one.
///
/// # Errors
/// Says what is wrong with the text.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("'{text}' is not a time; write whole seconds, such as 10")),
    }
}

/// The machine's name up to the first dot.
///
/// # Errors
/// If the system does not tell it.
pub fn machine_name() -> std::io::Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(text.trim().split('.').next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        let parsed = Options::try_parse_from([
            "basalt-attach",
            "--cluster",
            "a:1,b:2",
            "--volume",
            "demo",
            "--listen",
            "unix:/s",
            "--move",
        ])
        .expect("good options");
        assert_eq!(parsed.cluster, ["a:1", "b:2"]);
        assert!(parsed.take);
        assert!(seconds("0").is_err() && seconds("x").is_err());
    }
}
