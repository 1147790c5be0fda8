//! Storage classes.

use super::paging::{Page, filter_over, holds};
use super::{change, id_in, linearized, rehearse, shown, status_of, unexpected};
use crate::daemon::Daemon;
use basalt_api::error;
use basalt_api::reflect::{copy_fields, dynamic, set_fields, typed};
use basalt_api::v1::storage_classes_server::StorageClasses;
use basalt_api::v1::{
    CreateStorageClassRequest, DeleteStorageClassRequest, GetStorageClassRequest,
    ListStorageClassesRequest, ListStorageClassesResponse, StorageClass, UpdateStorageClassRequest,
};
use basalt_meta::{DeleteClass, MetaState, Op, Outcome, PutClass, Refused};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The fields that can be changed.
pub const FIELDS: [&str; 4] = ["description", "labels", "qos", "is_default"];

/// The service.
pub struct ClassesService {
    daemon: Arc<Daemon>,
}

impl ClassesService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> ClassesService {
        ClassesService { daemon }
    }

    async fn put(
        &self,
        request_id: &str,
        validate_only: bool,
        put: PutClass,
    ) -> Result<Response<StorageClass>, Status> {
        let op = Op::PutClass(put);
        let outcome = match validate_only {
            true => rehearse(&self.daemon, op).await?,
            false => change(&self.daemon, request_id, op).await?,
        };
        let Outcome::Class(record) = outcome else { return Err(unexpected(&outcome)) };
        let metadata = self.daemon.engine()?.metadata.clone();
        Ok(Response::new(metadata.look(|state| shown::class(state, &record))))
    }
}

/// What a class becomes when the fields of `wanted` are put into it.
///
/// # Errors
/// Names a field that there is not, or that can not be changed.
pub fn merged(
    state: &MetaState,
    wanted: &StorageClass,
    paths: &[String],
) -> Result<(String, StorageClass), Status> {
    let id = id_in("storageClasses", &wanted.name)?;
    let known = state.class(id).ok_or_else(|| status_of(Refused::class_not_found(id)))?;
    let mut merged = dynamic(&shown::class(state, known));
    copy_fields(&dynamic(wanted), &mut merged, paths)
        .map_err(|problem| error::invalid("update_mask", problem))?;
    let merged = typed(&merged).map_err(|problem| error::invalid("storage_class", problem))?;
    Ok((id.to_owned(), merged))
}

/// The paths of a mask that may be changed; without a mask, those of the fields that are set.
///
/// # Errors
/// Names a path that can not be changed.
pub fn paths(
    mask: Option<&prost_types::FieldMask>,
    set: Vec<String>,
    fields: &[&str],
) -> Result<Vec<String>, Status> {
    let changeable = |path: &str| {
        fields.iter().any(|field| {
            path.strip_prefix(field).is_some_and(|r| r.is_empty() || r.starts_with('.'))
        })
    };
    match mask.filter(|mask| !mask.paths.is_empty()) {
        None => Ok(set.into_iter().filter(|path| changeable(path)).collect()),
        Some(mask) if mask.paths == ["*"] => {
            Ok(fields.iter().map(|field| (*field).to_owned()).collect())
        }
        Some(mask) => match mask.paths.iter().find(|path| !changeable(path)) {
            None => Ok(mask.paths.clone()),
            Some(other) => Err(error::invalid(
                "update_mask",
                format!(
                    "'{}' can not be changed; what can is {}",
                    other.escape_debug(),
                    fields.join(", ")
                ),
            )),
        },
    }
}

#[tonic::async_trait]
impl StorageClasses for ClassesService {
    async fn create_storage_class(
        &self,
        request: Request<CreateStorageClassRequest>,
    ) -> Result<Response<StorageClass>, Status> {
        let request = request.into_inner();
        let class = request.storage_class.unwrap_or_default();
        let record = shown::class_record(&request.storage_class_id, class);
        let put = PutClass { class: Some(record), create: true, etag: String::new() };
        self.put(&request.request_id, request.validate_only, put).await
    }

    async fn get_storage_class(
        &self,
        request: Request<GetStorageClassRequest>,
    ) -> Result<Response<StorageClass>, Status> {
        let id = id_in("storageClasses", &request.get_ref().name)?;
        let metadata = linearized(&self.daemon).await?;
        let found = metadata.look(|state| state.class(id).map(|c| shown::class(state, c)));
        found.map(Response::new).ok_or_else(|| status_of(Refused::class_not_found(id)))
    }

    async fn list_storage_classes(
        &self,
        request: Request<ListStorageClassesRequest>,
    ) -> Result<Response<ListStorageClassesResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[&request.filter])?;
        let filter = filter_over::<StorageClass>(&request.filter)?;
        let metadata = linearized(&self.daemon).await?;
        Ok(Response::new(metadata.look(|state| {
            let after = page.after.as_deref();
            let all = state.classes().filter(|c| after.is_none_or(|after| *c.id > *after));
            let all = all.map(|c| shown::class(state, c)).filter(|c| holds(&filter, c));
            let mut storage_classes: Vec<StorageClass> = all.take(page.size + 1).collect();
            let next_page_token = page.cut(&mut storage_classes, |c| {
                c.name.trim_start_matches("storageClasses/").to_owned()
            });
            let revision = state.applied();
            ListStorageClassesResponse { storage_classes, next_page_token, revision }
        })))
    }

    async fn update_storage_class(
        &self,
        request: Request<UpdateStorageClassRequest>,
    ) -> Result<Response<StorageClass>, Status> {
        let request = request.into_inner();
        let wanted = request.storage_class.unwrap_or_default();
        let set = set_fields(&dynamic(&wanted));
        let paths = paths(request.update_mask.as_ref(), set, &FIELDS)?;
        let metadata = linearized(&self.daemon).await?;
        let (id, class) = metadata.look(|state| merged(state, &wanted, &paths))?;
        // What was read above is what is changed: another change in between is not undone.
        let etag = if wanted.etag.is_empty() { class.etag.clone() } else { wanted.etag };
        let put = PutClass { class: Some(shown::class_record(&id, class)), create: false, etag };
        self.put(&request.request_id, request.validate_only, put).await
    }

    async fn delete_storage_class(
        &self,
        request: Request<DeleteStorageClassRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = id_in("storageClasses", &request.name)?.to_owned();
        let op = Op::DeleteClass(DeleteClass { id, etag: request.etag });
        change(&self.daemon, &request.request_id, op).await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::FieldMask;

    #[test]
    fn a_mask_says_what_changes() {
        let mask =
            |paths: &[&str]| FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() };
        let set = || vec!["name".to_owned(), "labels".to_owned()];
        let chosen =
            |m: Option<&FieldMask>| paths(m, set(), &FIELDS).map_err(|s| s.message().to_owned());
        assert_eq!(chosen(None), Ok(vec!["labels".to_owned()]));
        assert_eq!(chosen(Some(&mask(&[]))), Ok(vec!["labels".to_owned()]));
        assert_eq!(chosen(Some(&mask(&["qos.iops_max"]))), Ok(vec!["qos.iops_max".to_owned()]));
        assert_eq!(chosen(Some(&mask(&["*"]))).map(|all| all.len()), Ok(FIELDS.len()));
        for bad in ["name", "qosx", "colour", "labelsx.y"] {
            assert!(
                chosen(Some(&mask(&[bad]))).is_err_and(|m| m.contains("can not be changed")),
                "{bad}"
            );
        }
    }
}
