//! Traces, by a collector that is not of this project: what one command has done is one trace, from the command
//! line over the API to the reconciler and the nodes; and a collector that is gone slows nothing.

use anyhow::{Context, Result, ensure};
use basalt_interop::cluster::{Cluster, PATIENCE, Shape};
use basalt_interop::ports::free_port;
use basalt_interop::process::{Program, python, wait_until, work_dir};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a command may take that has no collector: as one that has, and the time for which the last spans are
/// kept.
const UNDELAYED: Duration = Duration::from_secs(8);

/// The collector, and what it wrote down.
struct Collector {
    program: Program,
    file: PathBuf,
    port: u16,
}

impl Collector {
    fn start() -> Result<Collector> {
        let folder = work_dir().join(format!("interop-{}-collector", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let (file, port) = (folder.join("spans.json"), free_port()?);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/collector.py");
        let (python, path) = (python()?, file.to_string_lossy().into_owned());
        let program = Program::new(&python.to_string_lossy())
            .args(["-B", script, &port.to_string(), &path])
            .log(folder.join("collector.log"))
            .start()?;
        let mut collector = Collector { program, file, port };
        wait_until("the collector listens", PATIENCE, || {
            let alive = collector.program.alive();
            ensure!(alive, "it ended{}", collector.program.log_tail());
            Ok(std::net::TcpStream::connect(("127.0.0.1", collector.port)).is_ok())
        })?;
        Ok(collector)
    }

    /// What programs are told so that they export to it, at once.
    fn variables(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }

    fn spans(&self) -> Result<Vec<Span>> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        // The last line may be half there.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| Span::read(serde_json::from_str(line)?)).collect()
    }

    /// The trace with a root of this name, as soon as all of it hangs together and what is wanted of it is there.
    fn trace(&self, root: &str, wanted: &[&str]) -> Result<Trace> {
        let mut last = Vec::new();
        let found = wait_until(&format!("the trace of '{root}' has {wanted:?}"), PATIENCE, || {
            let spans = self.spans()?;
            let begun = spans.iter().rfind(|span| span.name == root && span.parent.is_empty());
            let trace = begun.map(|root| root.trace.clone()).unwrap_or_default();
            last = spans.into_iter().filter(|span| span.trace == trace).collect();
            // What is part of something may come before it does.
            let whole = Trace(last.clone()).is_whole().is_ok();
            Ok(whole && wanted.iter().all(|name| is_there(&last, name)))
        });
        let names = || last.iter().map(Span::line).collect::<Vec<_>>().join("\n");
        found.with_context(names)?;
        Ok(Trace(last))
    }
}

/// Whether there is a span of this name; of a call that of the caller and that of the called.
fn is_there(spans: &[Span], name: &str) -> bool {
    let least = if name.starts_with("basalt.v1.") { 2 } else { 1 };
    spans.iter().filter(|span| span.name == name).count() >= least
}

#[derive(Clone, Debug)]
struct Span {
    name: String,
    trace: String,
    id: String,
    parent: String,
    service: String,
    whole: Value,
}

impl Span {
    fn read(whole: Value) -> Result<Span> {
        let text = |name: &str| {
            whole[name].as_str().map(str::to_owned).with_context(|| format!("no {name}: {whole}"))
        };
        let service = whole["resource"]["service.name"].as_str().context("a service")?.to_owned();
        Ok(Span {
            name: text("name")?,
            trace: text("trace")?,
            id: text("span")?,
            parent: text("parent")?,
            service,
            whole,
        })
    }

    fn node(&self) -> &str {
        self.whole["resource"]["basalt.node"].as_str().unwrap_or("-")
    }

    fn attribute(&self, name: &str) -> &str {
        self.whole["attributes"][name].as_str().unwrap_or("")
    }

    fn line(&self) -> String {
        let Span { name, id, parent, service, .. } = self;
        format!("{id} in {parent:>16}: {service} {}: {name}", self.node())
    }
}

struct Trace(Vec<Span>);

impl Trace {
    fn named(&self, service: &str, name: &str) -> Result<&Span> {
        let found = self.0.iter().find(|span| span.service == service && span.name == name);
        found.with_context(|| format!("no '{name}' of {service} in\n{}", self.show()))
    }

