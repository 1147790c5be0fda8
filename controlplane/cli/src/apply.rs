//! Documents that are applied, or compared with what there is.

use crate::options::{ApplyArgs, Options};
use crate::{Failure, call_of, documents, output};
use basalt_api::dial::Cluster;
use basalt_api::random::request_id;
use basalt_api::v1::applied::Action;
use basalt_api::v1::resources_client::ResourcesClient;
use basalt_api::v1::{Applied, ApplyRequest, Resource};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    asked: &ApplyArgs,
    plan: bool,
) -> Result<(), Failure> {
    let mut resources: Vec<Resource> = Vec::new();
    for file in &asked.files {
        let found = read(file).and_then(|text| documents::read(&text));
        let at = |problem: String| Failure::Usage(format!("{}: {problem}", file.display()));
        resources.extend(found.map_err(at)?);
    }
    let request_id = asked.request_id.clone().unwrap_or_else(|| request_id("cli"));
    let request = ApplyRequest { resources, plan, request_id };
    let answer = call_of!(cluster, ResourcesClient, apply, request)?;
    let shown: Vec<Value> = answer.applied.iter().map(document).collect();
    output::write(options.output, &json!({ "applied": shown }), || text(&answer.applied, plan))?;
    let is = |action: Action| answer.applied.iter().any(|applied| applied.action() == action);
    let differs = plan && (is(Action::Create) || is(Action::Update));
    match is(Action::Refused) || differs {
        true => Err(Failure::Shown),
        false => Ok(()),
    }
}

fn read(file: &Path) -> Result<String, String> {
    if file == Path::new("-") {
        let mut text = String::new();
        return match std::io::stdin().read_to_string(&mut text) {
            Ok(_) => Ok(text),
            Err(problem) => Err(problem.to_string()),
        };
    }
    std::fs::read_to_string(file).map_err(|problem| problem.to_string())
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Unchanged => "unchanged",
        Action::Refused => "refused",
        Action::Unspecified => "unknown",
    }
}

fn document(applied: &Applied) -> Value {
    let changes: Vec<Value> = applied
        .changes
        .iter()
        .map(|c| json!({ "path": c.path, "before": c.before, "after": c.after }))
        .collect();
    json!({
        "name": applied.name,
        "action": word(applied.action()),
        "changes": changes,
        "reason": applied.reason,
        "problem": applied.problem,
    })
}

fn text(applied: &[Applied], plan: bool) -> String {
    let mut text = String::new();
    for one in applied {
        let what = match (one.action(), plan) {
            (Action::Create, true) => "would be created",
            (Action::Create, false) => "created",
            (Action::Update, true) => "would be changed",
            (Action::Update, false) => "changed",
            (Action::Unchanged, _) => "unchanged",
            (_, true) => "would be refused",
            (_, false) => "refused",
        };
        text.push_str(&format!("{}: {what}\n", one.name));
        for change in &one.changes {
            let line = match (change.before.as_str(), change.after.as_str()) {
                ("", after) => format!("  + {}: {after}\n", change.path),
                (before, "") => format!("  - {}: {before}\n", change.path),
                (before, after) => format!("  ~ {}: {before} -> {after}\n", change.path),
            };
            text.push_str(&line);
        }
        if !one.problem.is_empty() {
            text.push_str(&format!("  ! {}\n", one.problem));
        }
    }
    if applied.is_empty() { "no documents".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::FieldChange;

    #[test]
    fn changes_are_shown_line_by_line() {
        let change = |path: &str, before: &str, after: &str| FieldChange {
            path: path.to_owned(),
            before: before.to_owned(),
            after: after.to_owned(),
        };
        let one = Applied {
            name: "volumes/demo".to_owned(),
            action: Action::Update.into(),
            changes: vec![change("a", "1", "2"), change("b", "", "3"), change("c", "4", "")],
            ..Applied::default()
        };
        let shown = text(&[one], true);
        assert_eq!(shown, "volumes/demo: would be changed\n  ~ a: 1 -> 2\n  + b: 3\n  - c: 4\n");
    }
}
