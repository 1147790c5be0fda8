//! `basalt snapshot diff`.

use crate::options::{Diff, Format, Options};
use crate::output;
use crate::volume::path;
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::random::{random, request_id};
use basalt_api::v1::{
    CreateSnapshotRequest, DeleteSnapshotRequest, Extent, ListChangesRequest, extent::Kind,
    snapshot,
};
use serde_json::json;

/// What stands for the beginning.
const BEGINNING: &str = "-";

pub(crate) async fn run(options: &Options, cluster: &Cluster, diff: &Diff) -> Result<(), Failure> {
    if let Some(to) = &diff.to {
        return tell(options, cluster, diff, to).await;
    }
    let id = format!("diff-{:016x}", random());
    let request = CreateSnapshotRequest {
        parent: path(&diff.volume),
        snapshot_id: id.clone(),
        request_id: request_id("cli"),
        wait_ms: crate::snapshot::wait_ms(options, false),
        ..CreateSnapshotRequest::default()
    };
    let taken = call!(cluster, create_snapshot, request)?;
    let told = match taken.state() {
        snapshot::State::Ready => tell(options, cluster, diff, &id).await,
        _ => Err(Failure::Timeout(format!(
            "the snapshot '{}@{id}', which was to be compared, is not complete in time; see \
             'basalt cluster status'",
            diff.volume
        ))),
    };
    let name = format!("{}/snapshots/{id}", path(&diff.volume));
    let request = DeleteSnapshotRequest {
        name,
        request_id: request_id("cli"),
        ..DeleteSnapshotRequest::default()
    };
    let deleted = call!(cluster, delete_snapshot, request);
    told?;
    deleted?;
    Ok(())
}

/// Writes the extents as they come: there may be many.
async fn tell(options: &Options, cluster: &Cluster, diff: &Diff, to: &str) -> Result<(), Failure> {
    let mut request = ListChangesRequest {
        parent: path(&diff.volume),
        from_snapshot_id: if diff.from == BEGINNING { String::new() } else { diff.from.clone() },
        to_snapshot_id: to.to_owned(),
        offset: diff.offset,
    };
    let mut writer = Writer { format: options.output, extents: 0, bytes: 0 };
    let mut begun = false;
    loop {
        // Each call is about as much as one timeout allows, and goes on where the one before broke off.
        let asked = request.clone();
        let mut answers = call!(cluster, list_changes, asked)?;
        let before = request.offset;
        loop {
            let answer = match answers.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return writer.end(request.offset),
                Err(_) if request.offset > before => break,
                Err(status) => return Err(status.into()),
            };
            if !std::mem::replace(&mut begun, true) {
                writer.begin(answer.size_bytes)?;
            }
            answer.extents.iter().try_for_each(|extent| writer.extent(extent))?;
            request.offset = answer.next_offset;
        }
    }
}

struct Writer {
    format: Format,
    extents: u64,
    bytes: u64,
}

impl Writer {
    fn begin(&mut self, size_bytes: u64) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json | Format::Yaml => {
                format!("{{\n  \"size_bytes\": {size_bytes},\n  \"extents\": [")
            }
            Format::Table | Format::Name => format!("{:>16} {:>16}  KIND\n", "OFFSET", "LENGTH"),
        };
        output::print(text.as_bytes())
    }

    fn extent(&mut self, extent: &Extent) -> Result<(), Failure> {
        let Extent { offset, length, .. } = *extent;
        let kind = match extent.kind() {
            Kind::Data => "data",
            Kind::Zero => "zero",
            Kind::Unspecified => "unknown",
        };
        let text = match self.format {
            Format::Json | Format::Yaml => {
                let comma = if self.extents > 0 { "," } else { "" };
                format!(
                    "{comma}\n    {}",
                    json!({ "offset": offset, "length": length, "kind": kind })
                )
            }
            Format::Table | Format::Name => format!("{offset:>16} {length:>16}  {kind}\n"),
        };
        self.extents += 1;
        self.bytes += length;
        output::print(text.as_bytes())
    }

    fn end(&self, next_offset: u64) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json | Format::Yaml => format!(
                "\n  ],\n  \"changed_bytes\": {},\n  \"next_offset\": {next_offset}\n}}\n",
                self.bytes
            ),
            Format::Table | Format::Name => {
                format!("{} extents, {} bytes differ\n", self.extents, self.bytes)
            }
        };
        output::print(text.as_bytes())
    }
}
