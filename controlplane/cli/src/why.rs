//! Where the time of a volume's requests goes: `basalt why`.

use crate::options::{Format, Options, WhyArgs};
use crate::output;
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::v1::{
    ExplainLatencyRequest, ExplainLatencyResponse, LatencyBand, LatencyPart, RequestLatency,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// How often it is shown again.
const AGAIN: Duration = Duration::from_secs(2);
/// Characters of a bar that stands for all of the time.
const BAR: u64 = 20;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    asked: &WhyArgs,
) -> Result<(), Failure> {
    let name = format!("volumes/{}", asked.volume.trim_start_matches("volumes/"));
    loop {
        let request = ExplainLatencyRequest { name: name.clone() };
        let found = call!(cluster, explain_latency, request)?;
        if asked.watch && options.output == Format::Table {
            output::print(b"\x1b[H\x1b[2J")?;
        }
        output::write(options.output, &document(&found), || text(&found))?;
        if !asked.watch {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn node(found: &ExplainLatencyResponse, number: u32) -> String {
    match found.nodes.iter().find(|speed| speed.node == number) {
        Some(speed) => speed.name.clone(),
        None if number == 0 => found.host.clone(),
        None => number.to_string(),
    }
}

fn accounted(band: &LatencyBand) -> u64 {
    band.parts.iter().map(|part| part.nanoseconds).sum()
}

fn document(found: &ExplainLatencyResponse) -> Value {
    let part = |part: &LatencyPart| {
        json!({
            "stage": part.stage,
            "node": node(found, part.node),
            "nanoseconds": part.nanoseconds,
            "requests": part.requests,
        })
    };
    let band = |band: &Option<LatencyBand>| {
        let band = band.clone().unwrap_or_default();
        json!({
            "requests": band.requests,
            "total_ns": band.total_ns,
            "unaccounted_ns": band.total_ns.saturating_sub(accounted(&band)),
            "bytes": band.bytes,
            "under_way": band.depth_milli as f64 / 1e3,
            "resent": band.resent,
            "parts": band.parts.iter().map(part).collect::<Vec<_>>(),
        })
    };
    let request = |request: &RequestLatency| {
        let stages = request.stages.iter().map(|stage| {
            json!({
                "stage": stage.stage,
                "node": node(found, stage.node),
                "requests": stage.requests,
                "median_ns": stage.median_ns,
                "p99_ns": stage.p99_ns,
                "best_ns": stage.best_ns,
            })
        });
        json!({
            "kind": request.kind,
            "requests": request.requests,
            "window_ms": request.window_ms,
            "median_ns": request.median_ns,
            "p99_ns": request.p99_ns,
            "all": band(&request.all),
            "middle": band(&request.middle),
            "slowest": band(&request.slowest),
            "stages": stages.collect::<Vec<_>>(),
            "findings": request.findings,
        })
    };
    let nodes = found.nodes.iter().map(|speed| {
        json!({
            "node": speed.node,
            "name": speed.name,
            "write_us": speed.write_us,
            "write_best_us": speed.write_best_us,
            "read_us": speed.read_us,
            "read_best_us": speed.read_best_us,
            "slow": speed.slow,
        })
    });
    json!({
        "name": found.name,
        "host": found.host,
        "verdict": found.verdict,
        "unknown": found.unknown,
        "requests": found.requests.iter().map(request).collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
    })
}

fn text(found: &ExplainLatencyResponse) -> String {
    let volume = found.name.trim_start_matches("volumes/");
    if !found.unknown.is_empty() {
        return format!("{volume}: nothing is known: {}\n", found.unknown);
    }
    let mut text = format!("{volume}, attached to '{}'\n{}\n", found.host, found.verdict);
    for request in &found.requests {
        text.push_str(&format!("\n{}", kind(found, request)));
    }
    text
}

fn kind(found: &ExplainLatencyResponse, request: &RequestLatency) -> String {
    let empty = LatencyBand::default();
    let (middle, slowest) =
        (request.middle.as_ref().unwrap_or(&empty), request.slowest.as_ref().unwrap_or(&empty));
    let all = request.all.as_ref().unwrap_or(&empty);
    let mut text = format!(
        "{}: {} traced in {} s, {}.{} under way; half take up to {}, 99 in 100 up to {}\n",
        request.kind,
        request.requests,
        request.window_ms / 1_000,
        all.depth_milli / 1_000,
        all.depth_milli % 1_000 / 100,
        time(request.median_ns),
        time(request.p99_ns)
    );
    // Parts come in the order in which a request passes them: so do those of both.
    let keys = |band: &LatencyBand| {
        band.parts.iter().map(|p| (p.stage.clone(), p.node)).collect::<Vec<_>>()
    };
    let either: BTreeSet<(String, u32)> = keys(middle).into_iter().chain(keys(slowest)).collect();
    let order = request.stages.iter().map(|stage| (stage.stage.clone(), stage.node));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (stage, number) in order.filter(|key| either.contains(key)) {
        let of = |band: &LatencyBand| {
            let part = band.parts.iter().find(|p| (&p.stage, p.node) == (&stage, number));
            part.map_or(0, |part| part.nanoseconds)
        };
        let best = request.stages.iter().find(|s| (&s.stage, s.node) == (&stage, number));
        let best = best.map_or_else(String::new, |best| time(best.best_ns));
        rows.push(row(
            (&stage, &node(found, number)),
            (of(middle), middle.total_ns),
            (of(slowest), slowest.total_ns),
            best,
        ));
    }
    let rest = |band: &LatencyBand| band.total_ns.saturating_sub(accounted(band));
    if rest(middle) + rest(slowest) > rows.len() as u64 * 2 {
        let (of_middle, of_slowest) = (rest(middle), rest(slowest));
        rows.push(row(
            ("unaccounted", ""),
            (of_middle, middle.total_ns),
            (of_slowest, slowest.total_ns),
            String::new(),
        ));
    }
    rows.push(vec![
        "total".to_owned(),
        String::new(),
        time(middle.total_ns),
        String::new(),
        time(slowest.total_ns),
    ]);
    text.push_str(&output::table(
        &["  STAGE", "WHERE", "ORDINARY", "", "SLOWEST", "", "BEST"],
        &rows.into_iter().map(indented).collect::<Vec<_>>(),
    ));
    for finding in &request.findings {
        text.push_str(&format!("  {finding}\n"));
    }
    text
}

fn indented(mut row: Vec<String>) -> Vec<String> {
    row[0].insert_str(0, "  ");
    row
}

fn row(
    (stage, place): (&str, &str),
    (middle, of_middle): (u64, u64),
    (slowest, of_slowest): (u64, u64),
    best: String,
) -> Vec<String> {
    vec![
        stage.to_owned(),
        place.to_owned(),
        time(middle),
        bar(middle, of_middle),
        time(slowest),
        bar(slowest, of_slowest),
        best,
    ]
}

/// A share as a bar, and in hundredths.
fn bar(part: u64, of: u64) -> String {
    let of = u128::from(of.max(1));
    let share = u128::from(part) * 100 / of;
    let length = (u128::from(part) * u128::from(BAR) / of) as usize;
    format!("{share:>3}% {}", "#".repeat(length))
}

/// A time for people.
fn time(ns: u64) -> String {
    match ns {
        0 => "-".to_owned(),
        1..10_000 => format!("{}.{} us", ns / 1_000, ns % 1_000 / 100),
        10_000..10_000_000 => format!("{} us", ns / 1_000),
        10_000_000..10_000_000_000 => format!("{} ms", ns / 1_000_000),
        _ => format!("{} s", ns / 1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::{NodeSpeed, StageLatency};

    fn found() -> ExplainLatencyResponse {
        let part = |stage: &str, node, nanoseconds| LatencyPart {
            stage: stage.to_owned(),
            node,
            nanoseconds,
            requests: 9,
        };
        let band = |link, write| LatencyBand {
            requests: 9,
            total_ns: 2_000_000,
            depth_milli: 1_500,
            parts: vec![part("link", 1, link), part("log_write", 1, write)],
            ..Default::default()
        };
        let stage = |stage: &str, best_ns| StageLatency {
            stage: stage.to_owned(),
            node: 1,
            best_ns,
            ..Default::default()
        };
        let request = RequestLatency {
            kind: "write".to_owned(),
            requests: 90,
            window_ms: 9_000,
            all: Some(band(500_000, 1_500_000)),
            middle: Some(band(500_000, 1_500_000)),
            slowest: Some(band(500_000, 1_000_000)),
            stages: vec![stage("link", 40_000), stage("log_write", 90_000)],
            findings: vec!["An ordinary write takes 2000 us.".to_owned()],
            ..Default::default()
        };
        let node = NodeSpeed { node: 1, name: "n1".to_owned(), ..Default::default() };
        ExplainLatencyResponse {
            name: "volumes/demo".to_owned(),
            host: "box".to_owned(),
            requests: vec![request],
            nodes: vec![node],
            verdict: "The log.".to_owned(),
            unknown: String::new(),
        }
    }

    #[test]
    fn stages_stand_with_their_share_and_what_is_left() {
        let text = text(&found());
        let line = |word: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(word));
            found.unwrap_or_else(|| panic!("{word} is not in\n{text}")).to_owned()
        };
        assert!(line("log_write").contains("1500 us    75% ###############"), "{text}");
        assert!(line("link").contains("n1") && line("link").ends_with("40 us"), "{text}");
        assert!(line("unaccounted").contains("500 us"), "{text}");
        assert!(line("total").contains("2000 us"), "{text}");
        let document = document(&found());
        assert_eq!(document["requests"][0]["slowest"]["unaccounted_ns"], 500_000);
        assert_eq!(document["requests"][0]["middle"]["parts"][0]["node"], "n1");
    }

    #[test]
    fn what_is_not_known_is_said() {
        let unknown = "it is not attached".to_owned();
        let found = ExplainLatencyResponse { unknown, name: "volumes/a".into(), ..found() };
        assert_eq!(text(&found), "a: nothing is known: it is not attached\n");
    }
}
