//! Calls of the gRPC API as spans, before anything else looks at them: what they are part of, who made them and
//! what came of it. What a call logs carries the id of its trace, also if no traces are exported; then each call
//! has its own.

use basalt_api::traced::{HEADER, code_of, note};
use basalt_security::permissions::{Recorded, rule_of};
use basalt_telemetry::TraceContext;
use basalt_telemetry::context::within;
use http::{Method, Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Calls of this service are made by nodes of their own accord, unless they say what they are part of.
const PEER: &str = "/basalt.v1.Peer/";

/// Puts spans around services.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

/// Services whose calls are spans.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // What is no call of gRPC is asked for by tools, again and again.
        if request.method() != Method::POST {
            return Box::pin(self.inner.call(request));
        }
        let (span, path) = (begin(&request), request.uri().path().to_owned());
        // The service's own work is done in the span, too.
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(end(answer, path).instrument(span))
    }
}

fn begin(request: &Request<Body>) -> Span {
    let path = request.uri().path();
    let header = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
    let given = header.and_then(|text| text.parse::<TraceContext>().ok());
    let polled = given.is_none() && path.starts_with(PEER);
    let alone = polled || !basalt_telemetry::is_exporting();
    let parent = given.or_else(|| alone.then(TraceContext::unsampled));
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let span = tracing::info_span!(
        parent: None,
        "rpc",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        enduser.id = Empty,
        volume = Empty,
        node = Empty,
        request_id = Empty,
        trace_id = Empty,
    );
    within(span, parent)
}

async fn end<E>(
    answer: impl Future<Output = Result<Response<Body>, E>>,
    path: String,
) -> Result<Response<Body>, E> {
    let began = Instant::now();
    let answer = answer.await?;
    let code = code_of(&answer);
    note(&Span::current(), code, true);
    let (method, milliseconds) = (path.trim_start_matches('/'), began.elapsed().as_millis() as u64);
    match rule_of(&path).map(|rule| rule.recorded) {
        Some(Recorded::All) => tracing::info!(milliseconds, "{method}: {code:?}"),
        _ => tracing::debug!(milliseconds, "{method}: {code:?}"),
    }
    Ok(answer)
}

/// Notes in the span of the call under way what it is about: its facts as the audit has them, such as
/// `name="volumes/demo" host="n1"`.
pub fn about(facts: &str, request_id: &str) {
    let span = Span::current();
    if !request_id.is_empty() {
        span.record("request_id", request_id);
    }
    for (name, value) in facts.split(' ').filter_map(subject) {
        span.record(name, value);
    }
}

/// What a fact names, if it names a volume or a node.
fn subject(fact: &str) -> Option<(&'static str, &str)> {
    let (key, value) = fact.split_once('=')?;
    let value = value.trim_matches('"');
    let id = |rest: &'_ str| rest.split('/').next().map(str::len);
    let of = |prefix: &str| {
        let rest = value.strip_prefix(prefix)?;
        rest.get(..id(rest)?)
    };
    match key {
        "volume_id" => Some(("volume", value)),
        "node" => Some(("node", value)),
        _ => of("volumes/").map(|v| ("volume", v)).or_else(|| of("nodes/").map(|n| ("node", n))),
    }
}

/// Notes in the span of the call under way who makes it.
pub fn by(principal: &str) {
    Span::current().record("enduser.id", principal);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_name_volumes_and_nodes() {
        assert_eq!(subject("name=\"volumes/demo\""), Some(("volume", "demo")));
        assert_eq!(subject("parent=\"volumes/demo/snapshots/x\""), Some(("volume", "demo")));
        assert_eq!(subject("volume_id=\"demo\""), Some(("volume", "demo")));
        assert_eq!(subject("node=\"n1\""), Some(("node", "n1")));
        assert_eq!(subject("name=\"nodes/n1\""), Some(("node", "n1")));
        for other in ["", "volumes/demo", "host=\"n1\"", "size_bytes=7"] {
            assert_eq!(subject(other), None, "{other}");
        }
    }
}
