//! What takes most of the time, in a sentence, and what to do about it: a pure function of what was measured.
//!
//! A stage is named with the best that it has been itself and, if it is a device, with the best of that device. Within
//! a few times of that it is as fast as this cluster is; then what helps is more requests at a time, or other hardware,
//! and nothing is called wrong.

use basalt_api::v1::{
    ExplainLatencyResponse, LatencyBand, LatencyPart, NodeSpeed, Qos, RequestLatency, Volume,
};

/// Times its best that a stage takes before something is said to be in its way.
const BUSY: u64 = 3;
/// Below that nothing is called busy: a turn of a thread that had something else to do.
const FLOOR_NS: u64 = 200_000;
/// Requests under way, in thousandths, up to which a user has one at a time.
const ALONE_MILLI: u64 = 1_500;

/// Fills in the findings of each kind, and the verdict: the first finding of the kind that takes most time in all.
pub(super) fn judge(answer: &mut ExplainLatencyResponse, volume: &Volume) {
    let facts = Facts { nodes: &answer.nodes, host: &answer.host, volume };
    for request in &mut answer.requests {
        request.findings = facts.findings(request);
    }
    let weight = |request: &&RequestLatency| {
        let all = request.all.as_ref();
        all.map_or(0, |all| u128::from(all.total_ns) * u128::from(all.requests))
    };
    let heaviest = answer.requests.iter().max_by_key(weight);
    let first = heaviest.and_then(|request| request.findings.first().cloned());
    answer.verdict = first.unwrap_or_default();
}

struct Facts<'a> {
    nodes: &'a [NodeSpeed],
    host: &'a str,
    volume: &'a Volume,
}

