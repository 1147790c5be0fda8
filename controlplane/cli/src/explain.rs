//! What resources and their fields mean, as the API's own descriptions have it.

use crate::options::{ExplainArgs, Options};
use crate::{Failure, output};
use basalt_api::reflect::pool;
use prost_reflect::{FieldDescriptor, FileDescriptor, Kind, MessageDescriptor};
use serde_json::{Value, json};

/// What can be explained, by the word for it.
const KINDS: [(&str, &str); 12] = [
    ("volume", "Volume"),
    ("snapshot", "Snapshot"),
    ("cut", "Cut"),
    ("class", "StorageClass"),
    ("quota", "Quota"),
    ("pool", "Pool"),
    ("node", "Node"),
    ("group", "Group"),
    ("cluster", "Cluster"),
    ("event", "Event"),
    ("operation", "OperationMetadata"),
    ("space", "Space"),
];

pub(crate) fn run(options: &Options, asked: &ExplainArgs) -> Result<(), Failure> {
    let Some(path) = &asked.path else {
        let kinds: Vec<Value> = KINDS.iter().map(|(word, name)| kind(word, name)).collect();
        return output::write(options.output, &json!({ "kinds": kinds }), || {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let row = |kind: &Value| vec![text(&kind["kind"]), text(&kind["what"])];
            output::table(&["KIND", "WHAT"], &kinds.iter().map(row).collect::<Vec<_>>())
        });
    };
    let found = find(path).map_err(Failure::Usage)?;
    output::write(options.output, &document(&found), || text(&found))
}

fn kind(word: &str, name: &str) -> Value {
    let what = message(name).map_or_else(String::new, |m| said(&m.parent_file(), m.path()));
    json!({ "kind": word, "what": what })
}

fn message(name: &str) -> Option<MessageDescriptor> {
    pool().get_message_by_name(&format!("basalt.v1.{name}"))
}

/// What a path leads to.
enum Found {
    Message(MessageDescriptor),
    Field(FieldDescriptor),
}

fn find(path: &str) -> Result<Found, String> {
    let mut parts = path.split('.');
    let word = parts.next().unwrap_or_default().to_ascii_lowercase();
    let word = word.strip_suffix('s').filter(|w| *w != "clas").unwrap_or(&word);
    let known = KINDS.iter().find(|(kind, name)| {
        *kind == word || name.eq_ignore_ascii_case(word) || format!("{kind}e") == word
    });
    let Some((_, name)) = known else {
        let words: Vec<&str> = KINDS.iter().map(|(word, _)| *word).collect();
        return Err(format!("'{word}' is no kind of resource; those are {}", words.join(", ")));
    };
    let mut at = message(name).ok_or_else(|| format!("{name} is not described"))?;
    let mut found = Found::Message(at.clone());
    for part in parts {
        let field = at.get_field_by_name(part).ok_or_else(|| {
            let names: Vec<String> = at.fields().map(|f| f.name().to_owned()).collect();
            format!("'{part}' is no field of a {}; those are {}", at.name(), names.join(", "))
        })?;
        if let (Kind::Message(inner), false) = (field.kind(), field.is_map()) {
            at = inner;
        }
        found = Found::Field(field);
    }
    Ok(found)
}

/// The comment at a place of a file, in one paragraph.
fn said(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let all = info.into_iter().flat_map(|info| &info.location);
    let found = all.into_iter().find(|location| location.path == path);
    let text = found.map_or("", |location| location.leading_comments());
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn type_of(field: &FieldDescriptor) -> String {
    if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        let value = entry.map_entry_value_field();
        return format!("map of {}", type_of(&value));
    }
    let one = match field.kind() {
        Kind::Message(message) => message.name().to_owned(),
        Kind::Enum(one) => {
            let values: Vec<String> = one.values().map(|value| value.name().to_owned()).collect();
            format!("one of {}", values.join(", "))
        }
        Kind::String => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Double | Kind::Float => "number".to_owned(),
        Kind::Bytes => "bytes".to_owned(),
        _ => "whole number".to_owned(),
    };
    if field.is_list() { format!("list of {one}") } else { one }
}

fn fields_of(found: &Found) -> (String, String, Vec<FieldDescriptor>) {
    match found {
        Found::Message(message) => {
            let what = said(&message.parent_file(), message.path());
            (message.name().to_owned(), what, message.fields().collect())
        }
        Found::Field(field) => {
            let what = said(&field.parent_file(), field.path());
            let inner = match field.kind() {
                Kind::Message(inner) if !field.is_map() => inner.fields().collect(),
                _ => Vec::new(),
            };
            (format!("{}: {}", field.name(), type_of(field)), what, inner)
        }
    }
}

fn document(found: &Found) -> Value {
    let (name, what, fields) = fields_of(found);
    let shown = |field: &FieldDescriptor| {
        json!({
            "field": field.name(),
            "type": type_of(field),
            "what": said(&field.parent_file(), field.path()),
        })
    };
    json!({ "what": what, "of": name, "fields": fields.iter().map(shown).collect::<Vec<_>>() })
}

fn text(found: &Found) -> String {
    let (name, what, fields) = fields_of(found);
    let mut text = format!("{name}\n{}\n", wrapped(&what, "  "));
    for field in fields {
        let what = said(&field.parent_file(), field.path());
        text.push_str(&format!(
            "\n{}: {}\n{}",
            field.name(),
            type_of(&field),
            wrapped(&what, "    ")
        ));
    }
    text
}

/// A paragraph of at most 100 columns.
fn wrapped(text: &str, indent: &str) -> String {
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && indent.len() + line.len() + word.len() >= 100 {
            lines.push_str(&format!("{indent}{}\n", line.trim_end()));
            line.clear();
        }
        line.push_str(word);
        line.push(' ');
    }
    if !line.is_empty() {
        lines.push_str(&format!("{indent}{}\n", line.trim_end()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_each_of_its_fields_is_explained() {
        for (word, name) in KINDS {
            let message = message(name).expect(name);
            assert!(!said(&message.parent_file(), message.path()).is_empty(), "{word}");
            assert!(matches!(find(word), Ok(Found::Message(_))), "{word}");
            assert!(matches!(find(&format!("{word}s")), Ok(Found::Message(_))) || word == "class");
        }
        assert!(matches!(find("classes"), Ok(Found::Message(_))));
    }

    #[test]
    fn a_path_leads_to_a_field() {
        let Ok(Found::Field(field)) = find("volume.qos.iops_max") else { panic!("it is one") };
        assert_eq!(type_of(&field), "whole number");
        assert!(find("volume.colour").is_err_and(|e| e.contains("those are name")));
        assert!(find("disk").is_err_and(|e| e.contains("those are volume")));
    }

    #[test]
    fn paragraphs_are_wrapped() {
        let text = wrapped(&"word ".repeat(60), "  ");
        assert!(text.lines().count() > 2 && text.lines().all(|line| line.len() <= 100));
    }
}
