//! Resources as documents: read from YAML or JSON, written as JSON.

use basalt_api::reflect::{dynamic, pool};
use basalt_api::v1::{Resource, resource::Resource as Of};
use prost::{Message, Name};
use prost_reflect::{
    DeserializeOptions, DynamicMessage, Kind, MessageDescriptor, SerializeOptions,
};
use serde::Deserialize;
use serde_json::Value;

/// The kinds that documents can have, and where their names begin.
const KINDS: [(&str, &str); 4] = [
    ("Volume", "volumes/"),
    ("Snapshot", "volumes/"),
    ("StorageClass", "storageClasses/"),
    ("Quota", "quotas/"),
];

/// The resources in a text of documents.
///
/// # Errors
/// Says in which document what is wrong.
pub(crate) fn read(text: &str) -> Result<Vec<Resource>, String> {
    let mut found = Vec::new();
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let at = |problem: String| format!("document {}: {problem}", number + 1);
        let value = Value::deserialize(document).map_err(|e| at(e.to_string()))?;
        match value {
            // Nothing between two '---'.
            Value::Null => {}
            value => found.push(resource(value).map_err(at)?),
        }
    }
    Ok(found)
}

fn resource(mut value: Value) -> Result<Resource, String> {
    let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let fields = value.as_object_mut().ok_or("it is no map of fields")?;
    let kind = fields.remove("kind");
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
    let Some((kind, collection)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        return Err(format!("its kind is '{kind}'; write one of {}", kinds.join(", ")));
    };
    match fields.get_mut("name") {
        Some(Value::String(name)) if !name.starts_with(collection) => {
            name.insert_str(0, collection);
        }
        Some(Value::String(_)) => {}
        _ => return Err("it has no name".to_owned()),
    }
    let descriptor = pool()
        .get_message_by_name(&format!("basalt.v1.{kind}"))
        .ok_or_else(|| format!("{kind} is not known"))?;
    sizes(&mut value, &descriptor)?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, value, &options)
        .map_err(|problem| problem.to_string())?;
    let of = match *kind {
        "Volume" => Of::Volume(typed(&message)?),
        "Snapshot" => Of::Snapshot(typed(&message)?),
        "StorageClass" => Of::StorageClass(typed(&message)?),
        _ => Of::Quota(typed(&message)?),
    };
    Ok(Resource { resource: Some(of) })
}

fn typed<M: Message + Name + Default>(message: &DynamicMessage) -> Result<M, String> {
    basalt_api::reflect::typed(message)
}

/// Makes numbers of sizes with units, in the fields of a message that are in bytes.
fn sizes(value: &mut Value, descriptor: &MessageDescriptor) -> Result<(), String> {
    let Some(fields) = value.as_object_mut() else { return Ok(()) };
    for (name, value) in fields {
        let field =
            descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name));
        let Some(field) = field else { continue };
        let in_bytes = field.name().ends_with("_bytes") || field.name().starts_with("bandwidth_");
        match (field.kind(), &value) {
            (Kind::Message(inner), _) if !field.is_map() && !field.is_list() => {
                sizes(value, &inner)?
            }
            (Kind::Uint64, Value::String(text)) if in_bytes => {
                let bytes = basalt_api::size::parse(text).map_err(|e| format!("{name}: {e}"))?;
                *value = Value::from(bytes);
            }
            _ => {}
        }
    }
    Ok(())
}

/// A message as a document: fields by their names, numbers as numbers, without what is not set.
pub(crate) fn document<M: Message + Name>(message: &M) -> Value {
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    dynamic(message)
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read() {
        let text = "kind: StorageClass\nname: fast\nqos: {iops_max: 5000, bandwidth_max: 200MiB}\n---\n\
                    ---\nkind: Volume\nname: volumes/demo\nsize_bytes: 10GiB\nlabels: {env: prod}\n---\n\
                    {\"kind\": \"Quota\", \"name\": \"q\", \"maxBytes\": \"1TiB\"}\n";
        let found = read(text).expect("documents");
        let [class, volume, quota] = &found[..] else { panic!("{found:?}") };
        let Some(Of::StorageClass(class)) = &class.resource else { panic!("{class:?}") };
        let qos = class.qos.expect("given");
        assert_eq!((class.name.as_str(), qos.iops_max), ("storageClasses/fast", 5000));
        assert_eq!(qos.bandwidth_max, 200 << 20);
        let Some(Of::Volume(volume)) = &volume.resource else { panic!("{volume:?}") };
        assert_eq!((volume.size_bytes, volume.labels["env"].as_str()), (10 << 30, "prod"));
        let Some(Of::Quota(quota)) = &quota.resource else { panic!("{quota:?}") };
        assert_eq!((quota.name.as_str(), quota.max_bytes), ("quotas/q", 1 << 40));
    }

    #[test]
    fn what_can_not_be_read_is_explained() {
        for (text, part) in [
            ("kind: Disk\nname: a", "write one of Volume"),
            ("name: a", "its kind is ''"),
            ("kind: Volume", "it has no name"),
            ("kind: Volume\nname: a\nsize: 1", "size"),
            ("kind: Volume\nname: a\nsize_bytes: 1GB", "decimal"),
            ("kind: Volume\nname: a\nsize_bytes: -1", "document 1"),
            ("kind: Volume\nname: a\n---\nx", "document 2: it is no map"),
            ("kind: [", "document 1"),
        ] {
            let problem = read(text).expect_err(text);
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }

    #[test]
    fn a_document_has_numbers_and_names_of_fields() {
        let volume = basalt_api::v1::Volume { size_bytes: 1 << 40, ..Default::default() };
        assert_eq!(document(&volume).to_string(), "{\"size_bytes\":1099511627776}");
    }
}