impl Facts<'_> {
    fn findings(&self, request: &RequestLatency) -> Vec<String> {
        let mut findings = Vec::new();
        let main = |band: Option<&LatencyBand>| band.and_then(heaviest).cloned();
        let (ordinary, slow) = (main(request.middle.as_ref()), main(request.slowest.as_ref()));
        if let (Some(part), Some(band)) = (&ordinary, &request.middle) {
            let whom = format!("An ordinary {} takes {}", request.kind, time(band.total_ns));
            findings.push(self.finding(&whom, request, band, part));
        }
        if let (Some(part), Some(band)) = (&slow, &request.slowest) {
            let known = ordinary.as_ref().map(|part| (&part.stage, part.node));
            let whom = format!("The slowest 1 in 100 take {}", time(band.total_ns));
            match known == Some((&part.stage, part.node)) {
                true => findings.push(format!("{whom}, most of it in the same place.")),
                false => findings.push(self.finding(&whom, request, band, part)),
            }
        }
        findings
    }

    fn finding(
        &self,
        whom: &str,
        request: &RequestLatency,
        band: &LatencyBand,
        part: &LatencyPart,
    ) -> String {
        let share = part.nanoseconds * 100 / band.total_ns.max(1);
        let best = self.best(request, part);
        let at_best = match best {
            0 => String::new(),
            best => format!(", its best {}", time(best)),
        };
        let (what, advice) = (self.what(part), self.advice(request, band, part, best));
        format!("{whom}, {share} % of it {what}: {}{at_best}. {advice}", time(part.nanoseconds))
    }

    /// What the stage took at best: of a device what the node knows of it, if that is less.
    fn best(&self, request: &RequestLatency, part: &LatencyPart) -> u64 {
        let stages = request.stages.iter();
        let own = stages.filter(|s| (&s.stage, s.node) == (&part.stage, part.node));
        let seen = own.map(|stage| stage.best_ns).min().unwrap_or(0);
        let node = self.nodes.iter().find(|node| node.node == part.node);
        let device = match part.stage.as_str() {
            "log_write" | "follower_write" => node.map_or(0, |node| node.write_best_us),
            "device_read" => node.map_or(0, |node| node.read_best_us),
            _ => 0,
        };
        match (seen, device * 1_000) {
            (seen, 0) => seen,
            (seen, device) => seen.min(device),
        }
    }

    fn name(&self, node: u32) -> String {
        let known = self.nodes.iter().find(|speed| speed.node == node);
        known.map_or_else(|| format!("node {node}"), |speed| speed.name.clone())
    }

    /// Where the time goes, to be read behind "of it".
    fn what(&self, part: &LatencyPart) -> String {
        let (node, host) = (self.name(part.node), self.host);
        match part.stage.as_str() {
            "limit" => format!("waiting on '{host}' for the volume's own bounds"),
            "parts" => format!("waiting on '{host}' for earlier parts of the same request"),
            "order" => format!("waiting on '{host}' for writes of the same blocks"),
            "read_first" => "reading the blocks of which only a part is written".to_owned(),
            "route" => format!("waiting on '{host}' for a leader, or a link to it"),
            "credit" => format!("waiting on '{host}' until the link takes more"),
            "retry" => {
                "in attempts that were refused or lost, and the pauses after them".to_owned()
            }
            "link" => format!("between '{host}' and '{node}'"),
            "admission" => format!("held back on '{node}' for other volumes' guaranteed minimum"),
            "batch" => format!("waiting on '{node}', which leads, for the log's write before"),
            "room" => format!("waiting on '{node}', which leads, for free space"),
            "log_queue" => format!("waiting on '{node}', which leads, to be written to the log"),
            "log_write" => format!("writing the log of '{node}', which leads"),
            "follower_link" => format!("between the leader and '{node}', which follows"),
            "follower_queue" => format!("waiting on '{node}', which follows, to be written"),
            "follower_write" => format!("writing the log of '{node}', which follows"),
            "commit" => format!("until '{node}', which leads, acts on the majority"),
            "pages" => format!("loading parts of the index on '{node}'"),
            "gate" => "held back while several volumes are cut together".to_owned(),
            "device_read" => format!("reading the device of '{node}'"),
            _ => format!("that '{node}' does not account for"),
        }
    }

    fn advice(
        &self,
        request: &RequestLatency,
        band: &LatencyBand,
        part: &LatencyPart,
        best: u64,
    ) -> String {
        let busy = part.nanoseconds > (best * BUSY).max(FLOOR_NS);
        let node = self.name(part.node);
        let device = || self.device(part.node, &node, busy);
        match part.stage.as_str() {
            "limit" => self.bounds(),
            "parts" => format!(
                "Its requests have {} on average and are cut into parts of 1 MiB: smaller ones are answered sooner.",
                basalt_api::size::show(band.bytes)
            ),
            "order" => "Whoever writes a block again before it is answered waits for itself.".to_owned(),
            "read_first" => {
                "Its writes are no whole blocks of 4 KiB: align them, or give the file system blocks of 4 KiB."
                    .to_owned()
            }
            "route" | "retry" => {
                "A leader changed, or a replica was busy, behind or away: see 'basalt doctor'.".to_owned()
            }
            "credit" | "batch" | "log_queue" => format!(
                "{} requests were under way: what waits, waits for the log of '{node}'.",
                depth(band)
            ),
            "admission" => {
                "Other volumes are guaranteed a minimum: guarantee one to this volume too, or lower theirs.".to_owned()
            }
            "room" => "The device is nearly full: see 'basalt space explain'.".to_owned(),
            "log_write" | "follower_write" | "follower_queue" | "device_read" => device(),
            "link" | "follower_link" if busy => format!(
                "The way there, or the processor of one of the two, is busy: see links and processors of '{node}'."
            ),
            "pages" => format!("More of the index in memory would help: --index-memory of '{node}'."),
            "gate" => "It is over as soon as the cut is.".to_owned(),
            "other" => "Ask again: a node may have been started anew meanwhile.".to_owned(),
            _ => self.healthy(request, band),
        }
    }

    fn bounds(&self) -> String {
        let Qos { iops_max, bandwidth_max, .. } = self.volume.effective_qos.unwrap_or_default();
        let mut bounds = Vec::new();
        if iops_max > 0 {
            bounds.push(format!("{iops_max} requests a second (--iops-max)"));
        }
        if bandwidth_max > 0 {
            let shown = basalt_api::size::show(bandwidth_max);
            bounds.push(format!("{shown} a second (--bandwidth-max)"));
        }
        let id = self.volume.name.strip_prefix("volumes/").unwrap_or(&self.volume.name);
        let bounds = match bounds.is_empty() {
            true => "They were lifted meanwhile".to_owned(),
            false => format!("They are {}", bounds.join(" and ")),
        };
        format!("{bounds}: raise them with 'basalt volume update {id}', or in the volume's class.")
    }

    fn device(&self, number: u32, node: &str, busy: bool) -> String {
        let slow = self.nodes.iter().any(|speed| speed.node == number && speed.slow);
        match (slow, busy) {
            (true, _) => format!(
                "The device of '{node}' is much slower than those of the others: it is busy with something else, or \
                 failing."
            ),
            (false, true) => {
                format!(
                    "The device of '{node}' is slower than it has been: it is busy, or failing."
                )
            }
            (false, false) => format!(
                "The device of '{node}' is about as fast as it has ever been: a faster one would help, or more \
                 requests at a time."
            ),
        }
    }

    fn healthy(&self, request: &RequestLatency, band: &LatencyBand) -> String {
        match band.depth_milli <= ALONE_MILLI {
            true => format!(
                "That is about its best. There is one {} at a time: more of them in parallel get more done.",
                request.kind
            ),
            false => format!("That is about its best, with {} requests under way.", depth(band)),
        }
    }
}

