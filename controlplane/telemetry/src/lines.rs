//! How log lines look: for people, or one JSON object a line. Both say the same, under the same names.
//!
//! A line has the fields of what is told, and of what it is told in the course of (a call, a step of a reconciler)
//! those that name things: [`NAMES`].

use clap::ValueEnum;
use serde_json::{Map, Value};
use std::fmt::Write;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The fields of enclosing spans that stand in every line.
const NAMES: [&str; 8] =
    ["volume", "snapshot", "node", "group", "host", "operation", "request_id", "trace_id"];

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Writes what is told as lines.
pub(crate) struct Lines<W> {
    format: LogFormat,
    colours: bool,
    write: W,
}

impl<W> Lines<W> {
    pub(crate) fn new(format: LogFormat, colours: bool, write: W) -> Lines<W> {
        Lines { format, colours, write }
    }
}

/// The fields of a span or of what is told.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }
}

/// The names that a span gives to what it is about.
struct Names(Vec<(&'static str, Value)>);

impl Names {
    fn take(&mut self, mut fields: Fields) {
        for name in NAMES {
            let Some(value) = fields.0.remove(name) else { continue };
            self.0.retain(|(known, _)| *known != name);
            self.0.push((name, value));
        }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn(&str) + Send + Sync + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let (mut fields, mut names) = (Fields::default(), Names(Vec::new()));
        attributes.record(&mut fields);
        names.take(fields);
        span.extensions_mut().insert(names);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(names) = span.extensions_mut().get_mut::<Names>() {
            names.take(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message");
        let message = message.as_ref().and_then(Value::as_str).unwrap_or_default();
        // What is nearest counts.
        for span in context.event_scope(event).into_iter().flatten() {
            let extensions = span.extensions();
            for (name, value) in extensions.get::<Names>().iter().flat_map(|names| &names.0) {
                if !fields.0.contains_key(*name) {
                    fields.0.insert((*name).to_owned(), value.clone());
                }
            }
        }
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        let line = match self.format {
            LogFormat::Text => text(level, target, message, &fields.0, self.colours),
            LogFormat::Json => json(level, target, message, fields.0),
        };
        (self.write)(&line);
    }
}

fn now() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

fn json(level: Level, target: &str, message: &str, fields: Map<String, Value>) -> String {
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), now().into());
    line.insert("level".to_owned(), level.as_str().into());
    line.insert("target".to_owned(), target.into());
    line.insert("message".to_owned(), message.into());
    for (name, value) in fields {
        line.entry(name).or_insert(value);
    }
    format!("{}\n", Value::Object(line))
}

fn text(
    level: Level,
    target: &str,
    message: &str,
    fields: &Map<String, Value>,
    colours: bool,
) -> String {
    let colour = match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        _ => "34",
    };
    let level = match colours {
        true => format!("\x1b[{colour}m{level:>5}\x1b[0m"),
        false => format!("{level:>5}"),
    };
    // A line is one line, whatever somebody put into a name.
    let mut line = format!("{} {level} {target}: {}", now(), one_line(message));
    for (name, value) in fields {
        let value = match value {
            Value::String(text) if is_word(text) => text.clone(),
            other => other.to_string(),
        };
        // Writing to a string does not fail.
        let _ = write!(line, " {name}={value}");
    }
    line.push('\n');
    line
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
}

fn one_line(text: &str) -> String {
    let clean = |c: char| !c.is_control();
    match text.chars().all(clean) {
        true => text.to_owned(),
        false => text
            .chars()
            .flat_map(|c| {
                let escaped = (!clean(c)).then(|| c.escape_default());
                let plain = clean(c).then_some(c);
                escaped.into_iter().flatten().chain(plain)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    fn told(format: LogFormat, tell: impl FnOnce()) -> Vec<String> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let lines = told.clone();
        let write = move |line: &str| lines.lock().expect("one thread").push(line.to_owned());
        let subscriber = Registry::default().with(Lines::new(format, false, write));
        tracing::subscriber::with_default(subscriber, tell);
        told.lock().expect("one thread").clone()
    }

    fn tell() {
        let call = tracing::info_span!(
            "rpc",
            request_id = "r-1",
            trace_id = tracing::field::Empty,
            rpc.method = "CreateVolume"
        );
        call.record("trace_id", "0af7");
        let _call = call.entered();
        let _step = tracing::info_span!("step", volume = "demo", node = 3).entered();
        tracing::warn!(node = 4, bytes = 12u64, good = true, "waits for \"it\"\nand more");
    }

    #[test]
    fn json_has_one_object_a_line_with_what_it_is_part_of() {
        let lines = told(LogFormat::Json, tell);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(line.matches('\n').count(), 1);
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "waits for \"it\"\nand more");
        assert_eq!((&line["node"], &line["bytes"]), (&4.into(), &12.into()), "the nearest counts");
        assert_eq!((&line["volume"], &line["request_id"]), (&"demo".into(), &"r-1".into()));
        assert_eq!((&line["trace_id"], &line["good"]), (&"0af7".into(), &true.into()));
        assert_eq!(line.get("rpc.method"), None, "only what names things");
        assert!(line["target"].as_str().is_some_and(|target| target.contains("lines")));
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    }

    #[test]
    fn text_has_the_message_first_and_stays_one_line() {
        let lines = told(LogFormat::Text, tell);
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(line.matches('\n').count(), 1);
        let (_, rest) = line.split_once(" WARN ").expect("a level");
        let (_, rest) = rest.split_once(": ").expect("a target");
        assert!(rest.starts_with("waits for \"it\"\\nand more "), "{rest}");
        for field in ["node=4", "volume=demo", "request_id=r-1", "trace_id=0af7", "good=true"] {
            assert!(rest.contains(field), "{field} is not in {rest}");
        }
        let odd = told(LogFormat::Text, || tracing::info!(name = "a b", empty = "", "x"));
        assert!(odd[0].contains("name=\"a b\"") && odd[0].contains("empty=\"\""), "{odd:?}");
    }

    #[test]
    fn a_field_does_not_stand_in_for_what_every_line_has() {
        let lines = told(LogFormat::Json, || tracing::info!(level = "high", target = "x", "m"));
        let line: Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(line["level"], "INFO");
    }
}
