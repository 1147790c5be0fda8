//! What a request is about, for the audit: its texts, by the names that the API gives them.
//!
//! The records name what was asked for without any help of those who answer it, so that a method that is added
//! is recorded like the others. The bytes come from outside and were not decoded yet: what is no message ends the
//! reading, and the facts that were found until then are what is told.

use basalt_api::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use std::collections::HashMap;

/// Bytes of one text, and of all, that are told.
const TEXT_MAX: usize = 256;
const ALL_MAX: usize = 1024;
/// How deep messages in messages are looked into.
const DEPTH_MAX: usize = 3;
/// What stands before a message: whether it is compressed, and its length.
const FRAME_BYTES: usize = 5;
const REQUEST_ID: &str = "request_id";
/// What says nothing of what is asked for.
const SILENT: [&str; 3] = [REQUEST_ID, "etag", "page_token"];

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Such as `name="volumes/demo" host="node-a"`.
    pub resource: String,
    /// Its id, if it has one.
    pub request_id: String,
}

enum Kind {
    Text,
    Message(String),
}

struct Field {
    number: u64,
    name: String,
    kind: Kind,
}

/// The requests of all methods.
pub struct Requests {
    /// The message type of a method's request.
    inputs: HashMap<String, String>,
    types: HashMap<String, Vec<Field>>,
}

impl Requests {
    /// Those of this program's API.
    ///
    /// # Panics
    /// If the API's own description can not be read.
    pub fn of_api() -> Requests {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET);
        let set = set.expect("the API's description was made by its build");
        let mut requests = Requests { inputs: HashMap::new(), types: HashMap::new() };
        for file in &set.file {
            let package = format!(".{}", file.package());
            for message in &file.message_type {
                requests.add(&package, message);
            }
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    requests.inputs.insert(name, method.input_type().to_owned());
                }
            }
        }
        requests
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let fields = message.field.iter().filter_map(|field| {
            let kind = match field.r#type() {
                Type::String => Kind::Text,
                Type::Message => Kind::Message(field.type_name().to_owned()),
                _ => return None,
            };
            let number = u64::try_from(field.number()).ok()?;
            Some(Field { number, name: field.name().to_owned(), kind })
        });
        self.types.insert(name.clone(), fields.collect());
        for nested in &message.nested_type {
            self.add(&name, nested);
        }
    }

    /// The facts of a request of a method, as it came: one message in its frame.
    pub fn facts(&self, method: &str, body: &[u8]) -> Facts {
        let mut facts = Facts::default();
        let Some(input) = self.inputs.get(method) else { return facts };
        // A compressed message would have to be unpacked first; no client of ours sends one.
        if let Some(message) = body.get(FRAME_BYTES..).filter(|_| body[0] == 0) {
            // What is no message is refused by whoever decodes it.
            let _ = self.walk(input, "", message, 0, &mut facts);
        }
        facts
    }

    fn walk(
        &self,
        message: &str,
        path: &str,
        mut bytes: &[u8],
        depth: usize,
        facts: &mut Facts,
    ) -> Option<()> {
        let fields = self.types.get(message)?;
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let value = match key & 7 {
                0 => {
                    varint(&mut bytes)?;
                    continue;
                }
                1 => take(&mut bytes, 8).map(|_| None)?,
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    Some(take(&mut bytes, length)?)
                }
                5 => take(&mut bytes, 4).map(|_| None)?,
                _ => return None,
            };
            let field = fields.iter().find(|field| field.number == key >> 3);
            let (Some(field), Some(value)) = (field, value) else { continue };
            let name = format!("{path}{}", field.name);
            match &field.kind {
                Kind::Text => facts.tell(&name, value),
                Kind::Message(inner) if depth < DEPTH_MAX => {
                    self.walk(inner, &format!("{name}."), value, depth + 1, facts)?;
                }
                Kind::Message(_) => {}
            }
        }
        Some(())
    }
}

impl Facts {
    fn tell(&mut self, name: &str, value: &[u8]) {
        let text = String::from_utf8_lossy(&value[..value.len().min(TEXT_MAX)]);
        if name == REQUEST_ID {
            self.request_id = text.clone().into_owned();
        }
        if text.is_empty() || SILENT.contains(&name) || self.resource.len() >= ALL_MAX {
            return;
        }
        let space = if self.resource.is_empty() { "" } else { " " };
        self.resource.push_str(&format!("{space}{name}=\"{}\"", text.escape_debug()));
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::{AttachVolumeRequest, CreateCutRequest, CutMember};

    fn framed(message: &impl Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        [&[0][..], &length, &bytes].concat()
    }

    #[test]
    fn requests_tell_what_they_are_about() {
        let requests = Requests::of_api();
        let attach = AttachVolumeRequest {
            name: "volumes/demo".to_owned(),
            host: "node-\"a\"\n".to_owned(),
            r#move: true,
            etag: "1-2".to_owned(),
            request_id: "r1".to_owned(),
            ..AttachVolumeRequest::default()
        };
        let facts = requests.facts("basalt.v1.Admin/AttachVolume", &framed(&attach));
        assert_eq!(facts.resource, r#"name="volumes/demo" host="node-\"a\"\n""#);
        assert_eq!(facts.request_id, "r1");
        let member = |volume: &str| CutMember {
            parent: format!("volumes/{volume}"),
            snapshot_id: "s".to_owned(),
        };
        let cut = CreateCutRequest {
            snapshots: vec![member("a"), member("b")],
            ..CreateCutRequest::default()
        };
        let facts = requests.facts("basalt.v1.Admin/CreateCut", &framed(&cut));
        assert!(facts.resource.contains("snapshots.parent=\"volumes/b\""), "{facts:?}");
    }

    #[test]
    fn what_is_no_message_is_survived() {
        let requests = Requests::of_api();
        let method = "basalt.v1.Admin/AttachVolume";
        for bytes in
            [&b""[..], b"\0\0", b"\0\0\0\0\x05\x0a\xff\xff\xff\xff", &[0xff; 300], &[0x0b; 64]]
        {
            assert_eq!(requests.facts(method, bytes), Facts::default());
        }
        let long = AttachVolumeRequest { name: "x".repeat(100_000), ..Default::default() };
        assert!(requests.facts(method, &framed(&long)).resource.len() < 2 * ALL_MAX);
        assert_eq!(requests.facts("basalt.v1.Admin/Unknown", &framed(&long)), Facts::default());
    }
}
