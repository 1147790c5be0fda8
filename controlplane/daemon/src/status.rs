//! What a node says about itself, and what all nodes together say about the cluster.

use crate::daemon::Daemon;
use crate::engine::Engine;
use basalt_api::dial;
use basalt_api::v1::{
    Cluster, ClusterSpec, GetReportRequest, Group, Health, LogCounts, Member, Node, NodeReport,
    Placement, Replica, Resync, Score, Scrub, Space, VolumeFlattening, VolumeSpace,
};
use basalt_core::score::{ScoreStatus, WAY_FREE};
use basalt_core::shard::{GroupRole, Phase, ScrubStatus, ShardStatus};
use basalt_meta::layout;
use basalt_node::{HostState, ReactorStatus};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::ids::{Address, GroupId, VolumeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// How long a node may take to report before it counts as not reachable.
const REPORT: Duration = Duration::from_millis(1500);
/// The metadata group in reports.
pub(crate) const METADATA: &str = "metadata";

/// What this node says about itself.
///
/// # Errors
/// If it waits for bootstrap, or its reactor does not answer.
pub async fn report(daemon: &Daemon) -> Result<NodeReport, Status> {
    let engine = daemon.engine()?;
    let status = engine.status().await.map_err(|e| Status::unavailable(format!("{e:#}")))?;
    let own = engine.spec().members.into_iter().find(|member| member.node == engine.node.0);
    let mut node = node_of(&own.unwrap_or_default());
    let replicas: Vec<Replica> = status.shard().map(replicas_of).unwrap_or_default();
    node.reachable = true;
    node.state = state_of(&status);
    node.version = env!("CARGO_PKG_VERSION").to_owned();
    node.uptime_seconds = daemon.began.elapsed().as_secs();
    node.boots = daemon.boots;
    node.links = links_of(&engine, &status);
    node.leaderships = replicas.iter().filter(|replica| replica.role == "leader").count() as u32;
    node.serving = engine.door.serving();
    node.not_serving = engine.door.not_serving();
    if let Some(shard) = status.shard() {
        let segment = daemon.options.segment_size;
        node.device_bytes = u64::from(shard.segments_total) * segment;
        node.free_bytes = u64::from(shard.segments_free) * segment;
        node.checkpoint = shard.checkpoint;
        node.space = Some(space_of(shard, &engine));
        node.log = Some(log_of(shard));
        node.resync = Some(resync_of(shard));
        node.scores = shard.scores.iter().map(score_of).collect();
        node.scrub = Some(scrub_of(&shard.scrub));
        if let Some(opened) = &shard.open_report {
            node.replayed_bytes = opened.bytes;
            node.opened_from_checkpoint = opened.checkpoint.unwrap_or(0);
            node.opening_milliseconds = shard.opened_in.as_millis() as u64;
        }
    }
    let metadata_applied = engine.metadata.look(|state| state.applied());
    let flattening = engine.flattening.list().into_iter();
    let flattening =
        flattening.map(|(volume, of)| VolumeFlattening { volume, progress: Some(of) }).collect();
    let group = status
        .shard()
        .and_then(|shard| shard.groups.iter().find(|status| status.group == GroupId::METADATA));
    let (metadata_saved, metadata_replayed) = engine.metadata.kept();
    Ok(NodeReport {
        node: Some(node),
        replicas,
        metadata_applied,
        flattening,
        metadata_saved,
        metadata_replayed,
        metadata_first: group.map_or(0, |status| status.first.0),
    })
}

/// The cluster as this node and those that it reaches see it.
///
/// # Errors
/// Never for a cluster in a bad state: that is what is reported.
pub async fn cluster(daemon: &Arc<Daemon>) -> Result<Cluster, Status> {
    let Ok(engine) = daemon.engine() else { return Ok(unbootstrapped(daemon)) };
    let spec = engine.spec();
    let mut asked = JoinSet::new();
    for (at, member) in spec.members.iter().cloned().enumerate() {
        let daemon = daemon.clone();
        let here = member.node == engine.node.0;
        asked.spawn(async move {
            let report = if here { report(&daemon).await } else { ask(&member).await };
            (at, report)
        });
    }
    let mut reports: Vec<Option<NodeReport>> = vec![None; spec.members.len()];
    let mut nodes: Vec<Node> = spec.members.iter().map(node_of).collect();
    while let Some(answer) = asked.join_next().await {
        let (at, report) = answer.map_err(|e| Status::internal(e.to_string()))?;
        match report {
            Ok(report) => {
                if let Some(node) = &report.node {
                    nodes[at] = node.clone();
                }
                reports[at] = Some(report);
            }
            Err(status) => nodes[at].problem = dial::plain(&status),
        }
    }
    let reports: Vec<NodeReport> = reports.into_iter().flatten().collect();
    let groups: Vec<Group> = (0..spec.group_count)
        .chain([layout::METADATA_GROUP])
        .map(|group| group_of(group, &layout::placement_of(&spec, group), &nodes, &reports))
        .collect();
    nodes
        .iter_mut()
        .zip(&spec.members)
        .for_each(|(node, member)| place(node, member, &spec, &reports));
    for (node, member) in nodes.iter_mut().zip(&spec.members) {
        let after = engine.options.healing.rebuild_after;
        node.rebuild_at_ms = crate::stops::rebuild_at_ms(&spec, member, after);
    }
    let (health, health_sentence) = judge(&nodes, &groups, &reports);
    let shortage = crate::placement::shortage(&spec, &reports);
    let outlook = crate::stops::outlook(&nodes, crate::metadata::now_ms());
    let health_sentence = format!("{health_sentence}{}{shortage}{outlook}", movement(&groups));
    Ok(Cluster {
        id: format!("{:016x}", spec.id),
        nodes,
        groups,
        health: health.into(),
        health_sentence,
        volume_count: engine.metadata.look(|state| state.volume_count() as u64),
        failure_domain: spec.failure_domain,
    })
}

/// What another node says about itself.
///
/// # Errors
/// If it does not answer in time.
pub(crate) async fn ask(member: &Member) -> Result<NodeReport, Status> {
    let mut client = dial::peer(&member.grpc_address, REPORT)?;
    let report = client.get_report(GetReportRequest {}).await?.into_inner();
    match report.node.as_ref().map(|node| node.id) {
        Some(id) if id != member.node => Err(Status::unavailable(format!(
            "at {} node {id} answers, in the place of this one",
            member.grpc_address
        ))),
        _ => Ok(report),
    }
}

fn unbootstrapped(daemon: &Daemon) -> Cluster {
    let own = crate::bootstrap::own_member(&daemon.options, 0).unwrap_or_default();
    let state = "waiting for bootstrap".to_owned();
    let node = Node { reachable: true, state, ..node_of(&own) };
    Cluster {
        nodes: vec![node],
        health: Health::Unbootstrapped.into(),
        health_sentence: format!(
            "the node '{}' belongs to no cluster yet; run 'basalt cluster bootstrap --node ...' with \
             the addresses of all nodes",
            daemon.name()
        ),
        ..Cluster::default()
    }
}

/// What the record says of a member.
pub fn node_of(member: &Member) -> Node {
    Node {
        id: member.node,
        name: member.name.clone(),
        grpc_address: member.grpc_address.clone(),
        data_address: member.data_address.clone(),
        nbd_address: member.nbd_address.clone(),
        ..Node::default()
    }
}

fn state_of(status: &ReactorStatus) -> String {
    let Some(host) = &status.shard else { return "without a device".to_owned() };
    match (&host.state, &host.shard) {
        (HostState::Failed(reason), _) => format!("failed: {reason}"),
        (HostState::Reopening { reason, .. }, _) => format!("suspect: {reason}"),
        (HostState::Open, None) => "opening".to_owned(),
        (HostState::Open, Some(shard)) => match &shard.phase {
            Phase::Opening => "opening".to_owned(),
            Phase::Running => "running".to_owned(),
            Phase::Draining => "draining".to_owned(),
            Phase::Suspect(reason) => format!("suspect: {reason}"),
            Phase::Failed(reason) => format!("failed: {reason}"),
        },
    }
}

/// Why a node's device does not work, if it was given up.
pub(crate) fn failed_of(status: &ReactorStatus) -> Option<String> {
    let host = status.shard.as_ref()?;
    match (&host.state, &host.shard) {
        (HostState::Failed(reason), _) => Some(reason.clone()),
        (HostState::Open, Some(ShardStatus { phase: Phase::Failed(reason), .. })) => {
            Some(reason.clone())
        }
        _ => None,
    }
}

fn links_of(engine: &Engine, status: &ReactorStatus) -> Vec<String> {
    let up: BTreeSet<u32> = status
        .links
        .iter()
        .filter(|link| link.up && link.to.node != engine.node)
        .map(|link| link.to.node.0)
        .collect();
    let members = engine.spec().members;
    members.into_iter().filter(|member| up.contains(&member.node)).map(|m| m.name).collect()
}

/// What the device holds, with the names of the volumes that are known here.
fn space_of(shard: &ShardStatus, engine: &Engine) -> Space {
    let (space, cleaner) = (&shard.space, &shard.cleaner);
    let numbers = || shard.space_by_volume.keys().map(|id| id.0);
    let names: HashMap<u64, String> = engine.metadata.look(|state| {
        let named = numbers().filter_map(|number| state.volume_by_number(number));
        named.map(|v| (v.number, format!("volumes/{}", v.id))).collect()
    });
    let volume = |(id, of): (&VolumeId, &basalt_core::shard::VolumeSpace)| VolumeSpace {
        id: id.0,
        name: names.get(&id.0).cloned().unwrap_or_default(),
        own_bytes: of.own,
        snapshot_bytes: of.snapshots,
    };
    Space {
        device_bytes: space.device,
        superblock_bytes: space.superblock,
        live_bytes: space.live,
        log_bytes: space.log,
        garbage_bytes: space.garbage,
        free_bytes: space.free,
        reserve_bytes: space.reserve,
        unused_bytes: space.unused,
        capacity_bytes: space.capacity,
        volumes: shard.space_by_volume.iter().map(volume).collect(),
        blocks_moved: cleaner.moved,
        segments_cleaned: cleaner.victims,
        blocks_bad: cleaner.bad,
        segments_released: cleaner.released,
        index_bytes: shard.index_bytes,
        index_pages: shard.index.resident,
        index_pages_cold: shard.index.cold,
        index_pages_loaded: shard.index.loaded,
        index_memory_bytes: shard.index.limit,
    }
}

fn log_of(shard: &ShardStatus) -> LogCounts {
    let counts = shard.log;
    LogCounts {
        batches: counts.batches,
        records: counts.records,
        payload_bytes: counts.payload_blocks * BLOCK_BYTES as u64,
        bytes: counts.bytes,
    }
}

fn resync_of(shard: &ShardStatus) -> Resync {
    let counts = shard.moved;
    Resync {
        pages_offered: counts.pages_offered,
        bytes_sent: counts.blocks_sent * BLOCK_BYTES as u64,
        bytes_taken: counts.blocks_taken * BLOCK_BYTES as u64,
        replicas_restored: counts.restored,
    }
}

fn scrub_of(status: &ScrubStatus) -> Scrub {
    let ScrubStatus { scrub, repairs, .. } = status;
    let last = status.last.as_ref();
    Scrub {
        passes: scrub.passes,
        running: status.position.is_some() || status.surveying,
        blocks_verified: scrub.verified,
        blocks_bad: scrub.bad,
        blocks_repaired: repairs.repaired,
        blocks_overwritten: repairs.overwritten,
        blocks_waiting: repairs.waiting,
        blocks_lost: repairs.lost,
        blocks_given: status.given,
        last_pass_milliseconds: last.map_or(0, |pass| pass.took.as_millis() as u64),
        last_pass_verified: last.map_or(0, |pass| pass.verified),
        last_pass_bad: last.map_or(0, |pass| pass.bad),
        differing_pages: status.differing_pages,
        mended_pages: status.mended.pages,
        mended_blocks: status.mended.blocks,
        undecided_pages: status.mended.undecided,
        records_verified: status.survey.records,
        records_bad: status.survey.records_bad,
        headers_verified: status.survey.headers,
        headers_bad: status.survey.headers_bad,
        segments_emptied: status.emptied,
    }
}

/// The replicas of a shard.
pub(crate) fn replicas_of(shard: &ShardStatus) -> Vec<Replica> {
    let role = |role: &GroupRole| match role {
        GroupRole::Follower => "follower",
        GroupRole::Candidate => "candidate",
        GroupRole::Leader => "leader",
        GroupRole::Impaired => IMPAIRED,
        GroupRole::Quarantined => "quarantined",
    };
    let groups = shard.groups.iter().map(|group| Replica {
        group: match group.group {
            GroupId::METADATA => METADATA.to_owned(),
            GroupId(number) => number.to_string(),
        },
        leader: group.leader.map_or(0, |node| node.0),
        term: group.term.0,
        commit: group.commit.0,
        applied: group.applied.0,
        last: group.last.0,
        role: role(&group.role).to_owned(),
        voters: nodes_of(&group.members.voters),
        outgoing: nodes_of(&group.members.outgoing),
        learners: nodes_of(&group.members.learners),
        members_durable: group.members_durable,
        live_bytes: group.live_blocks * BLOCK_BYTES as u64,
    });
    groups.collect()
}

fn nodes_of(members: &[Address]) -> Vec<u32> {
    members.iter().map(|address| address.node.0).collect()
}

fn score_of(score: &ScoreStatus) -> Score {
    let micros = |time: Option<Duration>| time.map_or(0, |time| time.as_micros().max(1) as u64);
    Score {
        node: score.node.0,
        write_microseconds: micros(score.write),
        read_microseconds: micros(score.read),
        way_microseconds: micros(score.way),
        slow: score.slow_for.is_some(),
        slow_seconds: score.slow_for.map_or(0, |time| time.as_secs()),
        write_best_microseconds: micros(score.best_write),
        read_best_microseconds: micros(score.best_read),
    }
}

/// What a replica is called that lost something that it had acknowledged.
/// The role of a replica that takes part in nothing, as it lost what it had acknowledged.
const IMPAIRED: &str = "impaired";

/// What is said of a node whose device lost something, in words.
fn impairment(report: &NodeReport) -> Option<String> {
    let count = report.replicas.iter().filter(|replica| replica.role == IMPAIRED).count();
    let name = &report.node.as_ref()?.name;
    (count > 0).then(|| {
        format!(
            "the device of '{name}' lost what it had acknowledged; {count} of its replicas vote no more \
             before they hold it again"
        )
    })
}

/// Microseconds by which a device is slower than another, if it is worth a word.
const NOTABLE_MICROS: u64 = 1_000;

/// What most of the nodes say of one that they hold for slow, in words.
fn slowness(node: &Node, nodes: &[Node]) -> Option<String> {
    let of = |at: &Node| at.scores.iter().find(|score| score.node == node.id).copied();
    let views: Vec<Score> = nodes.iter().filter(|n| works(n)).filter_map(of).collect();
    let slow: Vec<&Score> = views.iter().filter(|view| view.slow).collect();
    if 2 * slow.len() <= views.len() {
        return None;
    }
    // Only what is so now is said: a verdict takes a little longer to end than what it is about.
    let seconds = slow.iter().map(|view| view.slow_seconds).max().unwrap_or(0);
    let name = &node.name;
    let write = of(node).map_or(0, |own| own.write_microseconds);
    let others = nodes.iter().filter(|other| other.id != node.id);
    let own_of = |n: &Node| n.scores.iter().find(|s| s.node == n.id).map(|s| s.write_microseconds);
    let best = others.filter_map(own_of).filter(|micros| *micros > 0).min().unwrap_or(0);
    if write > 2 * best && write >= best + NOTABLE_MICROS {
        let (write, best) = (write as f64 / 1e3, best as f64 / 1e3);
        return Some(format!(
            "the device of '{name}' has been slow for {seconds} s: a log write takes {write:.1} ms \
             there and {best:.1} ms elsewhere"
        ));
    }
    let way = views.iter().map(|view| view.way_microseconds).filter(|micros| *micros > 0).min();
    let way = way.filter(|micros| u128::from(*micros) > WAY_FREE.as_micros())? as f64 / 1e3;
    Some(format!(
        "the links of '{name}' have been slow for {seconds} s: it takes {way:.1} ms to reach it and \
         come back"
    ))
}

/// What a group comes to. While it moves its voters are those that have a say now.
fn group_of(group: u32, placement: &Placement, nodes: &[Node], reports: &[NodeReport]) -> Group {
    let id = id_of(group);
    let reachable = |node: u32| nodes.iter().any(|n| n.id == node && works(n));
    let views = views_of(&id, reports);
    let impaired = |node: u32| views.iter().any(|(at, r)| *at == node && r.role == IMPAIRED);
    let votes = |node: u32| reachable(node) && !impaired(node);
    let newest = views.iter().copied().max_by_key(|(_, r)| (r.term, r.leader != 0)).map(|(_, r)| r);
    let leader = newest.map_or(0, |replica| replica.leader);
    let voters = match newest {
        Some(replica) if placement.moving && !replica.voters.is_empty() => replica.voters.clone(),
        _ => placement.voters.clone(),
    };
    let of_voters = views.iter().filter(|(node, _)| voters.contains(node)).map(|(_, r)| r);
    let commit = of_voters.clone().map(|replica| replica.commit).max().unwrap_or(0);
    let applied = of_voters.map(|replica| replica.applied).min().unwrap_or(0);
    Group {
        id,
        // A leader that nobody reaches leads nothing.
        leader: if reachable(leader) { leader } else { 0 },
        term: newest.map_or(0, |replica| replica.term),
        commit: newest.map_or(0, |replica| replica.commit),
        voters_reachable: voters.iter().filter(|node| votes(**node)).count() as u32,
        voters,
        entries_behind: commit.saturating_sub(applied),
        former: placement.former.clone(),
        learners: placement.learners.clone(),
        moving: placement.moving,
    }
}

fn id_of(group: u32) -> String {
    if group == layout::METADATA_GROUP { METADATA.to_owned() } else { group.to_string() }
}

/// What nodes say of a group, by node.
fn views_of<'a>(id: &str, reports: &'a [NodeReport]) -> Vec<(u32, &'a Replica)> {
    let views = reports.iter().flat_map(|report| {
        let node = report.node.as_ref().map_or(0, |node| node.id);
        report.replicas.iter().map(move |replica| (node, replica))
    });
    views.filter(|(_, replica)| replica.group == id).collect()
}

