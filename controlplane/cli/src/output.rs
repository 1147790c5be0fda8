//! Writing answers: tables for people, JSON for programs.

use crate::Failure;
use crate::options::Format;
use serde::Serialize;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Writes a document, as JSON or in the way that `table` does.
pub(crate) fn write<T: Serialize>(
    format: Format,
    document: &T,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table(),
        Format::Json => serde_json::to_string_pretty(document).map_err(unshown)?,
        Format::Yaml => serde_yaml_ng::to_string(document).map_err(unshown)?,
        Format::Name => names(&serde_json::to_value(document).map_err(unshown)?).join("\n"),
    };
    print(format!("{}\n", text.trim_end()).as_bytes())
}

fn unshown(problem: impl std::fmt::Display) -> Failure {
    Failure::Output(problem.to_string())
}

/// The names in a document: its own, or those of what it lists.
fn names(document: &serde_json::Value) -> Vec<String> {
    if let Some(name) = document.get("name").and_then(|name| name.as_str()) {
        return vec![name.to_owned()];
    }
    let parts = document.as_object().into_iter().flat_map(|object| object.values());
    let lists = parts.filter_map(|part| part.as_array()).flatten();
    lists.flat_map(names).collect()
}

/// Writes to the standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(bytes) {
        // Whoever reads may have seen enough.
        Err(problem) if problem.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|problem| Failure::Output(problem.to_string())),
    }
}

/// Columns, each as wide as its widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(head.to_vec());
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

/// One line on a terminal that tells what is waited for; nothing where nobody watches.
pub(crate) struct Progress {
    began: Instant,
    watched: bool,
    shown: bool,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn start(format: Format) -> Progress {
        let watched = format == Format::Table && std::io::stderr().is_terminal();
        Progress { began: Instant::now(), watched, shown: false }
    }

    /// Shows what is waited for, in place of what was shown before.
    pub fn show(&mut self, what: impl FnOnce() -> String) {
        if self.watched {
            self.shown = true;
            let line: String = what().chars().take(100).collect();
            eprint!("\r\x1b[K{:>3} s  {line}", self.began.elapsed().as_secs());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Asks on the terminal, and gives what was typed; nothing if there is no terminal to ask on.
pub(crate) fn ask(question: &str) -> Option<String> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    eprint!("{question} ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).ok()?;
    Some(answer.trim().to_owned())
}

/// Writes why a command failed: to the standard error, as JSON if that was asked for.
pub(crate) fn failure(format: Format, reason: &str, text: &str) {
    match format {
        Format::Table | Format::Name => eprintln!("basalt: {text}"),
        Format::Json | Format::Yaml => {
            eprintln!("{}", json!({ "error": { "reason": reason, "message": text } }))
        }
    }
}

/// Writes something beside the answer to the standard error, as JSON if that was asked for.
pub(crate) fn note(format: Format, name: &str, value: &str) {
    match format {
        Format::Table | Format::Name => eprintln!("{name}: {value}"),
        Format::Json | Format::Yaml => eprintln!("{}", json!({ name: value })),
    }
}

/// Writes this program's version.
pub(crate) fn version(format: Format) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    write(format, &json!({ "version": version }), || format!("basalt {version}"))
}

/// A time since 1970, for people and programs alike: RFC 3339 in UTC.
pub(crate) fn time(ms: i64) -> String {
    let (days, of_day) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    // Days to year, month, day: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["demo".to_owned(), "1 GiB".to_owned()]];
        assert_eq!(table(&["NAME", "SIZE"], &rows), "NAME  SIZE\ndemo  1 GiB\n");
    }

    #[test]
    fn names_are_found_where_they_stand() {
        let one = json!({ "name": "volumes/a", "labels": { "name": "x" } });
        assert_eq!(names(&one), ["volumes/a"]);
        let list = json!({ "volumes": [one, { "name": "volumes/b" }], "count": 2 });
        assert_eq!(names(&list), ["volumes/a", "volumes/b"]);
        assert!(names(&json!({ "version": "1" })).is_empty());
    }

    #[test]
    fn times_are_civil() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_795_000_000_000), "2026-11-18T11:06:40Z");
    }
}
