//! Operations: looked at, waited for, called off.

use crate::options::{OperationCommand, Options};
use crate::output::Progress;
use crate::{Failure, call_of, get, output};
use basalt_api::dial::Cluster;
use basalt_api::longrunning::operation::Result as End;
use basalt_api::longrunning::operations_client::OperationsClient;
use basalt_api::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, Operation, WaitOperationRequest,
};
use basalt_api::v1::OperationMetadata;
use prost::Message;
use prost_types::Duration as Wait;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long one call waits, so that the progress is seen.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &OperationCommand,
) -> Result<(), Failure> {
    match command {
        OperationCommand::List { open } => {
            let filter = if *open { "done = false" } else { "" };
            get::list(options, cluster, ("operations", None, filter)).await
        }
        OperationCommand::Show { operation } => {
            let name = path(operation);
            get::list(options, cluster, ("operations", Some(&name), "")).await
        }
        OperationCommand::Wait { operation, wait } => {
            waited(options, cluster, &path(operation), *wait).await
        }
        OperationCommand::Cancel { operation } => {
            let name = path(operation);
            let request = CancelOperationRequest { name: name.clone() };
            call_of!(cluster, OperationsClient, cancel_operation, request)?;
            output::write(options.output, &json!({ "name": name }), || format!("{name} called off"))
        }
        OperationCommand::Delete { operation } => {
            let name = path(operation);
            let request = DeleteOperationRequest { name: name.clone() };
            call_of!(cluster, OperationsClient, delete_operation, request)?;
            output::write(options.output, &json!({ "name": name }), || format!("{name} forgotten"))
        }
    }
}

async fn waited(
    options: &Options,
    cluster: &Cluster,
    name: &str,
    wait: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + wait;
    let mut progress = Progress::start(options.output);
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(LOOK);
        let timeout = Wait { seconds: left.as_secs() as i64, nanos: left.subsec_nanos() as i32 };
        let request = WaitOperationRequest { name: name.to_owned(), timeout: Some(timeout) };
        let found = call_of!(cluster, OperationsClient, wait_operation, request)?;
        let told = metadata(&found);
        if found.done {
            drop(progress);
            return ended(options, &found, &told);
        }
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "{name} is not done after {} s: {}",
                wait.as_secs(),
                told.sentence
            )));
        }
        progress.show(|| format!("{} {}: {}", told.verb, told.target, told.sentence));
    }
}

fn metadata(operation: &Operation) -> OperationMetadata {
    let told = operation.metadata.as_ref();
    told.and_then(|any| OperationMetadata::decode(&*any.value).ok()).unwrap_or_default()
}

fn ended(options: &Options, found: &Operation, told: &OperationMetadata) -> Result<(), Failure> {
    let error = match &found.result {
        Some(End::Error(error)) => error.message.clone(),
        _ => String::new(),
    };
    let document = json!({
        "name": found.name,
        "done": true,
        "verb": told.verb,
        "target": told.target,
        "error": error,
    });
    output::write(options.output, &document, || match error.as_str() {
        "" => format!("{} {}: done", told.verb, told.target),
        error => format!("{} {}: {error}", told.verb, told.target),
    })?;
    if error.is_empty() { Ok(()) } else { Err(Failure::Shown) }
}

fn path(text: &str) -> String {
    format!("operations/{}", text.trim_start_matches("operations/"))
}
