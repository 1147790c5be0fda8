//! The demo, as `make demo ARGS=--exit` runs it: to its end, with the cluster healthy again.

use anyhow::{Context, Result, ensure};
use basalt_interop::process::run;

/// Milliseconds for which a request may wait while a node is killed: elections take about one second.
const STALL_MAX_MS: f64 = 5_000.0;

/// The number behind some words of the text.
fn number_after(text: &str, words: &str) -> Result<f64> {
    let (_, rest) = text.split_once(words).with_context(|| format!("no '{words}' in {text}"))?;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("'{word}' behind '{words}' is no number"))
}

#[test]
fn the_demo_holds_to_its_end() -> Result<()> {
    let said = run("demo", &["--exit"])?;
    let stall = number_after(&said, "longest stall ")?;
    ensure!(stall > 0.0 && stall < STALL_MAX_MS, "a request waited {stall} ms: {said}");
    ensure!(number_after(&said, "verification errors: ")? == 0.0, "{said}");
    // All that fio writes, 1 GiB, is read back.
    let blocks = f64::from(1_u32 << 18);
    for side in ["write ", "verify "] {
        let requests = number_after(&said, &format!("\n    {side}"))?;
        ensure!(requests >= blocks, "{requests} requests instead of {blocks}: {said}");
    }
    // It says so only after `basalt cluster status --check` held.
    ensure!(said.contains("the node that was killed has caught up"), "{said}");
    ensure!(said.contains("==> stopping"), "{said}");
    Ok(())
}
