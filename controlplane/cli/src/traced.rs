//! A command as a trace: one span for all that it does, from which the trace goes on to the nodes.

use crate::options::{Format, Options};
use crate::{Failure, output};
use basalt_telemetry::TraceContext;
use basalt_telemetry::context::{header_of, within};
use std::future::Future;
use std::time::Duration;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// How long the spans may take to be exported when the command is done.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// Says what becomes of logs and traces.
pub(crate) fn start(options: &Options) -> Result<(), Failure> {
    let (logs, traces) = (&options.logs, &options.traces);
    let started = basalt_telemetry::start("basalt", "warn", logs, traces);
    started.map_err(|problem| Failure::Usage(problem.to_string()))
}

/// Runs a command, known by its words, in a span of its own; what started the program may be a part of a trace already.
pub(crate) async fn run(
    options: &Options,
    words: &str,
    command: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    basalt_telemetry::export().map_err(|problem| Failure::Usage(problem.to_string()))?;
    if !basalt_telemetry::is_exporting() {
        return command.await;
    }
    basalt_api::traced::carry(header_of);
    let span = tracing::info_span!(
        parent: None,
        "command",
        otel.name = format!("basalt {words}"),
        otel.status_code = Empty,
        otel.status_description = Empty,
        trace_id = Empty,
    );
    let span = within(span, TraceContext::of_environment());
    if options.traces.trace {
        say(options.output, &span);
    }
    let result = command.instrument(span.clone()).await;
    if let Err(failure) = &result {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", failure.text());
    }
    drop(span);
    basalt_telemetry::flush(LAST_SPANS).await;
    result
}

/// Which trace it is: for who asked for it.
fn say(format: Format, span: &Span) {
    if let Some(context) = TraceContext::of(span) {
        output::note(format, "trace_id", &context.trace_id());
    }
}
