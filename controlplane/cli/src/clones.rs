//! `basalt volume create --from` and `basalt volume flatten`.

use crate::options::{Change, Options};
use crate::output::Progress;
use crate::volume::{get, path};
use crate::{Failure, call};
use basalt_api::dial::Cluster;
use basalt_api::size::show;
use basalt_api::v1::{FlattenVolumeRequest, Volume, volume};
use std::time::{Duration, Instant};

const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(100);
const POLL_FLATTEN: Duration = Duration::from_millis(500);

/// Waits until a clone may be attached.
pub(crate) async fn wait_ready(
    options: &Options,
    cluster: &Cluster,
    name: &str,
    created: Volume,
) -> Result<Volume, Failure> {
    let (patience, number) = (options.timeout, created.id);
    let mut progress = Progress::start(options.output);
    let deadline = Instant::now() + patience;
    let (mut found, mut poll) = (created, POLL_FIRST);
    while found.state() == volume::State::Creating && found.id == number {
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "the volume '{name}' is being created, but not every group has begun it after {} s; it goes \
                 on by itself: 'basalt volume show {name}', 'basalt cluster status'",
                patience.as_secs()
            )));
        }
        progress.show(|| format!("waiting for every group to begin {name}"));
        tokio::time::sleep(poll).await;
        poll = (poll * 2).min(POLL_MAX);
        found = get(cluster, name).await?;
    }
    Ok(found)
}

/// Has a clone made a volume of its own, or calls that off, and waits so long for it.
pub(crate) async fn flatten(
    options: &Options,
    cluster: &Cluster,
    name: &str,
    (cancel, wait): (bool, Option<Duration>),
    change: &Change,
) -> Result<Volume, Failure> {
    let (etag, request_id) = (change.etag(), change.id());
    let request = FlattenVolumeRequest { name: path(name), etag, request_id, cancel };
    let mut found = call!(cluster, flatten_volume, request)?;
    let Some(patience) = wait else { return Ok(found) };
    let mut progress = Progress::start(options.output);
    let deadline = Instant::now() + patience;
    while !found.source_snapshot.is_empty() {
        let far = how_far(&found);
        progress.show(|| far.clone());
        if Instant::now() >= deadline {
            return Err(Failure::Timeout(format!(
                "'{name}' is not done after {} s: {far}. It goes on by itself; 'basalt volume show {name}' \
                 tells how far it is",
                patience.as_secs()
            )));
        }
        tokio::time::sleep(POLL_FLATTEN).await;
        found = get(cluster, name).await?;
    }
    Ok(found)
}

/// What a flatten came to, for people.
pub(crate) fn outcome(name: &str, volume: &Volume) -> String {
    match (&volume.flattening, snapshot_of(volume)) {
        (_, None) => format!("volume {name} is no clone, or no more"),
        (Some(_), Some(of)) => {
            format!(
                "volume {name} gets blocks of its own for what it shares with {of}, in the background"
            )
        }
        (None, Some(of)) => format!("volume {name} stays a clone of {of}"),
    }
}

/// How far a clone is on its way to be none.
pub(crate) fn how_far(volume: &Volume) -> String {
    let Some(flattening) = &volume.flattening else {
        return "it is not being flattened".to_owned();
    };
    let why = if flattening.automatic { " (it hangs on many others)" } else { "" };
    let problem = match flattening.problem.as_str() {
        "" => String::new(),
        problem => format!("; it waits: {problem}"),
    };
    match flattening.total_bytes {
        0 => format!("waiting for its turn{why}{problem}"),
        total => {
            let done = flattening.done_bytes;
            let part = (u128::from(done) * 100 / u128::from(total)) as u64;
            format!("{} of {} ({part} %){why}{problem}", show(done), show(total))
        }
    }
}

/// The snapshot that a volume is a clone of, as it is written on the command line.
pub(crate) fn snapshot_of(volume: &Volume) -> Option<String> {
    let parts = volume.source_snapshot.strip_prefix("volumes/")?.split_once("/snapshots/")?;
    Some(format!("{}@{}", parts.0, parts.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_api::v1::Flattening;

    #[test]
    fn a_clone_is_told_with_its_snapshot_and_how_far_it_is() {
        let mut volume =
            Volume { source_snapshot: "volumes/a/snapshots/b".to_owned(), ..Volume::default() };
        assert_eq!(snapshot_of(&volume).as_deref(), Some("a@b"));
        assert!(outcome("c", &volume).contains("stays a clone of a@b"));
        volume.flattening = Some(Flattening::default());
        assert_eq!(how_far(&volume), "waiting for its turn");
        volume.flattening = Some(Flattening {
            done_bytes: 1 << 30,
            total_bytes: 4 << 30,
            problem: "no space".to_owned(),
            automatic: true,
        });
        let far = how_far(&volume);
        assert!(far.starts_with("1 GiB of 4 GiB (25 %)") && far.ends_with("no space"), "{far}");
        assert_eq!(snapshot_of(&Volume::default()), None);
    }
}
