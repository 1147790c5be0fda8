//! Calls as parts of a trace: what a call is part of goes with it, in the header `traceparent`.
//!
//! Which trace that is, is not known here: a program that exports traces says how it is found, by [`carry`].

use crate::random::random;
use http::{HeaderValue, Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use tonic::Code;
use tonic::body::Body;
use tracing::Span;
use tracing::field::Empty;

/// The header, as the W3C's Trace Context names it.
pub const HEADER: &str = "traceparent";

/// The value of the header for what a span is part of; nothing if it is part of no trace.
pub type Carrier = fn(&Span) -> Option<String>;

static CARRIER: OnceLock<Carrier> = OnceLock::new();

/// From now on the calls of this process carry their trace on.
pub fn carry(carrier: Carrier) {
    // A process has one way.
    let _ = CARRIER.set(carrier);
}

/// What is asked again and again and is to be in no trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Part of what is being done.
    #[default]
    Usual,
    /// Asked every now and then by a program of its own accord.
    Poll,
}

/// Makes a span of a call that is part of something, and writes into the request what it is part of.
pub(crate) fn begin(kind: Kind, address: &str, request: &mut Request<Body>) -> Span {
    if kind == Kind::Poll {
        // Whoever is asked may export traces, also if this program does not.
        write(request, &untraced());
        return Span::none();
    }
    let Some(header_of) = CARRIER.get() else { return Span::none() };
    // What a program does by itself begins no trace by asking somebody.
    if Span::current().is_none() {
        return Span::none();
    }
    let path = request.uri().path();
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
    let span = tracing::info_span!(
        "call",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "client",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        server.address = address,
    );
    if let Some(header) = header_of(&span) {
        write(request, &header);
    }
    span
}

/// A context of which nobody exports anything.
fn untraced() -> String {
    let [one, other, span] = [(); 3].map(|()| random().max(1));
    format!("00-{one:016x}{other:016x}-{span:016x}-00")
}

fn write(request: &mut Request<Body>, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        request.headers_mut().insert(HEADER, value);
    }
}

/// What an answer says: errors are told at its beginning.
pub fn code_of<B>(response: &Response<B>) -> Code {
    let status = response.headers().get("grpc-status");
    status.map_or(Code::Ok, |status| Code::from_bytes(status.as_bytes()))
}

/// Notes in the span of a call what came of it.
pub fn note(span: &Span, code: Code, is_server: bool) {
    span.record("rpc.grpc.status_code", code as i64);
    // As the conventions say: an error of the caller's is none of the server.
    let servers = matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    );
    if code != Code::Ok && (!is_server || servers) {
        span.record("otel.status_code", "ERROR");
    }
}

/// The answer to a call, with its span.
pub struct Traced<F> {
    answer: Pin<Box<F>>,
    span: Span,
}

impl<F> Traced<F> {
    pub(crate) fn new(answer: F, span: Span) -> Traced<F> {
        Traced { answer: Box::pin(answer), span }
    }
}

impl<F, E> Future for Traced<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let entered = this.span.enter();
        let answer = ready!(this.answer.as_mut().poll(cx));
        drop(entered);
        if !this.span.is_none() {
            note(&this.span, answer.as_ref().map_or(Code::Unavailable, code_of), false);
        }
        Poll::Ready(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_program_that_exports_nothing_carry_nothing() {
        let mut request = Request::new(Body::empty());
        let span = begin(Kind::Usual, "n1:7100", &mut request);
        assert!(span.is_none() && request.headers().is_empty());
    }

    #[test]
    fn polls_say_that_they_are_in_no_trace() {
        let mut request = Request::new(Body::empty());
        assert!(begin(Kind::Poll, "n1:7100", &mut request).is_none());
        let header = request.headers()[HEADER].to_str().expect("text").to_owned();
        assert!(header.len() == 55 && header.ends_with("-00"), "{header}");
    }
}