/// Says of a node what the record says: what is to become of it, and how many volume groups are on it, come to
/// it and leave it.
fn place(node: &mut Node, member: &Member, spec: &ClusterSpec, reports: &[NodeReport]) {
    (node.draining, node.leaving) = (member.draining, member.leaving);
    crate::liveness::show(node, member);
    for group in 0..spec.group_count {
        let placement = layout::placement_of(spec, group);
        let (placed, former) =
            (placement.voters.contains(&node.id), placement.former.contains(&node.id));
        let views = views_of(&id_of(group), reports);
        let leader = views.iter().find(|(_, replica)| replica.role == "leader");
        let votes = leader.is_some_and(|(_, replica)| replica.voters.contains(&node.id));
        node.groups_placed += u32::from(placed);
        node.groups_coming += u32::from(placed && placement.moving && !votes);
        node.groups_going += u32::from(former || (placed && !layout::is_active(member)));
    }
}

/// How many groups move, in words that follow a sentence.
fn movement(groups: &[Group]) -> String {
    match groups.iter().filter(|group| group.moving).count() {
        0 => String::new(),
        moving => format!("; {moving} of {} groups move", groups.len()),
    }
}

/// Whether a node answers and its shard is open.
pub(crate) fn works(node: &Node) -> bool {
    node.reachable && (node.state == "running" || node.state == "draining")
}