    fn show(&self) -> String {
        self.0.iter().map(Span::line).collect::<Vec<_>>().join("\n")
    }

    /// One is a part of another one, at once.
    fn is_in(&self, part: &Span, whole: &Span) -> Result<()> {
        let (one, other) = (&part.name, &whole.name);
        ensure!(part.parent == whole.id, "'{one}' is not in '{other}':\n{}", self.show());
        Ok(())
    }

    /// All of it hangs together, below one span.
    fn is_whole(&self) -> Result<()> {
        let ids: BTreeMap<&str, &Span> = self.0.iter().map(|s| (s.id.as_str(), s)).collect();
        let roots = self.0.iter().filter(|span| span.parent.is_empty()).count();
        ensure!(roots == 1, "{roots} roots:\n{}", self.show());
        for span in self.0.iter().filter(|span| !span.parent.is_empty()) {
            let known = ids.contains_key(span.parent.as_str());
            ensure!(known, "the parent of '{}' is missing:\n{}", span.name, self.show());
        }
        Ok(())
    }

    /// The command, its call, and the call at the node, each in the one before. Gives the last.
    fn call(&self, service: &str, command: &str, method: &str) -> Result<&Span> {
        let root = self.named(service, command)?;
        let called = self.named(service, method)?;
        let served = self.named("basaltd", method)?;
        self.is_in(called, root)?;
        self.is_in(served, called)?;
        ensure!(called.whole["kind"] == "SPAN_KIND_CLIENT", "{}", called.whole);
        ensure!(served.whole["kind"] == "SPAN_KIND_SERVER", "{}", served.whole);
        ensure!(served.attribute("rpc.grpc.status_code") == "0", "{}", served.whole);
        ensure!(served.attribute("rpc.system") == "grpc", "{}", served.whole);
        ensure!(!served.attribute("request_id").is_empty(), "{}", served.whole);
        Ok(served)
    }
}

fn cluster(collector: &Collector) -> Result<Cluster> {
    let words = ["--suspect-after", "1500ms", "--down-after", "4s", "--log-format", "json"];
    let shape = Shape {
        node_args: words.map(str::to_owned).to_vec(),
        variables: collector.variables(),
        ..Shape::default()
    };
    Cluster::start_with("traces", &shape)
}

/// A volume is created, attached to a node, and kept as a snapshot.
fn commands(cluster: &Cluster, collector: &Collector) -> Result<()> {
    cluster.basalt(&["volume", "create", "demo", "--size", "64MiB", "--failover", "node"])?;
    let create = "basalt.v1.Admin/CreateVolume";
    let trace = collector
        .trace("basalt volume create", &[create, "metadata CreateVolume", "metadata.apply"])?;
    let served = trace.call("basalt", "basalt volume create", create)?;
    trace.is_in(trace.named("basaltd", "metadata CreateVolume")?, served)?;
    trace.is_in(
        trace.named("basaltd", "metadata.propose")?,
        trace.named("basaltd", "metadata CreateVolume")?,
    )?;
    ensure!(served.attribute("volume") == "demo", "{}", served.whole);
    let resource = &served.whole["resource"];
    for name in ["service.version", "basalt.cluster", "basalt.node", "service.instance.id"] {
        ensure!(resource[name].as_str().is_some_and(|v| !v.is_empty()), "{name}: {resource}");
    }
    trace_is_in_logs(cluster, served)?;

    cluster.basalt(&["volume", "attach", "demo", "--host", "node-1"])?;
    cluster.wait_served(&cluster.nodes[0].uri("demo"))?;
    let trace = collector.trace("basalt volume attach", &["volume.serve"])?;
    let served = trace.call("basalt", "basalt volume attach", "basalt.v1.Admin/AttachVolume")?;
    let session = trace.named("basaltd", "volume.serve")?;
    trace.is_in(session, served)?;
    ensure!(session.node() == "node-1", "{}", session.whole);
    ensure!(!session.attribute("waits_for").is_empty(), "{}", session.whole);

    cluster.basalt(&["snapshot", "create", "demo@one"])?;
    let trace = collector.trace(
        "basalt snapshot create",
        &["snapshot.keep", "metadata SettleSnapshot", "basalt.v1.Admin/CreateSnapshot"],
    )?;
    let served =
        trace.call("basalt", "basalt snapshot create", "basalt.v1.Admin/CreateSnapshot")?;
    let kept = trace.named("basaltd", "snapshot.keep")?;
    trace.is_in(kept, served)?;
    trace.is_in(trace.named("basaltd", "metadata SettleSnapshot")?, kept)
}

/// The lines of the call in the node's log carry the trace's id, and all lines are JSON.
fn trace_is_in_logs(cluster: &Cluster, served: &Span) -> Result<()> {
    let mut found = 0;
    for node in &cluster.nodes {
        let log = cluster.folder().join(format!("{}.log", node.name));
        let text = std::fs::read_to_string(&log)?;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for name in ["timestamp", "level", "target", "message"] {
                ensure!(line[name].is_string(), "no {name} in {line}");
            }
            if line["trace_id"] == served.trace.as_str() && node.name == served.node() {
                ensure!(line["volume"] == "demo", "{line}");
                ensure!(line["request_id"] == served.attribute("request_id"), "{line}");
                found += 1;
            }
        }
    }
    ensure!(found > 0, "no line of {} has the trace {}", served.node(), served.trace);
    Ok(())
}

