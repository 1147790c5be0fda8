//! Quotas.

use super::classes::paths;
use super::paging::{Page, filter_over, holds};
use super::{change, id_in, linearized, rehearse, shown, status_of, unexpected};
use crate::daemon::Daemon;
use basalt_api::error;
use basalt_api::reflect::{copy_fields, dynamic, set_fields, typed};
use basalt_api::v1::quotas_server::Quotas;
use basalt_api::v1::{
    CreateQuotaRequest, DeleteQuotaRequest, GetQuotaRequest, ListQuotasRequest, ListQuotasResponse,
    Quota, UpdateQuotaRequest,
};
use basalt_meta::{DeleteQuota, MetaState, Op, Outcome, PutQuota, Refused};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The fields that can be changed.
pub const FIELDS: [&str; 6] =
    ["description", "labels", "selector", "max_volumes", "max_bytes", "max_iops_min"];

/// The service.
pub struct QuotasService {
    daemon: Arc<Daemon>,
}

impl QuotasService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> QuotasService {
        QuotasService { daemon }
    }

    async fn put(
        &self,
        request_id: &str,
        validate_only: bool,
        put: PutQuota,
    ) -> Result<Response<Quota>, Status> {
        let op = Op::PutQuota(put);
        let outcome = match validate_only {
            true => rehearse(&self.daemon, op).await?,
            false => change(&self.daemon, request_id, op).await?,
        };
        let Outcome::Quota(record) = outcome else { return Err(unexpected(&outcome)) };
        let metadata = self.daemon.engine()?.metadata.clone();
        Ok(Response::new(metadata.look(|state| shown::quota(state, &record))))
    }
}

/// What a quota becomes when the fields of `wanted` are put into it.
///
/// # Errors
/// Names a field that there is not, or that can not be changed.
pub fn merged(
    state: &MetaState,
    wanted: &Quota,
    paths: &[String],
) -> Result<(String, Quota), Status> {
    let id = id_in("quotas", &wanted.name)?;
    let known = state.quota(id).ok_or_else(|| status_of(Refused::quota_not_found(id)))?;
    let mut merged = dynamic(&shown::quota(state, known));
    copy_fields(&dynamic(wanted), &mut merged, paths)
        .map_err(|problem| error::invalid("update_mask", problem))?;
    let merged = typed(&merged).map_err(|problem| error::invalid("quota", problem))?;
    Ok((id.to_owned(), merged))
}

#[tonic::async_trait]
impl Quotas for QuotasService {
    async fn create_quota(
        &self,
        request: Request<CreateQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        let request = request.into_inner();
        let quota = request.quota.unwrap_or_default();
        let record = shown::quota_record(&request.quota_id, quota);
        let put = PutQuota { quota: Some(record), create: true, etag: String::new() };
        self.put(&request.request_id, request.validate_only, put).await
    }

    async fn get_quota(
        &self,
        request: Request<GetQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        let id = id_in("quotas", &request.get_ref().name)?;
        let metadata = linearized(&self.daemon).await?;
        let found = metadata.look(|state| state.quota(id).map(|c| shown::quota(state, c)));
        found.map(Response::new).ok_or_else(|| status_of(Refused::quota_not_found(id)))
    }

    async fn list_quotas(
        &self,
        request: Request<ListQuotasRequest>,
    ) -> Result<Response<ListQuotasResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[&request.filter])?;
        let filter = filter_over::<Quota>(&request.filter)?;
        let metadata = linearized(&self.daemon).await?;
        Ok(Response::new(metadata.look(|state| {
            let after = page.after.as_deref();
            let all = state.quotas().filter(|c| after.is_none_or(|after| *c.id > *after));
            let all = all.map(|c| shown::quota(state, c)).filter(|c| holds(&filter, c));
            let mut quotas: Vec<Quota> = all.take(page.size + 1).collect();
            let next_page_token =
                page.cut(&mut quotas, |c| c.name.trim_start_matches("quotas/").to_owned());
            let revision = state.applied();
            ListQuotasResponse { quotas, next_page_token, revision }
        })))
    }

    async fn update_quota(
        &self,
        request: Request<UpdateQuotaRequest>,
    ) -> Result<Response<Quota>, Status> {
        let request = request.into_inner();
        let wanted = request.quota.unwrap_or_default();
        let set = set_fields(&dynamic(&wanted));
        let paths = paths(request.update_mask.as_ref(), set, &FIELDS)?;
        let metadata = linearized(&self.daemon).await?;
        let (id, quota) = metadata.look(|state| merged(state, &wanted, &paths))?;
        // What was read above is what is changed: another change in between is not undone.
        let etag = if wanted.etag.is_empty() { quota.etag.clone() } else { wanted.etag };
        let put = PutQuota { quota: Some(shown::quota_record(&id, quota)), create: false, etag };
        self.put(&request.request_id, request.validate_only, put).await
    }

    async fn delete_quota(
        &self,
        request: Request<DeleteQuotaRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let id = id_in("quotas", &request.name)?.to_owned();
        let op = Op::DeleteQuota(DeleteQuota { id, etag: request.etag });
        change(&self.daemon, &request.request_id, op).await?;
        Ok(Response::new(()))
    }
}
