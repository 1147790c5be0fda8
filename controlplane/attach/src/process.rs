//! How a process logs, and how it ends when something is broken.

use basalt_security::Credentials;
use clap::ValueEnum;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The command line asks for what can not be. The process ends with status 2.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The status with which a process ends that had to give up.
pub fn exit_code(problem: &anyhow::Error) -> ExitCode {
    match problem.downcast_ref::<Usage>() {
        Some(_) => ExitCode::from(2),
        None => ExitCode::FAILURE,
    }
}

/// Logs go to the standard error. `BASALT_LOG` chooses what is logged, as in
/// `info,basalt_node=debug`.
pub fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env("BASALT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A subscriber that is set already (in a test) stays.
    let _ = match format {
        LogFormat::Text => base.try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
}

/// A panic in any thread ends the process with its reason: a process of which half works is worse
/// than one that is restarted.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        let trace = std::backtrace::Backtrace::force_capture();
        eprintln!("basalt: this is a bug; the process ends. Thread '{name}': {panic}\n{trace}");
        std::process::exit(101);
    }));
}

/// How often credentials are looked at.
const FRESH_EVERY: Duration = Duration::from_secs(1);

/// Reads credentials again when their files change, at once on SIGHUP, and renews them when it is time, as long as
/// the process lives.
pub async fn keep_fresh(credentials: Credentials) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(problem) => return tracing::error!("credentials are not kept fresh: {problem}"),
    };
    let mut last = None;
    loop {
        tokio::select! {
            _ = hangup.recv() => last = None,
            () = tokio::time::sleep(FRESH_EVERY) => {}
        }
        // What is wrong is said once, not every second.
        match credentials.refresh() {
            Ok(()) => last = None,
            Err(problem) if last.as_ref() != Some(&problem) => {
                tracing::warn!("the credentials of before stay in use: {problem}");
                last = Some(problem);
            }
            Err(_) => {}
        }
    }
}

/// Ends when the process is asked to stop, and names the signal.
///
/// # Errors
/// If signals can not be received.
pub async fn stop_signal() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}
