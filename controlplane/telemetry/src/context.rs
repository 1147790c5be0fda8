//! Where in a trace something happens, as the W3C's Trace Context says it: in the header `traceparent` of calls, and as
//! 25 bytes beside work that goes on after its call.

use crate::export::is_exporting;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use std::fmt;
use std::str::FromStr;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The name of the header.
pub const HEADER: &str = "traceparent";
/// The variable in which whoever starts a program may name the span that it is part of.
const VARIABLE: &str = "TRACEPARENT";
/// Bytes of a context: the trace, the span, the flags.
pub const BYTES: usize = 16 + 8 + 1;
const SAMPLED: u8 = 1;

/// A place in a trace: a span, known by its number, that others are to be part of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceContext {
    /// The place of a span in its trace; nothing if traces are not exported, or the span is none.
    pub fn of(span: &Span) -> Option<TraceContext> {
        if !is_exporting() || span.is_disabled() {
            return None;
        }
        let context = span.context();
        let span = context.span();
        let known = span.span_context();
        known.is_valid().then(|| TraceContext {
            trace: u128::from_be_bytes(known.trace_id().to_bytes()),
            span: u64::from_be_bytes(known.span_id().to_bytes()),
            flags: known.trace_flags().to_u8() & SAMPLED,
        })
    }

    /// The place of what is being done now.
    pub fn current() -> Option<TraceContext> {
        TraceContext::of(&Span::current())
    }

    /// A new trace of which nobody exports anything: it names what belongs together in logs.
    pub fn unsampled() -> TraceContext {
        let random = RandomIdGenerator::default();
        TraceContext {
            trace: u128::from_be_bytes(random.new_trace_id().to_bytes()),
            span: u64::from_be_bytes(random.new_span_id().to_bytes()),
            flags: 0,
        }
    }

    /// What the program was started as a part of.
    pub fn of_environment() -> Option<TraceContext> {
        std::env::var(VARIABLE).ok()?.parse().ok()
    }

    /// Whether its spans are exported.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace's id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.trace.to_be_bytes().to_vec();
        bytes.extend(self.span.to_be_bytes());
        bytes.push(self.flags);
        bytes
    }

    /// From its bytes; nothing if they are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<TraceContext> {
        let (trace, rest) = bytes.split_first_chunk::<16>()?;
        let (span, rest) = rest.split_first_chunk::<8>()?;
        let [flags] = rest else { return None };
        let (trace, span) = (u128::from_be_bytes(*trace), u64::from_be_bytes(*span));
        (trace != 0 && span != 0).then_some(TraceContext { trace, span, flags: flags & SAMPLED })
    }

    fn remote(&self) -> SpanContext {
        let (trace, span) = (TraceId::from(self.trace), SpanId::from(self.span));
        SpanContext::new(trace, span, TraceFlags::new(self.flags), true, TraceState::default())
    }
}

/// As in the header.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoContext;

/// From the header. Of later versions what this one knows is read, as the standard demands.
impl FromStr for TraceContext {
    type Err = NoContext;

    fn from_str(text: &str) -> Result<TraceContext, NoContext> {
        let mut parts = text.trim().split('-');
        let mut next = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits).ok_or(NoContext)?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if !part.bytes().all(lower) {
                return Err(NoContext);
            }
            u128::from_str_radix(part, 16).map_err(|_| NoContext)
        };
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let more = parts.next().is_some();
        if version == 0xff || (version == 0 && more) || trace == 0 || span == 0 {
            return Err(NoContext);
        }
        // Both have as many digits as fit.
        let (span, flags) = (span as u64, flags as u8 & SAMPLED);
        Ok(TraceContext { trace, span, flags })
    }
}

/// Makes a span, which must not have been entered yet, part of another one, and names its trace in the log. Without
/// that other one it is part of what it was made in, or begins a trace.
pub fn within(span: Span, parent: Option<TraceContext>) -> Span {
    if span.is_disabled() {
        return span;
    }
    let mut trace = parent;
    if is_exporting() {
        if let Some(parent) = parent {
            let context = opentelemetry::Context::new().with_remote_span_context(parent.remote());
            // It fails for a span that has begun: then it stays where it is.
            let _ = span.set_parent(context);
        }
        trace = TraceContext::of(&span);
    }
    if let Some(trace) = trace {
        span.record("trace_id", trace.trace_id());
    }
    span
}

/// The header of calls that are part of a span; nothing if it is part of no trace.
pub fn header_of(span: &Span) -> Option<String> {
    TraceContext::of(span).map(|context| context.to_string())
}

/// Notes that a span goes on with what another one began.
pub fn link(span: &Span, other: TraceContext) {
    if is_exporting() {
        span.add_link(other.remote());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_header_is_read_and_written() {
        let context: TraceContext = GOOD.parse().expect("a context");
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.is_sampled());
        let later: TraceContext = GOOD.replacen("00", "01", 1).parse().expect("a later version");
        assert_eq!(later, context);
        let more: TraceContext =
            format!("01{}-more", &GOOD[2..]).parse().expect("with more behind it");
        assert_eq!(more, context);
        let quiet: TraceContext = GOOD.replace("-01", "-00").parse().expect("not sampled");
        assert!(!quiet.is_sampled());
        assert!(!TraceContext::unsampled().is_sampled());
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-äf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NoContext), "{bad}");
        }
    }

    #[test]
    fn bytes_are_read_and_written() {
        let context: TraceContext = GOOD.parse().expect("a context");
        let bytes = context.to_bytes();
        assert_eq!(bytes.len(), BYTES);
        assert_eq!(TraceContext::from_bytes(&bytes), Some(context));
        for bad in [&bytes[1..], &[0; BYTES], &[bytes.clone(), vec![0]].concat(), &[]] {
            assert_eq!(TraceContext::from_bytes(bad), None);
        }
    }
}
