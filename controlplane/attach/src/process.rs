//! How a process begins to log and to trace, and how it ends when something is broken.

use basalt_security::Credentials;
use basalt_telemetry::{LogOptions, TraceOptions};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

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

/// Says what becomes of the logs and traces of this process from now on. If that can not be, it is said and the status
/// given with which the process ends.
///
/// # Errors
/// If the options can not be followed.
pub fn start_telling(
    program: &'static str,
    logs: &LogOptions,
    traces: &TraceOptions,
) -> Result<(), ExitCode> {
    basalt_telemetry::start(program, "info", logs, traces).map_err(|problem| {
        eprintln!("{program}: {problem}");
        ExitCode::from(2)
    })
}

/// Begins the export of traces, if there are any, on the runtime that it is called on. Calls carry their trace from now
/// on.
///
/// # Errors
/// If the collector can not be called as it was asked for.
pub fn export_traces() -> Result<(), Usage> {
    basalt_telemetry::export().map_err(|problem| Usage(problem.to_string()))?;
    if basalt_telemetry::is_exporting() {
        basalt_api::traced::carry(basalt_telemetry::context::header_of);
    }
    Ok(())
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
