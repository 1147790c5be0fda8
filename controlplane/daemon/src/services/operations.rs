//! Operations under way and such as have ended, as `google.longrunning.Operations`.

use super::paging::{Page, bad_token, filter_over, holds};
use super::{change, linearized, number_in, shown, status_of};
use crate::clones::{ask_progress, complete};
use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::snapshots;
use basalt_api::error;
use basalt_api::longrunning::operation::Result as End;
use basalt_api::longrunning::operations_server::Operations;
use basalt_api::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest,
};
use basalt_api::rpc;
use basalt_api::v1::{ErrorReason, OperationMetadata, WatchedOperation};
use basalt_meta::operation_record::Verb;
use basalt_meta::{
    DrainMember, FlattenVolume, ForgetOperation, MetaState, Op, OperationRecord, Refused,
};
use prost::{Message, Name};
use prost_types::Any;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status};

/// How long a call waits for an operation at most.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// The service.
pub struct OperationsService {
    daemon: Arc<Daemon>,
}

impl OperationsService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> OperationsService {
        OperationsService { daemon }
    }

    async fn shown(&self, number: u64) -> Result<Operation, Status> {
        let engine = self.daemon.engine()?;
        let (record, mut shown) = engine.metadata.look(|state| {
            let record = state.operation(number).ok_or_else(|| not_found(number))?;
            Ok::<_, Status>((record.clone(), operation(state, record)))
        })?;
        if record.verb() == Verb::Flatten && !shown.done {
            tell_progress(&engine, &record, &mut shown).await;
        }
        Ok(shown)
    }
}

fn not_found(number: u64) -> Status {
    status_of(Refused::operation_not_found(&number.to_string()))
}

/// The number that a name ends with.
fn number_of(name: &str) -> Result<u64, Status> {
    number_in("operations", name)?.ok_or_else(|| status_of(Refused::operation_not_found(name)))
}

fn any<M: Message + Name>(message: &M) -> Any {
    let type_url = format!("type.googleapis.com/{}", M::full_name());
    Any { type_url, value: message.encode_to_vec() }
}

/// An operation as the service shows it.
fn operation(state: &MetaState, record: &OperationRecord) -> Operation {
    let WatchedOperation { name, done, metadata } = shown::operation(state, record);
    let metadata = metadata.map(|metadata| any(&metadata));
    let result = match (done, record.cancelled) {
        (false, _) => None,
        (true, true) => Some(End::Error(rpc::Status {
            code: Code::Cancelled as i32,
            message: "called off, or what it was about is gone".to_owned(),
            details: Vec::new(),
        })),
        (true, false) => Some(End::Response(response(state, record))),
    };
    Operation { name, metadata, done, result }
}

/// What an operation came to.
fn response(state: &MetaState, record: &OperationRecord) -> Any {
    let volume = state.volume_by_number(record.volume);
    let snapshot = state.snapshot_of(record.volume, record.generation);
    match (snapshot, volume) {
        (Some(snapshot), _) => any(&snapshots::shown(snapshot)),
        (None, Some(volume)) if record.generation == u32::MAX => any(&complete(state, volume)),
        _ => {
            Any { type_url: "type.googleapis.com/google.protobuf.Empty".to_owned(), value: vec![] }
        }
    }
}

/// Whoever flattens knows how far it is.
async fn tell_progress(engine: &Engine, record: &OperationRecord, shown: &mut Operation) {
    let volume = engine
        .metadata
        .look(|state| state.volume_by_number(record.volume).map(|v| complete(state, v)));
    let Some(mut volume) = volume else { return };
    ask_progress(engine, &mut volume).await;
    let Some(progress) = volume.flattening else { return };
    let Some(metadata) = &mut shown.metadata else { return };
    let Ok(mut told) = OperationMetadata::decode(&*metadata.value) else { return };
    (told.done_units, told.total_units) = (progress.done_bytes, progress.total_bytes);
    if !progress.problem.is_empty() {
        told.sentence = progress.problem;
    }
    *metadata = any(&told);
}

#[tonic::async_trait]
impl Operations for OperationsService {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        if !["", "operations"].contains(&request.name.as_str()) {
            let message = "operations are under 'operations'; leave the name out";
            return Err(error::invalid("name", message));
        }
        let page = Page::asked(request.page_size, &request.page_token, &[&request.filter])?;
        let filter = filter_over::<WatchedOperation>(&request.filter)?;
        let before = match page.after.as_deref().map(str::parse::<u64>) {
            None => u64::MAX,
            Some(number) => number.map_err(|_| bad_token())?,
        };
        let metadata = linearized(&self.daemon).await?;
        Ok(Response::new(metadata.look(|state| {
            let older = state.operations().rev().filter(|op| op.number < before);
            let found = older.filter(|op| holds(&filter, &shown::operation(state, op)));
            let found = found.take(page.size + 1).map(|op| operation(state, op));
            let mut operations: Vec<Operation> = found.collect();
            let next_page_token =
                page.cut(&mut operations, |o| o.name.trim_start_matches("operations/").to_owned());
            ListOperationsResponse { operations, next_page_token }
        })))
    }

    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let number = number_of(&request.get_ref().name)?;
        linearized(&self.daemon).await?;
        self.shown(number).await.map(Response::new)
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let number = number_of(&request.get_ref().name)?;
        change(&self.daemon, "", Op::ForgetOperation(ForgetOperation { number })).await?;
        Ok(Response::new(()))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let number = number_of(&request.get_ref().name)?;
        let metadata = linearized(&self.daemon).await?;
        let op = metadata.look(|state| {
            let record = state.operation(number).ok_or_else(|| not_found(number))?;
            cancellation(state, record)
        })?;
        if let Some(op) = op {
            change(&self.daemon, "", op).await?;
        }
        Ok(Response::new(()))
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let request = request.into_inner();
        let number = number_of(&request.name)?;
        let asked = request.timeout.and_then(|timeout| Duration::try_from(timeout).ok());
        let deadline = Instant::now() + asked.unwrap_or(WAIT_MAX).min(WAIT_MAX);
        let metadata = linearized(&self.daemon).await?;
        let mut changes = metadata.changes();
        let under_way =
            |state: &MetaState| state.operation(number).is_some_and(|op| op.end_time_ms == 0);
        while metadata.look(under_way) {
            match timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => break,
            }
        }
        self.shown(number).await.map(Response::new)
    }
}

/// What calls an operation off; nothing if it has ended.
fn cancellation(state: &MetaState, record: &OperationRecord) -> Result<Option<Op>, Status> {
    if record.end_time_ms != 0 {
        return Ok(None);
    }
    let volume = state.volume_by_number(record.volume).map(|volume| volume.id.clone());
    match (record.verb(), volume) {
        (Verb::Drain, _) => {
            Ok(Some(Op::DrainMember(DrainMember { node: record.node, cancel: true })))
        }
        (Verb::Flatten, Some(id)) => {
            Ok(Some(Op::FlattenVolume(FlattenVolume { id, etag: String::new(), cancel: true })))
        }
        _ => {
            let message = format!(
                "the operation {} can not be called off: only draining a node and flattening a clone can",
                record.number
            );
            let facts = [("operation", record.number.to_string())];
            Err(error::status(ErrorReason::OperationUnderWay, message, &facts))
        }
    }
}