/// A program beside the cluster attaches a volume.
fn attached(cluster: &Cluster, collector: &Collector) -> Result<()> {
    cluster.basalt(&["volume", "create", "other", "--size", "64MiB"])?;
    let mut attached = cluster.attach("other", "beside", false)?;
    let trace = collector.trace("volume.attach", &["basalt.v1.Admin/AttachVolume"])?;
    trace.call("basalt-attach", "volume.attach", "basalt.v1.Admin/AttachVolume")?;
    attached.process.stop(PATIENCE)?;
    let trace = collector.trace("volume.detach", &["basalt.v1.Admin/DetachVolume"])?;
    trace.call("basalt-attach", "volume.detach", "basalt.v1.Admin/DetachVolume")?;
    Ok(())
}

/// A node dies: what follows is one trace, from the verdict to the node that serves its volume.
fn death(cluster: &mut Cluster, collector: &Collector) -> Result<()> {
    cluster.nodes[0].process.kill()?;
    let trace = collector.trace(
        "node suspect",
        &["node down", "volume.failover", "metadata FailOverVolume", "volume.serve"],
    )?;
    let dead = trace.named("basaltd", "node down")?;
    let moved = trace.named("basaltd", "volume.failover")?;
    let session = trace.named("basaltd", "volume.serve")?;
    trace.is_in(dead, trace.named("basaltd", "node suspect")?)?;
    trace.is_in(moved, dead)?;
    trace.is_in(session, moved)?;
    ensure!(session.node() != "node-1" && session.attribute("volume") == "demo");
    cluster.nodes[0].process.restart()?;
    cluster.wait_healthy()
}

/// Nobody polls in traces, and what a span is of is known.
fn no_noise(collector: &Collector) -> Result<()> {
    for span in collector.spans()? {
        let polled =
            ["/Beat", "/GetPoolMap", "/ListVolumes"].iter().any(|m| span.name.ends_with(m));
        ensure!(!polled || !span.parent.is_empty(), "a poll is a trace: {}", span.whole);
        ensure!(["basalt", "basaltd", "basalt-attach"].contains(&&*span.service), "{}", span.whole);
    }
    Ok(())
}

#[test]
fn what_one_command_has_done_is_one_trace_and_nobody_waits_for_a_collector() -> Result<()> {
    let mut collector = Collector::start()?;
    let mut cluster = cluster(&collector)?;
    commands(&cluster, &collector)?;
    attached(&cluster, &collector)?;
    death(&mut cluster, &collector)?;
    no_noise(&collector)?;

    collector.program.kill()?;
    for number in 0..3 {
        let (name, began) = (format!("alone-{number}"), Instant::now());
        cluster.basalt(&["volume", "create", &name, "--size", "64MiB"])?;
        ensure!(began.elapsed() < UNDELAYED, "a command took {:?}", began.elapsed());
    }
    cluster.basalt(&["volume", "delete", "alone-0"])?;
    cluster.finish()
}
