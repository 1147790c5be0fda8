//! What programs tell of themselves while they work: log lines, and traces for an OpenTelemetry collector.
//!
//! All programs log and trace by the `tracing` crate. [`start`] says what becomes of that: lines on the standard error
//! ([`LogOptions`]), and, only if it is asked for, spans that are exported in batches ([`TraceOptions`]). A span is
//! handed to a bounded queue and nobody waits for a collector; what finds no place there is counted.
//!
//! * [`context`]: how a trace is carried from program to program, and kept with work that goes on later;
//! * `lines`: how log lines look;
//! * `export`: the queue, and the task that empties it.

pub mod context;
mod export;
mod lines;

pub use context::TraceContext;
pub use export::{Counts, counts, describe, export, flush, is_exporting};
pub use lines::LogFormat;

use clap::Args;
use lines::Lines;
use std::io::{IsTerminal, Write};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::{Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// What this project's crates are called first.
const OURS: &str = "basalt";

/// What can not be done as it was asked for.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct TelemetryError(pub String);

/// How a program logs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs and traces")]
pub struct LogOptions {
    /// How log lines on the standard error look.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, also for parts alone, such as
    /// 'info,basalt_node=debug'. Default: info, and warn for 'basalt'.
    #[arg(long, global = true, env = "BASALT_LOG", value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// Whether a program exports traces.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Logs and traces")]
pub struct TraceOptions {
    /// Export traces over OTLP (gRPC), to http://localhost:4317 or where OTEL_EXPORTER_OTLP_ENDPOINT says, which
    /// exports them without this option, too. The other standard variables of OpenTelemetry count as well.
    #[arg(long, global = true)]
    pub trace: bool,
}

impl TraceOptions {
    /// Whether traces are exported: asked for by the option or a variable, and not switched off by one.
    fn wanted(&self, variable: impl Fn(&str) -> Option<String>) -> Result<bool, TelemetryError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is = |name: &str, value: &str| set(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
        let endpoint = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        let asked = self.trace || endpoint.iter().any(|name| set(name).is_some());
        if !asked || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
            return Ok(false);
        }
        let secured = |name: &&&str| set(name).is_some_and(|value| value.starts_with("https:"));
        if let Some(name) = endpoint.iter().find(secured) {
            let text = format!(
                "{name}: traces are exported without TLS only (http://...), to a collector on this machine or \
                 on a network of your own, which can send them on"
            );
            return Err(TelemetryError(text));
        }
        for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
            if let Some(other) = set(name).filter(|value| value != "grpc") {
                let text =
                    format!("{name} is '{other}': traces are exported over gRPC only (grpc)");
                return Err(TelemetryError(text));
            }
        }
        Ok(true)
    }
}

/// Says what becomes of logs and traces of this program from now on. `usual` is the level of its log lines if the
/// options name none. [`export`] begins the export.
///
/// # Errors
/// If the options can not be followed.
pub fn start(
    program: &'static str,
    usual: &str,
    logs: &LogOptions,
    traces: &TraceOptions,
) -> Result<(), TelemetryError> {
    let level = logs.log_level.as_deref().unwrap_or(usual);
    let filter = filter(level)?;
    let lines = Lines::new(logs.log_format, std::io::stderr().is_terminal(), |line: &str| {
        // There is nowhere else to say that it can not be said.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    });
    let exported = traces.wanted(|name| std::env::var(name).ok())?;
    let tracer = exported.then(|| export::tracer(program));
    // Spans of libraries are theirs.
    let ours = Targets::new().with_target(OURS, LevelFilter::INFO);
    let spans = tracer.map(|tracer| {
        tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false)
    });
    let subscriber = Registry::default()
        .with(lines.with_filter(filter))
        .with(spans.map(|spans| spans.with_filter(ours)));
    // A subscriber that is set already (in a test) stays.
    let _ = subscriber.try_init();
    Ok(())
}

/// What of all that is told becomes lines. Our spans count whatever the level is: they name what lines are about.
fn filter<S>(level: &str) -> Result<impl Filter<S> + 'static, TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let told = EnvFilter::try_new(level).map_err(|problem| {
        TelemetryError(format!("'{level}' is no filter of log lines (--log-level): {problem}"))
    })?;
    let names = filter_fn(|of| of.is_span() && of.target().starts_with(OURS));
    Ok(told.or(names.with_max_level_hint(LevelFilter::INFO)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[test]
    fn lines_name_what_they_are_about_at_every_level() {
        let told = Arc::new(Mutex::new(String::new()));
        let to = told.clone();
        let write = move |line: &str| to.lock().expect("one thread").push_str(line);
        let lines = Lines::new(LogFormat::Text, false, write);
        let filter = filter("warn").expect("a level");
        tracing::subscriber::with_default(
            Registry::default().with(lines.with_filter(filter)),
            || {
                let _part = tracing::info_span!("part", volume = "demo").entered();
                tracing::info!("too little");
                tracing::warn!("enough");
            },
        );
        let told = told.lock().expect("one thread").clone();
        assert!(told.contains("enough volume=demo") && !told.contains("too little"), "{told}");
    }

    fn wanted(trace: bool, set: &[(&str, &str)]) -> Result<bool, TelemetryError> {
        let found = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        TraceOptions { trace }.wanted(found)
    }

    #[test]
    fn the_standard_variables_count() {
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317");
        assert_eq!(wanted(false, &[]), Ok(false), "off unless it is asked for");
        assert_eq!(wanted(true, &[]), Ok(true));
        assert_eq!(wanted(false, &[at]), Ok(true));
        assert_eq!(wanted(false, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "x")]), Ok(true));
        assert_eq!(wanted(false, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Ok(false));
        assert_eq!(wanted(true, &[("OTEL_SDK_DISABLED", "TRUE")]), Ok(false));
        assert_eq!(wanted(false, &[at, ("OTEL_TRACES_EXPORTER", "none")]), Ok(false));
        assert_eq!(wanted(false, &[at, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), Ok(true));
        let refused = wanted(false, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c:4317")]);
        assert!(refused.expect_err("TLS").0.contains("without TLS"));
        let refused = wanted(false, &[at, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
        assert!(refused.expect_err("another protocol").0.contains("http/protobuf"));
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        let logs = |level: &str| LogOptions {
            log_format: LogFormat::Text,
            log_level: Some(level.to_owned()),
        };
        let none = TraceOptions::default();
        let refused = start("test", "info", &logs("basalt=loud"), &none).expect_err("no level");
        assert!(refused.0.contains("basalt=loud"), "{refused}");
    }
}
