//! The export of spans: a bounded queue that whoever ends a span puts it into without waiting, and a task that
//! empties it in batches. Nothing else ever waits for a collector.

use crate::TelemetryError;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// Spans that wait for their export, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise; more are dropped.
const QUEUE: usize = 2048;
const QUEUE_MAX: usize = 1 << 16;
/// Spans in a batch.
const BATCH: usize = 512;
/// How long a span waits for others at most, unless `OTEL_BSP_SCHEDULE_DELAY` (milliseconds) says otherwise.
const DELAY: Duration = Duration::from_secs(1);
/// How long one attempt to export a batch may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// How often a batch is tried, and the pause in between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Taken by the collector.
    pub exported: u64,
    /// Dropped because the queue was full.
    pub dropped: u64,
    /// Given up because the collector did not take them.
    pub failed: u64,
}

/// Of a program that exports; there is one.
struct Export {
    program: &'static str,
    exported: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// Until the export begins.
    queue: Mutex<Option<mpsc::Receiver<SpanData>>>,
    flush: Mutex<Option<mpsc::Sender<oneshot::Sender<()>>>>,
    /// What the program is, beside its name; and how often that was said.
    about: Mutex<(u64, Vec<KeyValue>)>,
    /// Spans are made as long as it lives.
    provider: OnceLock<SdkTracerProvider>,
}

