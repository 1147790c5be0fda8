//! Messages by their descriptors, so that what holds for every resource is written once.

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, ReflectMessage, Value};
use std::sync::LazyLock;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(crate::FILE_DESCRIPTOR_SET).expect("made by the compiler of the protos")
});

/// The descriptors of every service and message of the API.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// A message with its descriptor.
///
/// # Panics
/// If the message is none of the API.
pub fn dynamic<M: Message + Name>(message: &M) -> DynamicMessage {
    let descriptor = pool().get_message_by_name(&M::full_name()).expect("a message of the API");
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).expect("the same message");
    dynamic
}

/// The message that a dynamic one is.
///
/// # Errors
/// If it is another one.
pub fn typed<M: Message + Name + Default>(dynamic: &DynamicMessage) -> Result<M, String> {
    if dynamic.descriptor().full_name() != M::full_name() {
        return Err(format!("a {} is no {}", dynamic.descriptor().full_name(), M::full_name()));
    }
    dynamic.transcode_to().map_err(|problem| problem.to_string())
}

/// Copies the fields at `paths`, separated by dots, from one message to another of its type.
///
/// # Errors
/// Names a path that leads nowhere.
pub fn copy_fields(
    from: &DynamicMessage,
    to: &mut DynamicMessage,
    paths: &[impl AsRef<str>],
) -> Result<(), String> {
    for path in paths {
        copy_field(from, to, path.as_ref()).map_err(|()| unknown_path(path.as_ref(), from))?;
    }
    Ok(())
}

fn copy_field(from: &DynamicMessage, to: &mut DynamicMessage, path: &str) -> Result<(), ()> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(f, rest)| (f, Some(rest)));
    let field = from.descriptor().get_field_by_name(first).ok_or(())?;
    let Some(rest) = rest else {
        match from.has_field(&field) {
            true => to.set_field(&field, from.get_field(&field).into_owned()),
            false => to.clear_field(&field),
        }
        return Ok(());
    };
    let inner = from.get_field(&field);
    let (Value::Message(inner), false) = (inner.as_ref(), field.is_list()) else { return Err(()) };
    match to.get_field_mut(&field) {
        Value::Message(target) => copy_field(inner, target, rest),
        _ => Err(()),
    }
}

/// The names of the fields of a message that are set.
pub fn set_fields(message: &DynamicMessage) -> Vec<String> {
    message.fields().map(|(field, _)| field.name().to_owned()).collect()
}

fn unknown_path(path: &str, message: &DynamicMessage) -> String {
    let names: Vec<String> =
        message.descriptor().fields().map(|field| field.name().to_owned()).collect();
    format!(
        "'{}' is no field of a {}; those are {}",
        path.escape_debug(),
        message.descriptor().name(),
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{Qos, Volume};

    fn volume() -> Volume {
        let qos = Some(Qos { iops_max: 100, iops_burst: 7, ..Qos::default() });
        let labels = [("env".to_owned(), "prod".to_owned())].into();
        Volume { name: "volumes/a".to_owned(), size_bytes: 4096, qos, labels, ..Volume::default() }
    }

    #[test]
    fn a_message_comes_back_from_its_descriptor() {
        assert_eq!(typed::<Volume>(&dynamic(&volume())), Ok(volume()));
        assert!(typed::<Qos>(&dynamic(&volume())).is_err());
        let mut set = set_fields(&dynamic(&volume()));
        set.sort();
        assert_eq!(set, ["labels", "name", "qos", "size_bytes"]);
    }

    #[test]
    fn fields_are_copied_by_path() {
        let from = dynamic(&volume());
        let mut to = dynamic(&Volume { etag: "e".to_owned(), epoch: 3, ..Volume::default() });
        copy_fields(&from, &mut to, &["labels", "qos.iops_burst", "epoch"]).expect("paths");
        let to: Volume = typed(&to).expect("a volume");
        assert_eq!(to.labels, volume().labels);
        assert_eq!(to.qos, Some(Qos { iops_burst: 7, ..Qos::default() }));
        assert_eq!((to.epoch, to.etag.as_str(), to.size_bytes), (0, "e", 0));
    }

    #[test]
    fn a_path_that_leads_nowhere_is_named() {
        let from = dynamic(&volume());
        for bad in ["colour", "qos.colour", "name.x", "labels.env.x", "", "qos."] {
            let mut to = from.clone();
            let problem = copy_fields(&from, &mut to, &[bad]).expect_err(bad);
            assert!(problem.contains("is no field"), "{problem}");
        }
    }
}
