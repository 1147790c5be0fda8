//! The API at whichever node answers: for runs in which nodes are away.

use anyhow::{Context, Result, anyhow};
use basalt_api::dial::{self, Channel, plain};
use basalt_api::v1::admin_client::AdminClient;
use basalt_api::v1::peer_client::PeerClient;
use basalt_api::v1::{
    Cluster as Status, Consistency, GetClusterRequest, GetReportRequest, GetVolumeRequest,
    ListVolumesRequest, Volume,
};
use basalt_interop::cluster::Cluster;
use basalt_security::Role;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::Code;

/// How long a node may take to answer before the next one is asked.
const ASK: Duration = Duration::from_secs(3);

/// Some nodes of a cluster, asked in turn.
pub(crate) struct Admin {
    runtime: Runtime,
    cluster: dial::Cluster,
}

impl Admin {
    /// The nodes of a cluster but for one of them, by name.
    pub(crate) fn without(cluster: &Cluster, name: &str) -> Result<Admin> {
        let others = cluster.nodes.iter().filter(|node| node.name != name);
        Admin::at(others.map(|node| node.address()).collect())
    }

    /// The nodes at these addresses.
    pub(crate) fn at(addresses: Vec<String>) -> Result<Admin> {
        Admin::patient(addresses, ASK)
    }

    /// The same, each with so much time to answer.
    pub(crate) fn patient(addresses: Vec<String>, patience: Duration) -> Result<Admin> {
        crate::api::present()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Admin { runtime, cluster: dial::Cluster::new(addresses, patience) })
    }

    /// Makes a call.
    pub(crate) fn call<T, F>(
        &self,
        call: impl Fn(AdminClient<Channel>) -> F,
    ) -> Result<T, tonic::Status>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.runtime.block_on(self.cluster.call(call))
    }

    pub(crate) fn status(&self) -> Result<Status> {
        let asked = self.call(|mut c| async move { c.get_cluster(GetClusterRequest {}).await });
        asked.map_err(|status| anyhow!("the cluster's status: {}", plain(&status)))
    }

    /// How many replicas the first of the nodes holds, as it says itself.
    pub(crate) fn replicas(&self) -> Result<usize> {
        let address = self.cluster.addresses().first().context("an address")?.clone();
        // What nodes ask of each other, only a node may ask.
        let as_node = crate::api::credentials(Role::Node)?;
        let asked = self.runtime.block_on(async {
            let channel = dial::channel_as(&address, ASK, &as_node)?;
            PeerClient::new(channel).get_report(GetReportRequest {}).await
        });
        let report = asked.map_err(|status| anyhow!("a report: {}", plain(&status)))?.into_inner();
        Ok(report.replicas.len())
    }

    /// A volume as far as the asked node has heard of it: also while nobody leads.
    pub(crate) fn volume_as_heard(&self, id: &str) -> Result<Volume> {
        let consistency = Consistency::Eventual.into();
        let request = ListVolumesRequest { page_size: 1000, consistency, ..Default::default() };
        let asked = self.call(|mut client| {
            let request = request.clone();
            async move { client.list_volumes(request).await }
        });
        let page = asked.map_err(|status| anyhow!("the volumes: {}", plain(&status)))?;
        let found = page.volumes.into_iter().find(|volume| volume.name == format!("volumes/{id}"));
        found.with_context(|| format!("the volume {id} is not known"))
    }

    pub(crate) fn volume(&self, id: &str) -> Result<Volume, tonic::Status> {
        let name = format!("volumes/{id}");
        self.call(|mut client| {
            let request = GetVolumeRequest { name: name.clone() };
            async move { client.get_volume(request).await }
        })
    }
}

/// Whether another attempt may have an answer: nobody led, or a node was away.
pub(crate) fn may_repeat(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}
