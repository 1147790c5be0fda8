//! Members that lost all they had, and come back blank.
//!
//! A member whose data directory and device are gone can not go on as what it was: it may have voted. If a node that
//! belongs to no cluster answers at its addresses, under its name and with a blank device, for a while,
//! whoever leads the metadata group has it take the member's place under a new number, as `basalt node add ADDRESS
//! --replaces NAME` does. Nothing of what is seen here is remembered beyond the process: a new leader waits
//! anew, and the record sees to it that a member is replaced once.
//!
//! A member that works is never asked: there is a link to it. One that is only switched off does not answer, and
//! one that has begun says which member it is.

use crate::bootstrap::check_awaited;
use crate::engine::Engine;
use crate::nodes;
use basalt_api::dial;
use basalt_api::v1::{AddNodeRequest, ClusterSpec, DescribeRequest, DescribeResponse, Member};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// From one look to the next, at most.
const LOOK: Duration = Duration::from_secs(5);
/// How long a node may take to describe itself.
const ASK: Duration = Duration::from_millis(1500);

/// Runs until the engine is gone.
pub(crate) async fn run(weak: Weak<Engine>) {
    let mut watch = Watch::default();
    let mut pause = LOOK;
    loop {
        sleep(pause).await;
        let Some(engine) = weak.upgrade() else { return };
        let grace = engine.options.replace_blank_after;
        if grace.is_zero() {
            return;
        }
        pause = (grace / 4).clamp(Duration::from_millis(250), LOOK);
        look(&engine, &mut watch, grace).await;
    }
}

/// Since when which member was seen to be blank.
#[derive(Default)]
struct Watch {
    since: BTreeMap<u32, Instant>,
    /// Addresses at which a blank node could not take a member's place: only once it was away is it tried again,
    /// as each try takes a number.
    in_vain: BTreeSet<String>,
}

impl Watch {
    /// Takes what was seen now, and tells whose time is over.
    fn note(&mut self, blank: &BTreeSet<u32>, now: Instant, grace: Duration) -> Vec<u32> {
        self.since.retain(|node, _| blank.contains(node));
        for node in blank {
            self.since.entry(*node).or_insert(now);
        }
        let due: Vec<u32> = self
            .since
            .iter()
            .filter(|(_, at)| now - **at >= grace)
            .map(|(node, _)| *node)
            .collect();
        self.since.retain(|node, _| !due.contains(node));
        due
    }
}

async fn look(engine: &Arc<Engine>, watch: &mut Watch, grace: Duration) {
    let spec = engine.metadata.look(|state| state.cluster().cloned());
    let Some(spec) = spec.filter(|_| engine.metadata.leads()) else {
        watch.since.clear();
        return;
    };
    let mut blank = blank_members(engine, &spec).await;
    watch.in_vain.retain(|address| blank.values().any(|blank| blank == address));
    blank.retain(|_, address| !watch.in_vain.contains(address));
    let blank: BTreeSet<u32> = blank.into_keys().collect();
    for node in &blank {
        if !watch.since.contains_key(node) {
            let after = grace.as_secs();
            tracing::warn!(node, after, "answers as a blank node, and will be replaced by it");
        }
    }
    for node in watch.note(&blank, Instant::now(), grace) {
        let Some(member) = spec.members.iter().find(|member| member.node == node) else { continue };
        let (address, replaces) = (member.grpc_address.clone(), node.to_string());
        match nodes::admit(engine, AddNodeRequest { address: address.clone(), replaces }).await {
            Ok(new) => tracing::warn!(
                name = %member.name,
                node,
                by = new.node,
                "came back blank, and is replaced by what answers in its place"
            ),
            Err(status) => {
                let why = dial::plain(&status);
                tracing::error!(name = %member.name, node, "came back blank, and can not be replaced: {why}");
                watch.in_vain.insert(address);
            }
        }
    }
}