fn judge(nodes: &[Node], groups: &[Group], reports: &[NodeReport]) -> (Health, String) {
    let missing: Vec<String> = nodes
        .iter()
        .filter(|node| !works(node))
        .map(|node| match (node.reachable, node.leaving) {
            (false, false) => format!("'{}' does not answer", node.name),
            (false, true) => format!("'{}', which leaves, does not answer", node.name),
            (true, _) => format!("'{}' is {}", node.name, node.state),
        })
        .collect();
    let missing = missing.join(", ");
    let majority = |group: &&Group| (group.voters_reachable as usize) <= group.voters.len() / 2;
    let lost = groups.iter().filter(majority).count();
    if lost > 0 {
        let text = format!(
            "{lost} of {} groups have no majority: I/O that needs them waits until nodes are back \
             ({missing})",
            groups.len()
        );
        return (Health::Unavailable, text);
    }
    let leaderless = groups.iter().filter(|group| group.leader == 0).count();
    if leaderless > 0 {
        let why = if missing.is_empty() { String::new() } else { format!(" ({missing})") };
        let text = format!("{leaderless} of {} groups are electing a leader{why}", groups.len());
        return (Health::Unavailable, text);
    }
    if !missing.is_empty() {
        let text =
            format!("volumes work, but with less redundancy than they should have: {missing}");
        return (Health::Degraded, text);
    }
    let unlinked: Vec<&str> = nodes
        .iter()
        .filter(|node| node.links.len() + 1 < nodes.len())
        .map(|node| node.name.as_str())
        .collect();
    if !unlinked.is_empty() {
        let text = format!("the data path of {} does not reach every node", unlinked.join(", "));
        return (Health::Degraded, text);
    }
    let impaired: Vec<String> = reports.iter().filter_map(impairment).collect();
    if !impaired.is_empty() {
        let text = "volumes work, but with less redundancy than they should have";
        return (Health::Degraded, format!("{text}: {}", impaired.join(", ")));
    }
    let slow: Vec<String> = nodes.iter().filter_map(|node| slowness(node, nodes)).collect();
    if !slow.is_empty() {
        return (Health::Degraded, format!("volumes work, but {}", slow.join(", ")));
    }
    let unserved: Vec<String> = nodes
        .iter()
        .flat_map(|node| node.not_serving.iter().map(move |(volume, why)| (node, volume, why)))
        .map(|(node, volume, why)| {
            format!("'{}' does not serve '{volume}' and tries again ({why})", node.name)
        })
        .collect();
    if !unserved.is_empty() {
        return (Health::Degraded, unserved.join(", "));
    }
    (Health::Ok, format!("all {} nodes and {} groups work", nodes.len(), groups.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32, reachable: bool) -> Node {
        let links = (1..=3).filter(|n| *n != id).map(|n| format!("n{n}")).collect();
        let (name, state) = (format!("n{id}"), "running".to_owned());
        Node { id, name, reachable, state, links, ..Node::default() }
    }

    fn at(voters: &[u32]) -> Placement {
        Placement { voters: voters.to_vec(), ..Placement::default() }
    }

    fn view(from: u32, leader: u32, term: u64) -> NodeReport {
        let replica = Replica { group: "0".to_owned(), leader, term, ..Replica::default() };
        let node = Some(node(from, true));
        NodeReport { node, replicas: vec![replica], ..NodeReport::default() }
    }

    #[test]
    fn health_says_what_is_wrong() {
        let all = |up: [bool; 3]| -> Vec<Node> { (1..).zip(up).map(|(n, u)| node(n, u)).collect() };
        let check = |up: [bool; 3], leader: u32| {
            let reports = (1..).zip(up).filter(|(_, u)| *u).map(|(n, _)| view(n, leader, 2));
            let reports: Vec<_> = reports.collect();
            let nodes = all(up);
            let groups = vec![group_of(0, &at(&[1, 2, 3]), &nodes, &reports)];
            judge(&nodes, &groups, &[])
        };
        assert_eq!(check([true; 3], 1).0, Health::Ok);
        let (health, text) = check([true, true, false], 1);
        assert_eq!(health, Health::Degraded);
        assert!(text.contains("'n3' does not answer"), "{text}");
        assert_eq!(
            check([true, true, false], 3).0,
            Health::Unavailable,
            "the leader is the dead one"
        );
        assert_eq!(check([true, false, false], 1).0, Health::Unavailable);
    }

    #[test]
    fn a_device_that_lost_something_is_named_and_its_replicas_do_not_count() {
        let nodes: Vec<Node> = (1..=3).map(|n| node(n, true)).collect();
        let mut reports: Vec<_> = (1..=3).map(|n| view(n, 1, 2)).collect();
        let group = |reports: &[NodeReport]| group_of(0, &at(&[1, 2, 3]), &nodes, reports);
        assert_eq!(group(&reports).voters_reachable, 3);
        reports[2].replicas[0].role = IMPAIRED.to_owned();
        assert_eq!(group(&reports).voters_reachable, 2);
        let (health, text) = judge(&nodes, &[group(&reports)], &reports);
        assert_eq!(health, Health::Degraded);
        assert!(text.contains("the device of 'n3' lost") && text.contains("1 of its"), "{text}");
        reports[1].replicas[0].role = IMPAIRED.to_owned();
        assert_eq!(judge(&nodes, &[group(&reports)], &reports).0, Health::Unavailable);
    }

    #[test]
    fn a_volume_that_is_not_served_is_named() {
        let mut nodes: Vec<Node> = (1..=3).map(|n| node(n, true)).collect();
        nodes[1].not_serving.insert("demo".to_owned(), "the server is stopping".to_owned());
        let (health, text) = judge(&nodes, &[], &[]);
        assert_eq!(health, Health::Degraded);
        assert!(text.contains("'n2' does not serve 'demo'") && text.contains("stopping"), "{text}");
    }

    #[test]
    fn a_slow_device_and_slow_links_are_named() {
        let mut nodes: Vec<Node> = (1..=3).map(|n| node(n, true)).collect();
        let writes = [7_000, 70, 60];
        for n in &mut nodes {
            n.scores = (1..=3)
                .zip(writes)
                .map(|(node, write_microseconds)| {
                    let (slow, slow_seconds) = (node == 1, if node == 1 { 42 } else { 0 });
                    let way_microseconds = if node == n.id { 0 } else { 30_000 };
                    let read_microseconds = 0;
                    Score {
                        node,
                        write_microseconds,
                        read_microseconds,
                        way_microseconds,
                        slow,
                        slow_seconds,
                        ..Score::default()
                    }
                })
                .collect();
        }
        let (health, text) = judge(&nodes, &[], &[]);
        assert_eq!(health, Health::Degraded);
        assert!(text.contains("the device of 'n1' has been slow for 42 s"), "{text}");
        assert!(text.contains("7.0 ms there and 0.1 ms elsewhere"), "{text}");
        for n in &mut nodes {
            n.scores[0].write_microseconds = 80;
        }
        let (_, text) = judge(&nodes, &[], &[]);
        assert!(text.contains("the links of 'n1'") && text.contains("30.0 ms"), "{text}");
        // What is over is not said, however long the verdict stays.
        for n in &mut nodes {
            n.scores.iter_mut().for_each(|score| score.way_microseconds = 200);
        }
        assert_eq!(judge(&nodes, &[], &[]).0, Health::Ok);
        for n in &mut nodes {
            n.scores.iter_mut().for_each(|score| score.way_microseconds = 30_000);
        }
        // One node alone is not believed.
        nodes[1].scores[0].slow = false;
        nodes[2].scores[0].slow = false;
        assert_eq!(judge(&nodes, &[], &[]).0, Health::Ok);
    }

    #[test]
    fn the_newest_term_tells_the_leader() {
        let nodes: Vec<Node> = (1..=3).map(|n| node(n, true)).collect();
        let reports = vec![view(1, 1, 2), view(2, 3, 4), view(3, 3, 4)];
        assert_eq!(group_of(0, &at(&[1, 2, 3]), &nodes, &reports).leader, 3);
    }

    #[test]
    fn a_group_that_moves_is_judged_by_who_has_a_say() {
        let nodes: Vec<Node> = (1..=2).map(|n| node(n, n == 1)).collect();
        let placement = Placement { moving: true, ..at(&[1, 2]) };
        let mut reports = vec![view(1, 1, 2)];
        reports[0].replicas[0].voters = vec![1];
        reports[0].replicas[0].role = "leader".to_owned();
        let group = group_of(0, &placement, &nodes, &reports);
        assert_eq!((&group.voters, group.voters_reachable, group.moving), (&vec![1], 1, true));
        let (health, _) = judge(&nodes, std::slice::from_ref(&group), &reports);
        assert_eq!(health, Health::Degraded, "the node that it moves to is not there");
        assert_eq!(movement(&[group, Group::default()]), "; 1 of 2 groups move");
        assert_eq!(movement(&[Group::default()]), "");
        let settled = Placement { moving: false, ..placement };
        assert_eq!(group_of(0, &settled, &nodes, &reports).voters, [1, 2]);
    }

    #[test]
    fn a_node_tells_what_comes_and_goes() {
        let member = |node: u32| Member { node, draining: node == 2, ..Member::default() };
        let moving = |voters: &[u32], former: u32| Placement {
            former: vec![former],
            moving: true,
            ..at(voters)
        };
        let spec = ClusterSpec {
            group_count: 3,
            members: (1..=3).map(member).collect(),
            placements: vec![moving(&[1, 3], 2), at(&[1, 2]), at(&[2, 3])],
            ..ClusterSpec::default()
        };
        let mut reports = vec![view(1, 1, 2)];
        reports[0].replicas[0].voters = vec![1, 2];
        reports[0].replicas[0].role = "leader".to_owned();
        let counts = |reports: &[NodeReport]| -> Vec<(u32, u32, u32)> {
            let members = spec.members.iter();
            let nodes = members.map(|member| {
                let mut node = node_of(member);
                place(&mut node, member, &spec, reports);
                (node.groups_placed, node.groups_coming, node.groups_going)
            });
            nodes.collect()
        };
        assert_eq!(counts(&reports), [(2, 0, 0), (2, 0, 3), (2, 1, 0)]);
        reports[0].replicas[0].voters = vec![1, 3];
        assert_eq!(counts(&reports), [(2, 0, 0), (2, 0, 3), (2, 0, 0)]);
    }
}
