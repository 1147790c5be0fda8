//! `basalt scrub`.

use crate::Failure;
use crate::options::{Options, ScrubCommand};
use crate::output;
use basalt_api::dial;
use basalt_api::v1::{GetClusterRequest, Node, Scrub, StartScrubRequest, StartScrubResponse};
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &ScrubCommand,
) -> Result<(), Failure> {
    match command {
        ScrubCommand::Start { node } => {
            let node = node.clone().unwrap_or_default();
            let started = cluster
                .call(|mut client| {
                    let node = node.clone();
                    async move { client.start_scrub(StartScrubRequest { node }).await }
                })
                .await?;
            let document = json!({ "started": started.started, "problems": started.problems });
            output::write(options.output, &document, || begun(&started))
        }
        ScrubCommand::Status => {
            let found = cluster
                .call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await })
                .await?;
            let node = |node: &Node| {
                let scrub = node.scrub.as_ref().map(document);
                json!({ "id": node.id, "name": node.name, "scrub": scrub })
            };
            let nodes = json!({ "nodes": found.nodes.iter().map(node).collect::<Vec<_>>() });
            output::write(options.output, &nodes, || text(&found.nodes))
        }
    }
}

fn begun(started: &StartScrubResponse) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for node in &started.started {
        let _ = writeln!(text, "{node} looks at all of its blocks");
    }
    let mut problems: Vec<_> = started.problems.iter().collect();
    problems.sort_unstable();
    for (node, problem) in problems {
        let _ = writeln!(text, "{node} does not: {problem}");
    }
    text
}

fn text(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        let Some(scrub) = &node.scrub else {
            return vec![node.name.clone(), "unknown".to_owned()];
        };
        let state = if scrub.running { "running" } else { "idle" };
        let numbers = [
            scrub.passes,
            scrub.blocks_verified,
            scrub.blocks_bad,
            scrub.blocks_repaired,
            scrub.blocks_waiting,
            scrub.blocks_lost,
            scrub.differing_pages,
            scrub.mended_pages,
            scrub.headers_bad,
            scrub.records_bad,
        ];
        let words = [node.name.clone(), state.to_owned()].into_iter();
        words.chain(numbers.iter().map(u64::to_string)).collect()
    };
    output::table(
        &[
            "NODE", "STATE", "PASSES", "VERIFIED", "BAD", "REPAIRED", "WAITING", "LOST", "DIFFER",
            "MENDED", "HEADERS", "RECORDS",
        ],
        &nodes.iter().map(row).collect::<Vec<_>>(),
    )
}

/// What a node's scrub came to.
pub(crate) fn document(scrub: &Scrub) -> Value {
    json!({
        "passes": scrub.passes,
        "running": scrub.running,
        "blocks_verified": scrub.blocks_verified,
        "blocks_bad": scrub.blocks_bad,
        "blocks_repaired": scrub.blocks_repaired,
        "blocks_overwritten": scrub.blocks_overwritten,
        "blocks_waiting": scrub.blocks_waiting,
        "blocks_lost": scrub.blocks_lost,
        "blocks_given": scrub.blocks_given,
        "differing_pages": scrub.differing_pages,
        "mended_pages": scrub.mended_pages,
        "mended_blocks": scrub.mended_blocks,
        "undecided_pages": scrub.undecided_pages,
        "records_verified": scrub.records_verified,
        "records_bad": scrub.records_bad,
        "headers_verified": scrub.headers_verified,
        "headers_bad": scrub.headers_bad,
        "segments_emptied": scrub.segments_emptied,
        "last_pass_milliseconds": scrub.last_pass_milliseconds,
        "last_pass_verified": scrub.last_pass_verified,
        "last_pass_bad": scrub.last_pass_bad,
    })
}