static EXPORT: OnceLock<Export> = OnceLock::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Puts spans that ended into the queue.
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        let sampled = span.span_context.is_sampled();
        if sampled && self.0.try_send(span).is_err() {
            add(|export| &export.dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn add(which: impl Fn(&Export) -> &AtomicU64, count: usize) {
    if let Some(export) = EXPORT.get() {
        which(export).fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// What makes spans. They wait in the queue until [`export`] is called.
pub(crate) fn tracer(program: &'static str) -> SdkTracer {
    let places = number("OTEL_BSP_MAX_QUEUE_SIZE").map_or(QUEUE, |n| n as usize);
    let (to, from) = mpsc::channel(places.clamp(1, QUEUE_MAX));
    let provider = SdkTracerProvider::builder().with_span_processor(Queue(to)).build();
    let tracer = provider.tracer(program);
    let export = EXPORT.get_or_init(|| Export {
        program,
        exported: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        queue: Mutex::new(Some(from)),
        flush: Mutex::default(),
        about: Mutex::default(),
        provider: OnceLock::new(),
    });
    // The first one stays, as its queue does.
    let _ = export.provider.set(provider);
    tracer
}

/// Whether this program exports traces.
pub fn is_exporting() -> bool {
    EXPORT.get().is_some()
}

/// What became of spans; nothing if none are exported.
pub fn counts() -> Option<Counts> {
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    EXPORT.get().map(|export| Counts {
        exported: load(&export.exported),
        dropped: load(&export.dropped),
        failed: load(&export.failed),
    })
}

/// Says what spans are of from now on: attributes of the resource by their names.
pub fn describe(attributes: &[(&'static str, String)]) {
    let Some(export) = EXPORT.get() else { return };
    let mut about = lock(&export.about);
    for (name, value) in attributes {
        about.1.retain(|known| known.key.as_str() != *name);
        about.1.push(KeyValue::new(*name, value.clone()));
    }
    about.0 += 1;
}

/// Begins the export, on the runtime that it is called on. Without traces nothing happens.
///
/// # Errors
/// If the collector's address or certificate can not be used.
pub fn export() -> Result<(), TelemetryError> {
    let Some(export) = EXPORT.get() else { return Ok(()) };
    let Some(queue) = lock(&export.queue).take() else { return Ok(()) };
    let exporter = exporter()?;
    let (asked, flushes) = mpsc::channel(1);
    *lock(&export.flush) = Some(asked);
    tokio::spawn(Task { export, exporter, queue, flushes, said: 0, silent: false }.run());
    Ok(())
}

fn exporter() -> Result<SpanExporter, TelemetryError> {
    // The task tries again by itself.
    let builder = SpanExporter::builder().with_tonic();
    let builder = builder.with_retry_policy(RetryPolicy::disabled());
    builder
        .build()
        .map_err(|problem| TelemetryError(format!("traces can not be exported: {problem}")))
}

/// Waits until what has ended so far is exported or given up, and not longer than this.
pub async fn flush(patience: Duration) {
    let asked = EXPORT.get().and_then(|export| lock(&export.flush).clone());
    let Some(asked) = asked else { return };
    let (done, told) = oneshot::channel();
    let flushed = async {
        if asked.send(done).await.is_ok() {
            // The task may have ended with its runtime.
            let _ = told.await;
        }
    };
    // Nobody waits longer for a collector.
    let _ = timeout(patience, flushed).await;
}

struct Task {
    export: &'static Export,
    exporter: SpanExporter,
    queue: mpsc::Receiver<SpanData>,
    flushes: mpsc::Receiver<oneshot::Sender<()>>,
    /// What the collector was told last of what the program is.
    said: u64,
    /// Whether the collector took nothing the last time, which is said once.
    silent: bool,
}

impl Task {
    async fn run(mut self) {
        let delay = number("OTEL_BSP_SCHEDULE_DELAY").map_or(DELAY, Duration::from_millis);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut flush = None;
            tokio::select! {
                taken = self.queue.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                Some(asked) = self.flushes.recv() => flush = Some(asked),
            }
            let end = Instant::now() + delay;
            while flush.is_none() && batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    taken = self.queue.recv_many(&mut batch, room) => if taken == 0 { break },
                    Some(asked) = self.flushes.recv() => flush = Some(asked),
                    () = sleep_until(end) => break,
                }
            }
            match flush {
                None => flush = self.give(std::mem::take(&mut batch)).await,
                Some(_) => self.give_at_once(std::mem::take(&mut batch)).await,
            }
            while flush.is_some() && !self.queue.is_empty() {
                let mut rest = Vec::new();
                self.queue.recv_many(&mut rest, BATCH).await;
                self.give_at_once(rest).await;
            }
            if let Some(asked) = flush {
                // Whoever asked may have lost patience.
                let _ = asked.send(());
            }
        }
    }

    /// Exports a batch, or gives it up after some attempts: earlier if somebody wants everything out, who is
    /// returned.
    async fn give(&mut self, batch: Vec<SpanData>) -> Option<oneshot::Sender<()>> {
        for attempt in 1..=ATTEMPTS {
            if self.attempt(&batch).await {
                return None;
            }
            let again = Instant::now() + PAUSE;
            tokio::select! {
                () = sleep_until(again), if attempt < ATTEMPTS => {}
                Some(asked) = self.flushes.recv(), if attempt < ATTEMPTS => {
                    self.give_at_once(batch).await;
                    return Some(asked);
                }
                else => {}
            }
        }
        add(|export| &export.failed, batch.len());
        None
    }

    /// Exports a batch, or gives it up.
    async fn give_at_once(&mut self, batch: Vec<SpanData>) {
        if !batch.is_empty() && !self.attempt(&batch).await {
            add(|export| &export.failed, batch.len());
        }
    }

    async fn attempt(&mut self, batch: &[SpanData]) -> bool {
        self.introduce();
        let result = timeout(ATTEMPT, self.exporter.export(batch.to_vec())).await;
        let problem = match result {
            Ok(Ok(())) => {
                add(|export| &export.exported, batch.len());
                self.silent = false;
                return true;
            }
            Ok(Err(problem)) => problem.to_string(),
            Err(_) => format!("no answer within {} s", ATTEMPT.as_secs()),
        };
        if !self.silent {
            tracing::warn!("the collector takes no traces: {problem}");
        }
        self.silent = true;
        false
    }

    /// Tells what the program is, if that has changed.
    fn introduce(&mut self) {
        let (said, about) = lock(&self.export.about).clone();
        if said == self.said && said != 0 {
            return;
        }
        self.said = said.max(1);
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let mut resource = Resource::builder().with_attribute(version).with_attributes(about);
        if std::env::var("OTEL_SERVICE_NAME").is_err() {
            resource = resource.with_service_name(self.export.program);
        }
        self.exporter.set_resource(&resource.build());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{Span as _, Tracer};

    /// Nobody listens at the collector's address.
    #[tokio::test]
    async fn what_is_not_exported_is_counted_and_nobody_waits() {
        let (tracer, more) = (tracer("test"), 500);
        for _ in 0..QUEUE + more {
            tracer.start("span").end();
        }
        let full = counts().expect("it exports");
        assert_eq!(full, Counts { exported: 0, dropped: more as u64, failed: 0 });
        export().expect("an address");
        let began = Instant::now();
        flush(Duration::from_secs(30)).await;
        assert!(began.elapsed() < Duration::from_secs(30), "it is given up, not waited for");
        let given_up = counts().expect("it exports");
        assert_eq!(given_up.failed, QUEUE as u64, "{given_up:?}");
        tracer.start("later").end();
        assert_eq!(counts().expect("it exports").dropped, more as u64, "there is room again");
    }
}
