//! Storage classes.

use crate::documents::document;
use crate::options::{Change, ClassCommand, ClassFields, Options, label_map};
use crate::{Failure, call_of, get, output};
use basalt_api::dial::Cluster;
use basalt_api::v1::storage_classes_client::StorageClassesClient;
use basalt_api::v1::{
    CreateStorageClassRequest, DeleteStorageClassRequest, StorageClass, UpdateStorageClassRequest,
};
use prost_types::FieldMask;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &ClassCommand,
) -> Result<(), Failure> {
    match command {
        ClassCommand::List => get::list(options, cluster, ("storageClasses", None, "")).await,
        ClassCommand::Show { name } => {
            get::list(options, cluster, ("storageClasses", Some(name), "")).await
        }
        ClassCommand::Create { name, encrypted, fields, change } => {
            let class = StorageClass { encrypted: *encrypted, ..given(fields).0 };
            let request = CreateStorageClassRequest {
                storage_class_id: name.clone(),
                storage_class: Some(class),
                request_id: change.id(),
                validate_only: false,
            };
            let made = call_of!(cluster, StorageClassesClient, create_storage_class, request)?;
            output::write(options.output, &document(&made), || format!("class {name} created"))
        }
        ClassCommand::Update { name, fields, change } => {
            let made = update(cluster, name, fields, change).await?;
            output::write(options.output, &document(&made), || {
                format!("class {name} changed, and with it {} volume(s)", made.volume_count)
            })
        }
        ClassCommand::Delete { name, change } => {
            let name = path(name);
            let (etag, request_id) = (change.etag(), change.id());
            let request = DeleteStorageClassRequest { name: name.clone(), etag, request_id };
            call_of!(cluster, StorageClassesClient, delete_storage_class, request)?;
            let gone = StorageClass { name: name.clone(), ..StorageClass::default() };
            output::write(options.output, &document(&gone), || format!("{name} deleted"))
        }
    }
}

async fn update(
    cluster: &Cluster,
    name: &str,
    fields: &ClassFields,
    change: &Change,
) -> Result<StorageClass, Failure> {
    let (class, paths) = given(fields);
    if paths.is_empty() {
        return Err(Failure::Usage("nothing is to be changed; name a field".to_owned()));
    }
    let request = UpdateStorageClassRequest {
        storage_class: Some(StorageClass { name: path(name), etag: change.etag(), ..class }),
        update_mask: Some(FieldMask { paths }),
        request_id: change.id(),
        validate_only: false,
    };
    Ok(call_of!(cluster, StorageClassesClient, update_storage_class, request)?)
}

/// The name of a class by its last part or the whole.
pub(crate) fn path(name: &str) -> String {
    format!("storageClasses/{}", name.trim_start_matches("storageClasses/"))
}

/// What was given of a class, and which fields that is.
fn given(fields: &ClassFields) -> (StorageClass, Vec<String>) {
    let (qos, bounds) = fields.qos.given();
    let mut paths: Vec<String> = bounds.into_iter().map(str::to_owned).collect();
    let mut names = |given: bool, path: &str| paths.extend(given.then(|| path.to_owned()));
    names(fields.description.is_some(), "description");
    names(!fields.labels.is_empty(), "labels");
    names(fields.default.is_some(), "is_default");
    let class = StorageClass {
        description: fields.description.clone().unwrap_or_default(),
        labels: label_map(&fields.labels),
        qos: Some(qos),
        is_default: fields.default.unwrap_or_default(),
        ..StorageClass::default()
    };
    (class, paths)
}
