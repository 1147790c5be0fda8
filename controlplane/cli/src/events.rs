//! What happened in the cluster, the newest last.

use crate::options::{EventsArgs, Options, Severity};
use crate::{Failure, call_of, documents, get, output};
use basalt_api::dial::Cluster;
use basalt_api::v1::events_client::EventsClient;
use basalt_api::v1::{Event, ListEventsRequest, event};
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Events in a page of an answer: the most that the API gives.
const PAGE: usize = 1000;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    asked: &EventsArgs,
) -> Result<(), Failure> {
    let filter = filter(asked, SystemTime::now());
    if asked.watch {
        return get::watch_kind(options, cluster, ("events", &filter)).await;
    }
    let events = newest(cluster, &filter, asked.last as usize).await?;
    let all: Vec<_> = events.iter().map(documents::document).collect();
    output::write(options.output, &json!({ "events": all }), || table(&events))
}

/// The newest that a filter lets through, oldest first.
async fn newest(cluster: &Cluster, filter: &str, most: usize) -> Result<Vec<Event>, Failure> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let page_size = (most - found.len()).min(PAGE) as i32;
        let request = ListEventsRequest { page_size, page_token, filter: filter.to_owned() };
        let page = call_of!(cluster, EventsClient, list_events, request)?;
        found.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() || found.len() >= most {
            found.truncate(most);
            found.reverse();
            return Ok(found);
        }
    }
}

/// What is asked for, as a filter of the API.
fn filter(asked: &EventsArgs, now: SystemTime) -> String {
    let mut parts = Vec::new();
    if !asked.filter.is_empty() {
        parts.push(format!("({})", asked.filter));
    }
    match asked.severity {
        Severity::Info => {}
        Severity::Warning => parts.push("severity >= WARNING".to_owned()),
        Severity::Error => parts.push("severity >= ERROR".to_owned()),
    }
    if let Some(ago) = asked.since {
        let from = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).saturating_sub(ago);
        let from = i64::try_from(from.as_millis()).unwrap_or(i64::MAX);
        parts.push(format!("create_time >= \"{}\"", output::time(from)));
    }
    parts.join(" AND ")
}

fn table(events: &[Event]) -> String {
    if events.is_empty() {
        return "nothing happened".to_owned();
    }
    let row = |event: &Event| {
        let severity = match event.severity() {
            event::Severity::Warning => "warning",
            event::Severity::Error => "ERROR",
            _ => "",
        };
        vec![
            get::moment(event.create_time.as_ref()),
            severity.to_owned(),
            event.target.clone(),
            event.message.clone(),
            event.reason.clone(),
        ]
    };
    let rows: Vec<_> = events.iter().map(row).collect();
    output::table(&["TIME", "", "WHAT", "WHAT HAPPENED", "REASON"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_becomes_one_filter() {
        let asked = |filter: &str, severity, since| EventsArgs {
            filter: filter.to_owned(),
            severity,
            since,
            last: 5,
            watch: false,
        };
        let now = UNIX_EPOCH + Duration::from_secs(3_600);
        assert_eq!(filter(&asked("", Severity::Info, None), now), "");
        let all = asked("a = b OR c = d", Severity::Warning, Some(Duration::from_secs(600)));
        assert_eq!(
            filter(&all, now),
            "(a = b OR c = d) AND severity >= WARNING AND create_time >= \"1970-01-01T00:50:00Z\""
        );
    }

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            severity: event::Severity::Error.into(),
            target: "nodes/n1".to_owned(),
            message: "down".to_owned(),
            reason: "NODE_DOWN".to_owned(),
            ..Event::default()
        };
        let text = table(&[event]);
        assert!(text.contains("ERROR  nodes/n1  down") && text.contains("NODE_DOWN"), "{text}");
    }
}
