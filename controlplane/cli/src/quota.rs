//! Quotas.

use crate::documents::document;
use crate::options::{Change, Options, QuotaCommand, QuotaFields, label_map};
use crate::{Failure, call_of, get, output};
use basalt_api::dial::Cluster;
use basalt_api::v1::quotas_client::QuotasClient;
use basalt_api::v1::{CreateQuotaRequest, DeleteQuotaRequest, Quota, UpdateQuotaRequest};
use prost_types::FieldMask;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &QuotaCommand,
) -> Result<(), Failure> {
    match command {
        QuotaCommand::List => get::list(options, cluster, ("quotas", None, "")).await,
        QuotaCommand::Show { name } => {
            get::list(options, cluster, ("quotas", Some(name), "")).await
        }
        QuotaCommand::Create { name, fields, change } => {
            let request = CreateQuotaRequest {
                quota_id: name.clone(),
                quota: Some(given(fields).0),
                request_id: change.id(),
                validate_only: false,
            };
            let made = call_of!(cluster, QuotasClient, create_quota, request)?;
            output::write(options.output, &document(&made), || format!("quota {name} created"))
        }
        QuotaCommand::Update { name, fields, change } => {
            let made = update(cluster, name, fields, change).await?;
            output::write(options.output, &document(&made), || format!("quota {name} changed"))
        }
        QuotaCommand::Delete { name, change } => {
            let name = path(name);
            let (etag, request_id) = (change.etag(), change.id());
            let request = DeleteQuotaRequest { name: name.clone(), etag, request_id };
            call_of!(cluster, QuotasClient, delete_quota, request)?;
            let gone = Quota { name: name.clone(), ..Quota::default() };
            output::write(options.output, &document(&gone), || format!("{name} deleted"))
        }
    }
}

async fn update(
    cluster: &Cluster,
    name: &str,
    fields: &QuotaFields,
    change: &Change,
) -> Result<Quota, Failure> {
    let (quota, paths) = given(fields);
    if paths.is_empty() {
        return Err(Failure::Usage("nothing is to be changed; name a field".to_owned()));
    }
    let request = UpdateQuotaRequest {
        quota: Some(Quota { name: path(name), etag: change.etag(), ..quota }),
        update_mask: Some(FieldMask { paths }),
        request_id: change.id(),
        validate_only: false,
    };
    Ok(call_of!(cluster, QuotasClient, update_quota, request)?)
}

fn path(name: &str) -> String {
    format!("quotas/{}", name.trim_start_matches("quotas/"))
}

/// What was given of a quota, and which fields that is.
fn given(fields: &QuotaFields) -> (Quota, Vec<String>) {
    let named = [
        (fields.description.is_some(), "description"),
        (!fields.selector.is_empty(), "selector"),
        (fields.max_volumes.is_some(), "max_volumes"),
        (fields.max_bytes.is_some(), "max_bytes"),
        (fields.max_iops_min.is_some(), "max_iops_min"),
    ];
    let paths = named.iter().filter(|(given, _)| *given).map(|(_, path)| (*path).to_owned());
    let quota = Quota {
        description: fields.description.clone().unwrap_or_default(),
        selector: label_map(&fields.selector),
        max_volumes: fields.max_volumes.unwrap_or_default(),
        max_bytes: fields.max_bytes.unwrap_or_default(),
        max_iops_min: fields.max_iops_min.unwrap_or_default(),
        ..Quota::default()
    };
    (quota, paths.collect())
}
