//! `basalt scrub`.

use crate::Failure;
use crate::options::{Options, ScrubCommand};
use crate::output::{self, Progress};
use basalt_api::dial;
use basalt_api::v1::{GetClusterRequest, Node, Scrub, StartScrubRequest, StartScrubResponse};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    options: &Options,
    cluster: &dial::Cluster,
    command: &ScrubCommand,
) -> Result<(), Failure> {
    match command {
        ScrubCommand::Start { node, wait } => {
            let before = match wait {
                Some(_) => ask(cluster).await?,
                None => Vec::new(),
            };
            let node = node.clone().unwrap_or_default();
            let started = cluster
                .call(|mut client| {
                    let node = node.clone();
                    async move { client.start_scrub(StartScrubRequest { node }).await }
                })
                .await?;
            if let Some(patience) = wait {
                let nodes =
                    walked(options, cluster, (&before, &started.started), *patience).await?;
                let walked = nodes.iter().filter(|node| started.started.contains(&node.name));
                let walked: Vec<Node> = walked.cloned().collect();
                let document = json!({ "nodes": walked.iter().map(shown).collect::<Vec<_>>() });
                return output::write(options.output, &document, || text(&walked));
            }
            let document = json!({ "started": started.started, "problems": started.problems });
            output::write(options.output, &document, || begun(&started))
        }
        ScrubCommand::Status => {
            let found = ask(cluster).await?;
            let nodes = json!({ "nodes": found.iter().map(shown).collect::<Vec<_>>() });
            output::write(options.output, &nodes, || text(&found))
        }
    }
}

fn shown(node: &Node) -> Value {
    let scrub = node.scrub.as_ref().map(document);
    json!({ "id": node.id, "name": node.name, "scrub": scrub })
}

async fn ask(cluster: &dial::Cluster) -> Result<Vec<Node>, Failure> {
    let asked =
        cluster.call(|mut client| async move { client.get_cluster(GetClusterRequest {}).await });
    Ok(asked.await?.nodes)
}

/// Waits until nodes have looked at all that they hold, which they began after they were as they were before.
async fn walked(
    options: &Options,
    cluster: &dial::Cluster,
    (before, started): (&[Node], &[String]),
    patience: Duration,
) -> Result<Vec<Node>, Failure> {
    let deadline = Instant::now() + patience;
    let mut progress = Progress::start(options.output);
    loop {
        let now = ask(cluster).await?;
        let done = started.iter().filter(|name| is_over(name, before, &now)).count();
        progress.show(|| {
            let verified = |nodes: &[Node]| -> u64 {
                nodes.iter().filter_map(|n| n.scrub.as_ref()).map(|s| s.blocks_verified).sum()
            };
            let looked_at = verified(&now).saturating_sub(verified(before));
            format!("{done} of {} nodes are done, {looked_at} blocks are good", started.len())
        });
        if done == started.len() {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            let text = format!(
                "{done} of {} nodes have looked at all of their blocks within {} s; it goes on \
                 ('basalt scrub status')",
                started.len(),
                patience.as_secs()
            );
            return Err(Failure::Timeout(text));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a node has come to the end of a walk since then.
fn is_over(name: &str, before: &[Node], now: &[Node]) -> bool {
    let scrub =
        |nodes: &[Node]| nodes.iter().find(|node| node.name == name).and_then(|node| node.scrub);
    // A node that was started anew meanwhile counts from nothing, and begins again by itself.
    let passes = scrub(before).map_or(0, |scrub| scrub.passes);
    scrub(now).is_some_and(|scrub| !scrub.running && scrub.passes > passes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_is_over_when_a_later_one_than_before_has_ended() {
        let node = |passes, running| {
            let scrub = Some(Scrub { passes, running, ..Scrub::default() });
            [Node { name: "n1".to_owned(), scrub, ..Node::default() }]
        };
        let before = node(3, false);
        assert!(!is_over("n1", &before, &node(3, true)), "it has begun");
        assert!(!is_over("n1", &before, &node(3, false)), "it has not begun yet");
        assert!(!is_over("n1", &before, &node(4, true)), "the next one is under way");
        assert!(is_over("n1", &before, &node(4, false)));
        assert!(!is_over("n2", &before, &node(4, false)), "it does not answer");
    }
}
