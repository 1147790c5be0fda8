//! Stops that are planned: a node that is told to stop says so to the others, so that nobody takes it for dead, and
//! says so when it is back. And what becomes of nodes that do not come back, in words.

use crate::engine::Engine;
use crate::reconcile::done;
use basalt_api::v1::{ClusterSpec, Member, Node};
use basalt_meta::liveness::is_lost;
use basalt_meta::{Op, PlanStop, healing, stops};
use basalt_wire::ids::GroupId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the others may take to hear of it. Whoever stops without being heard is judged by its silence.
const SAY: Duration = Duration::from_secs(1);

/// Says to the others that this node stops and will be back.
pub(crate) async fn announce(engine: &Arc<Engine>) {
    let leader = engine.metadata.leader(GroupId::METADATA);
    if leader.is_none_or(|leader| leader.node.is_none()) {
        return tracing::info!("nobody leads the metadata group: nobody is told of the stop");
    }
    let op = Op::PlanStop(PlanStop { node: engine.node.0, back: false });
    match timeout(SAY, engine.metadata.change("", op)).await {
        Ok(result) => drop(done(result, "telling that this node stops")),
        Err(_) => tracing::info!("the others could not be told of the stop in time"),
    }
}

/// Says that this node is back. Entries up to `began` were committed before this process came up: a later one is of
/// its own stop.
pub(crate) async fn back(engine: &Arc<Engine>, began: u64) -> bool {
    let stopped = engine.metadata.look(|state| {
        let members = state.cluster().into_iter().flat_map(|spec| &spec.members);
        let own = members.into_iter().find(|m| m.node == engine.node.0);
        own.is_some_and(|m| stops::is_stopping(m) && m.stopping_index <= began)
    });
    if !stopped {
        return true;
    }
    let op = Op::PlanStop(PlanStop { node: engine.node.0, back: true });
    done(engine.metadata.change("", op).await, "telling that this node is back")
}

/// When the groups of a member are placed on other nodes if it stays as it is, milliseconds since 1970; 0: not at
/// all.
pub(crate) fn rebuild_at_ms(spec: &ClusterSpec, member: &Member, after: Duration) -> i64 {
    let waits = is_lost(member) && !member.evacuated && !member.leaving && !member.draining;
    if !waits || after.is_zero() || !healing::may_evacuate(spec, member.node) {
        return 0;
    }
    member.state_since_ms.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX))
}

/// What is to become of nodes that are away, in words that follow a sentence.
pub(crate) fn outlook(nodes: &[Node], now_ms: i64) -> String {
    let mut text = String::new();
    for node in nodes {
        if node.stopping_since_ms != 0 && !node.reachable {
            text.push_str(&format!("; '{}' was stopped as planned, and is to be back", node.name));
        }
        if node.rebuild_at_ms == 0 {
            continue;
        }
        let name = &node.name;
        let left = node.rebuild_at_ms.saturating_sub(now_ms).max(0) / 1000;
        text.push_str(&match left {
            0 => format!("; the groups of '{name}' are placed on other nodes at any moment"),
            left => format!(
                "; the groups of '{name}' are placed on other nodes in {}, if it stays away",
                spoken(left)
            ),
        });
    }
    text
}

/// Seconds for people.
fn spoken(seconds: i64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::{MemberState, Voters};

    #[test]
    fn a_rebuild_has_a_time_only_if_there_will_be_one() {
        let member = |node| Member { node, name: format!("n{node}"), ..Member::default() };
        let mut spec = ClusterSpec {
            group_count: 1,
            groups: vec![Voters { nodes: vec![1, 2, 3] }],
            members: (1..=4).map(member).collect(),
            ..ClusterSpec::default()
        };
        let after = Duration::from_secs(600);
        let at = |spec: &ClusterSpec| rebuild_at_ms(spec, &spec.members[2], after);
        assert_eq!(at(&spec), 0, "it is up");
        spec.members[2].state = MemberState::Down.into();
        spec.members[2].state_since_ms = 1_000;
        assert_eq!(at(&spec), 601_000);
        assert_eq!(rebuild_at_ms(&spec, &spec.members[2], Duration::ZERO), 0, "never");
        spec.members[2].evacuated = true;
        assert_eq!(at(&spec), 0, "it has begun");
        spec.members[2].evacuated = false;
        spec.members[3].state = MemberState::Suspect.into();
        assert_eq!(at(&spec), 0, "two nodes can not hold three replicas");
    }

    #[test]
    fn what_is_to_come_is_said() {
        let node = |name: &str| Node { name: name.to_owned(), ..Node::default() };
        assert_eq!(outlook(&[node("a")], 0), "");
        let lost = Node { rebuild_at_ms: 580_000, ..node("a") };
        assert!(
            outlook(std::slice::from_ref(&lost), 0)
                .contains("'a' are placed on other nodes in 9 min 40 s")
        );
        assert!(outlook(&[lost], 900_000).ends_with("at any moment"));
        let stopped = Node { stopping_since_ms: 5, ..node("b") };
        assert!(outlook(&[stopped], 0).contains("'b' was stopped as planned"));
        assert_eq!((&*spoken(59), &*spoken(7_260)), ("59 s", "2 h 1 min"));
    }
}
