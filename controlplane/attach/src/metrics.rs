//! What Prometheus is told, in the OpenMetrics text format: how it is written, and what is told of the sessions of
//! volumes, by the same names wherever they are served.

use basalt_client::latency::{BUCKETS, Histogram, Latencies};
use basalt_nbd::{DoorStatus, ExportStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What there is to tell, as text.
///
/// # Errors
/// If it can not be written.
pub fn text(told: impl Collector) -> Result<String, String> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(told));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}

/// Names and values.
pub type Labels<'a> = Vec<(&'a str, String)>;

/// One family of metrics after the other.
pub struct Writer<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl<'a> Writer<'a> {
    /// Writes with this.
    pub fn new(encoder: DescriptorEncoder<'a>) -> Writer<'a> {
        Writer { encoder }
    }

    /// A family of any kind: name, what it is, unit.
    ///
    /// # Errors
    /// If the text can not be written.
    pub fn family<S: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        (name, help, unit): (&str, &str, Option<&Unit>),
        kind: MetricType,
        metrics: impl IntoIterator<Item = (S, M)>,
    ) -> Result<(), fmt::Error> {
        let mut metric = self.encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in metrics {
            value.encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// One value that rises and falls.
    ///
    /// # Errors
    /// If the text can not be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(signed(value)).encode(metric)
    }

    /// One value that only rises.
    ///
    /// # Errors
    /// If the text can not be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let metric = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    /// Values that rise and fall.
    ///
    /// # Errors
    /// If the text can not be written.
    pub fn gauges<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), fmt::Error> {
        let values = values.into_iter().map(|(labels, v)| (labels, ConstGauge::new(signed(v))));
        self.family((name, help, None), MetricType::Gauge, values)
    }

    /// Values that only rise.
    ///
    /// # Errors
    /// If the text can not be written.
    pub fn counters<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), fmt::Error> {
        let values = values.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family((name, help, None), MetricType::Counter, values)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What the sessions of the volumes that are served here did.
///
/// # Errors
/// If the text can not be written.
pub fn sessions(door: Option<&DoorStatus>, to: &mut Writer<'_>) -> Result<(), fmt::Error> {
    let exports: Vec<&ExportStatus> = door.iter().flat_map(|door| &door.exports).collect();
    let exports = &exports[..];
    conditions(exports, to)?;
    requests(exports, to)
}

fn each<'a>(
    exports: &'a [&ExportStatus],
    value: impl Fn(&ExportStatus) -> u64 + 'a,
) -> impl Iterator<Item = (Labels<'static>, u64)> + 'a {
    exports.iter().map(move |export| (vec![("volume", export.name.clone())], value(export)))
}

/// How the sessions are, and what they had to do again.
fn conditions(exports: &[&ExportStatus], to: &mut Writer<'_>) -> Result<(), fmt::Error> {
    to.gauges(
        "basalt_volume_session_ready",
        "Whether the volume's session has begun, under an epoch that shuts former ones out",
        each(exports, |export| u64::from(export.ready)),
    )?;
    to.gauges(
        "basalt_volume_session_epoch",
        "The epoch of the volume's session",
        each(exports, |export| export.epoch.0),
    )?;
    to.counters(
        "basalt_volume_leaders_found",
        "Leaders of groups that the session found",
        each(exports, |export| export.client.leaders),
    )?;
    to.counters(
        "basalt_volume_links_reset",
        "Links to nodes that the session made anew because nothing was heard",
        each(exports, |export| export.client.resets),
    )?;
    to.counters(
        "basalt_volume_requests_refused",
        "Requests refused because too many were waiting",
        each(exports, |export| export.client.busy),
    )
}

/// What became of requests.
fn requests(exports: &[&ExportStatus], to: &mut Writer<'_>) -> Result<(), fmt::Error> {
    fn by_kind<'a>(
        exports: &'a [&ExportStatus],
        value: impl Fn(&Histogram) -> u64 + Copy + 'a,
    ) -> impl Iterator<Item = (Labels<'static>, u64)> + 'a {
        exports.iter().flat_map(move |export| {
            kinds(&export.latencies)
                .map(|(kind, histogram)| (labels(export, kind), value(histogram)))
        })
    }
    to.gauges(
        "basalt_volume_requests_under_way",
        "Requests that are not answered",
        each(exports, |export| export.client.ops as u64),
    )?;
    to.gauges(
        "basalt_volume_clients",
        "NBD connections to the volume",
        each(exports, |export| export.connections.len() as u64),
    )?;
    to.counters(
        "basalt_volume_requests_limited",
        "Requests that waited for the volume's bounds",
        each(exports, |export| export.client.limited),
    )?;
    to.counters(
        "basalt_volume_requests_resent",
        "Requests to replicas that were sent again",
        each(exports, |export| export.client.resent),
    )?;
    to.counters(
        "basalt_volume_bytes",
        "Bytes of requests of the volume's user",
        by_kind(exports, |histogram| histogram.bytes),
    )?;
    to.counters(
        "basalt_volume_requests_failed",
        "Requests of the volume's user that ended badly",
        by_kind(exports, |histogram| histogram.failed),
    )?;
    let times = exports.iter().flat_map(|export| {
        kinds(&export.latencies).map(|(kind, of)| (labels(export, kind), Times(of)))
    });
    to.family(
        ("basalt_volume_request", "Time from a request to its answer", Some(&Unit::Seconds)),
        MetricType::Histogram,
        times,
    )?;
    let stages = exports.iter().flat_map(|export| {
        export.stages.iter().map(move |(kind, stage, of)| {
            let stage = ("stage", stage.name().to_owned());
            ([labels(export, kind), vec![stage]].concat(), Times(of))
        })
    });
    to.family(
        (
            "basalt_volume_stage",
            "Time of traced requests in the stages in which they were at all",
            Some(&Unit::Seconds),
        ),
        MetricType::Histogram,
        stages,
    )
}

fn kinds(latencies: &Latencies) -> [(&'static str, &Histogram); 3] {
    [("read", &latencies.read), ("write", &latencies.write), ("discard", &latencies.unmap)]
}

fn labels(export: &ExportStatus, kind: &str) -> Labels<'static> {
    vec![("volume", export.name.clone()), ("kind", kind.to_owned())]
}

/// A histogram of times as it is told.
struct Times<'a>(&'a Histogram);

impl EncodeMetric for Times<'_> {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), fmt::Error> {
        let bound = |bucket: usize| match bucket {
            BUCKETS => f64::MAX,
            bucket => Histogram::upper_bound(bucket).as_secs_f64(),
        };
        let buckets = self.0.buckets.iter().enumerate();
        let buckets: Vec<(f64, u64)> = buckets.map(|(n, count)| (bound(n), *count)).collect();
        let sum = self.0.sum_ns as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, self.0.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// What became of the spans that the program wanted to export; nothing if it exports none.
///
/// # Errors
/// If the text can not be written.
pub fn traces(to: &mut Writer<'_>) -> Result<(), fmt::Error> {
    let Some(counts) = basalt_telemetry::counts() else { return Ok(()) };
    to.counter("basalt_spans_exported", "Spans that the collector took", counts.exported)?;
    to.counter("basalt_spans_dropped", "Spans for which the queue had no place", counts.dropped)?;
    to.counter("basalt_spans_failed", "Spans that the collector did not take", counts.failed)
}