/// The members in whose place a blank node answers, and where.
async fn blank_members(engine: &Arc<Engine>, spec: &ClusterSpec) -> BTreeMap<u32, String> {
    let Ok(status) = engine.status().await else { return BTreeMap::new() };
    let linked: BTreeSet<u32> =
        status.links.iter().filter(|link| link.up).map(|link| link.to.node.0).collect();
    let mut asked = JoinSet::new();
    for member in spec.members.iter().cloned() {
        let works = member.node == engine.node.0 || linked.contains(&member.node);
        if works || member.leaving {
            continue;
        }
        let cluster = spec.id;
        asked.spawn(async move {
            let answer = timeout(ASK, async {
                dial::peer(&member.grpc_address, ASK)?.describe(DescribeRequest {}).await
            });
            let described = answer.await.ok()?.ok()?.into_inner();
            let blank = comes_back_blank(&member, &described, cluster);
            blank.then_some((member.node, member.grpc_address))
        });
    }
    let mut blank = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        blank.extend(answer.ok().flatten());
    }
    blank
}

/// Whether what a node says of itself shows that it is a member's machine without what the member held.
fn comes_back_blank(member: &Member, described: &DescribeResponse, cluster: u64) -> bool {
    let same = described.name == member.name
        && described.grpc_address == member.grpc_address
        && described.data_address == member.data_address;
    let belongs = described.cluster.is_some() || described.node != 0 || described.begun;
    let free = check_awaited(described.only_cluster, cluster).is_ok();
    same && !belongs && described.blank && free && described.version == env!("CARGO_PKG_VERSION")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Member {
        Member {
            node: 3,
            name: "c".to_owned(),
            grpc_address: "10.0.0.3:7100".to_owned(),
            data_address: "10.0.0.3:7200".to_owned(),
            ..Member::default()
        }
    }

    fn blank() -> DescribeResponse {
        let Member { name, grpc_address, data_address, .. } = member();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        DescribeResponse {
            name,
            grpc_address,
            data_address,
            version,
            blank: true,
            ..DescribeResponse::default()
        }
    }

    #[test]
    fn only_a_blank_node_in_the_very_place_of_a_member_comes_back() {
        let judge = |described: DescribeResponse| comes_back_blank(&member(), &described, 9);
        assert!(judge(blank()));
        assert!(judge(DescribeResponse { only_cluster: 9, ..blank() }));
        let text = str::to_owned;
        for other in [
            DescribeResponse { only_cluster: 8, ..blank() },
            DescribeResponse { blank: false, ..blank() },
            DescribeResponse { name: text("d"), ..blank() },
            DescribeResponse { grpc_address: text("10.0.0.4:7100"), ..blank() },
            DescribeResponse { data_address: text("10.0.0.3:7201"), ..blank() },
            DescribeResponse { version: text("0.0.1"), ..blank() },
            DescribeResponse { node: 3, ..blank() },
            DescribeResponse { begun: true, ..blank() },
            // Prepared for a cluster that is being made, or a member of this one that did not start.
            DescribeResponse {
                cluster: Some(ClusterSpec { id: 9, ..Default::default() }),
                ..blank()
            },
        ] {
            assert!(!judge(other.clone()), "{other:?}");
        }
    }

    #[test]
    fn it_must_be_seen_for_the_whole_time() {
        let (mut watch, start, grace) = (Watch::default(), Instant::now(), Duration::from_secs(60));
        let at = |seconds| start + Duration::from_secs(seconds);
        let (seen, none) = (BTreeSet::from([3]), BTreeSet::new());
        assert!(watch.note(&seen, at(0), grace).is_empty());
        assert!(watch.note(&seen, at(59), grace).is_empty());
        // It was itself for a moment, or did not answer: the time begins anew.
        assert!(watch.note(&none, at(60), grace).is_empty());
        assert!(watch.note(&seen, at(61), grace).is_empty());
        assert!(watch.note(&seen, at(120), grace).is_empty());
        assert_eq!(watch.note(&seen, at(121), grace), [3]);
        // And anew if that led to nothing.
        assert!(watch.note(&seen, at(122), grace).is_empty());
        assert_eq!(watch.note(&seen, at(182), grace), [3]);
    }
}
