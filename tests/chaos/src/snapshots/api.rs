//! The API as a program uses it: one connection, and no process for each call.

use anyhow::{Context, Result, bail};
use basalt_api::dial;
use basalt_api::random::request_id;
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, GetSnapshotRequest, snapshot::State,
};
use basalt_interop::cluster::{Cluster, PATIENCE};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::Code;
use tonic::transport::Channel;

/// How often it is asked whether a snapshot is there, or gone.
const POLL: Duration = Duration::from_millis(1);

pub(super) struct Api {
    runtime: Runtime,
    client: AdminClient<Channel>,
}

impl Api {
    pub(super) fn new(cluster: &Cluster) -> Result<Api> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = {
            let _inside = runtime.enter();
            dial::admin(&cluster.nodes[0].address(), PATIENCE)?
        };
        Ok(Api { runtime, client })
    }

    /// Creates a snapshot and waits until it is complete.
    pub(super) fn create(&self, volume: &str, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let request = CreateSnapshotRequest {
            parent: format!("volumes/{volume}"),
            snapshot_id: id.to_owned(),
            request_id: request_id("chaos"),
            ..CreateSnapshotRequest::default()
        };
        self.runtime.block_on(async {
            let mut found = client.create_snapshot(request).await?.into_inner();
            let deadline = Instant::now() + PATIENCE;
            while found.state() != State::Ready {
                if Instant::now() >= deadline {
                    bail!("{id} is not complete");
                }
                tokio::time::sleep(POLL).await;
                let request = GetSnapshotRequest { name: found.name.clone() };
                found = client.get_snapshot(request).await?.into_inner();
            }
            Ok(())
        })
    }

    /// Deletes a snapshot and waits until it is gone.
    pub(super) fn delete(&self, volume: &str, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        let name = format!("volumes/{volume}/snapshots/{id}");
        let request = DeleteSnapshotRequest {
            name: name.clone(),
            request_id: request_id("chaos"),
            ..DeleteSnapshotRequest::default()
        };
        self.runtime.block_on(async {
            client.delete_snapshot(request).await.with_context(|| name.clone())?;
            let deadline = Instant::now() + PATIENCE;
            loop {
                match client.get_snapshot(GetSnapshotRequest { name: name.clone() }).await {
                    Err(status) if status.code() == Code::NotFound => return Ok(()),
                    Err(status) => return Err(status).with_context(|| name.clone()),
                    Ok(_) if Instant::now() >= deadline => bail!("{name} is not gone"),
                    Ok(_) => tokio::time::sleep(POLL).await,
                }
            }
        })
    }
}