fn heaviest(band: &LatencyBand) -> Option<&LatencyPart> {
    band.parts.iter().max_by_key(|part| part.nanoseconds)
}

fn depth(band: &LatencyBand) -> String {
    format!("{}.{}", band.depth_milli / 1_000, band.depth_milli % 1_000 / 100)
}

/// A time for people.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{}.{} us", ns / 1_000, ns % 1_000 / 100),
        10_000..10_000_000 => format!("{} us", ns / 1_000),
        10_000_000..10_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::StageLatency;

    const MS: u64 = 1_000_000;

    fn part(stage: &str, node: u32, nanoseconds: u64) -> LatencyPart {
        LatencyPart { stage: stage.to_owned(), node, nanoseconds, requests: 10 }
    }

    fn band(parts: Vec<LatencyPart>, depth_milli: u64) -> Option<LatencyBand> {
        let total_ns = parts.iter().map(|part| part.nanoseconds).sum();
        let (requests, bytes) = (10, 4096);
        Some(LatencyBand { requests, total_ns, bytes, depth_milli, resent: 0, parts })
    }

    fn answer(parts: Vec<LatencyPart>, best_ns: u64) -> ExplainLatencyResponse {
        let stages = parts.iter().map(|part| StageLatency {
            stage: part.stage.clone(),
            node: part.node,
            best_ns,
            ..Default::default()
        });
        let nodes = [1, 2, 3].map(|node| NodeSpeed {
            node,
            name: format!("n{node}"),
            write_best_us: 90,
            slow: node == 3,
            ..Default::default()
        });
        let request = RequestLatency {
            kind: "write".to_owned(),
            stages: stages.collect(),
            all: band(parts.clone(), 1_000),
            middle: band(parts.clone(), 1_000),
            slowest: band(parts, 1_000),
            ..Default::default()
        };
        let requests = vec![request];
        let (nodes, host) = (nodes.to_vec(), "box".to_owned());
        ExplainLatencyResponse { requests, nodes, host, ..Default::default() }
    }

    fn verdict(parts: Vec<LatencyPart>, best_ns: u64) -> String {
        let qos = Some(Qos { iops_max: 500, ..Qos::default() });
        let name = "volumes/demo".to_owned();
        let volume = Volume { name, effective_qos: qos, ..Volume::default() };
        let mut answer = answer(parts, best_ns);
        judge(&mut answer, &volume);
        assert_eq!(answer.requests[0].findings.len(), 2);
        answer.verdict
    }

    #[test]
    fn the_stage_that_takes_most_is_named_with_what_to_do() {
        let link = || part("link", 1, MS / 10);
        let text = verdict(vec![part("limit", 0, 9 * MS), link()], MS);
        assert!(text.contains("98 % of it waiting on 'box' for the volume's own bounds"), "{text}");
        assert!(text.contains("500 requests a second") && text.contains("update demo"), "{text}");
        let text = verdict(vec![link(), part("follower_write", 3, 4 * MS)], 2 * MS);
        assert!(text.contains("the log of 'n3', which follows: 4000 us, its best 90 us"), "{text}");
        assert!(text.contains("much slower than those of the others"), "{text}");
        let text = verdict(vec![link(), part("log_write", 2, 4 * MS)], 2 * MS);
        assert!(text.contains("slower than it has been"), "{text}");
        let text = verdict(vec![part("follower_link", 2, 20 * MS), link()], MS);
        assert!(text.contains("between the leader and 'n2'") && text.contains("busy"), "{text}");
    }

    #[test]
    fn what_is_at_its_best_is_not_called_busy() {
        let text = verdict(vec![part("link", 1, MS / 10), part("log_write", 2, MS / 20)], MS / 20);
        assert!(text.contains("one write at a time") && !text.contains("busy"), "{text}");
        let text = verdict(vec![part("log_write", 2, MS / 10)], MS / 20);
        assert!(text.contains("as fast as it has ever been"), "{text}");
    }

    #[test]
    fn every_stage_has_its_words() {
        for stage in basalt_wire::trace::Stage::ALL {
            let text = verdict(vec![part(stage.name(), 1, MS)], MS);
            let vague = text.contains("does not account for");
            assert_eq!(vague, stage == basalt_wire::trace::Stage::Other, "{text}");
        }
    }
}
