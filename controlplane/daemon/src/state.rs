//! Where the state of the metadata group is kept, and how it comes from other nodes.
//!
//! The mirror's state goes to the node's store when enough commands were applied behind the one that is there, and
//! when the node stops in order: a start begins with it and is told only what came later, and the log forgets what
//! it stands for. A node whose log, or whose state, does not reach to what is left of the log asks the others for
//! theirs, one after the other, until one gives it. What comes is checked as a whole, kept, and only then used.

use crate::engine::Engine;
use crate::metadata::Wanted;
use basalt_api::dial::Channel;
use basalt_api::dial::plain;
use basalt_api::v1::peer_client::PeerClient;
use basalt_api::v1::{BackupMetadataResponse, GetMetadataStateRequest, GetMetadataStateResponse};
use basalt_meta::{MetaState, StateReader};
use basalt_store::Store;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// Bytes of commands after which the state is saved, if there are not enough of them before.
const SAVE_BYTES: usize = 1 << 20;
/// Until the next attempt, after one that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one piece may take on its way.
const PIECE: Duration = Duration::from_secs(10);
/// How long a whole state may take.
const WHOLE: Duration = Duration::from_secs(120);
/// How long a node that is asked may take to come to the entry that is asked for, in milliseconds.
const CATCH_UP_MS: u32 = 2_000;
/// Nodes that are given the state at a time: each time it is in memory once more.
const GIVEN_AT_ONCE: usize = 2;

static GIVING: Semaphore = Semaphore::const_new(GIVEN_AT_ONCE);

/// A state on its way to another node.
pub type Pieces = ReceiverStream<Result<GetMetadataStateResponse, Status>>;
/// A state on its way to whoever keeps it.
pub type Backup = ReceiverStream<Result<BackupMetadataResponse, Status>>;

/// The state that the store holds. One that can not be used counts as none: what is left of the log then does not
/// follow it, which the shard says, and asks the other nodes.
pub fn load(store: &Store, cluster: u64) -> MetaState {
    let began = Instant::now();
    let mut reader = StateReader::default();
    let read = store.read_metadata(|piece| reader.add(piece).map_err(|e| e.to_string()));
    let state = match read {
        Ok(0) => return MetaState::default(),
        Ok(_) => reader.finish().map_err(|e| e.to_string()),
        Err(reason) => Err(reason),
    };
    match state.and_then(|state| of_cluster(state, cluster)) {
        Ok(state) => {
            tracing::info!(
                entry = state.applied(),
                volumes = state.volume_count(),
                milliseconds = began.elapsed().as_millis() as u64,
                "the state of the metadata group was read"
            );
            state
        }
        Err(reason) => {
            tracing::error!("the state of the metadata group in the store is not used: {reason}");
            MetaState::default()
        }
    }
}

/// Whether a state is of this cluster.
fn of_cluster(state: MetaState, cluster: u64) -> Result<MetaState, String> {
    match state.cluster() {
        Some(spec) if spec.id != cluster => {
            Err(format!("it is of cluster {:016x}, not of {cluster:016x}", spec.id))
        }
        _ => Ok(state),
    }
}

/// Saves the state now and then, and fetches one when the shard asks for it.
pub async fn run(engine: Weak<Engine>) {
    let Some((mut applied, mut wanted)) =
        engine.upgrade().map(|engine| (engine.metadata.changes(), engine.metadata.wanted()))
    else {
        return;
    };
    let mut again = true;
    loop {
        let changed = tokio::select! {
            changed = applied.changed() => changed,
            changed = wanted.changed() => changed,
            () = sleep(PAUSE), if again => Ok(()),
        };
        let Some(engine) = engine.upgrade().filter(|_| changed.is_ok()) else { return };
        let asked = *wanted.borrow_and_update();
        let got = match asked {
            Some(asked) => fetch(&engine, asked).await,
            None => true,
        };
        let (commands, bytes) = engine.metadata.unsaved();
        let due = commands >= engine.options.metadata_save_every || bytes >= SAVE_BYTES;
        let kept = !due || save(&engine).await;
        again = !got || !kept;
        if !kept {
            sleep(PAUSE).await;
        }
    }
}

/// Puts the state as it is now into the store. Whether it is there.
pub async fn save(engine: &Arc<Engine>) -> bool {
    match engine.metadata.unsaved() {
        (0, _) => true,
        _ => keep(engine, engine.metadata.state()).await,
    }
}

async fn keep(engine: &Arc<Engine>, state: MetaState) -> bool {
    let store = engine.store.clone();
    let written = tokio::task::spawn_blocking(move || {
        store.save_metadata(state.chunks()).map(|()| state).map_err(|e| e.to_string())
    });
    match written.await.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(state) => {
            engine.metadata.saved(state);
            true
        }
        Err(reason) => {
            tracing::error!("the state of the metadata group can not be kept: {reason}");
            false
        }
    }
}

/// Gets a state from another node. Whether it is here.
async fn fetch(engine: &Arc<Engine>, wanted: Wanted) -> bool {
    let own = engine.metadata.look(MetaState::applied);
    if own >= wanted.at_least {
        return keep(engine, engine.metadata.state()).await;
    }
    tracing::info!(
        entry = wanted.at_least,
        own,
        "the log does not lead to the present state of the metadata group; the other nodes are asked for it"
    );
    for (node, client) in engine.metadata.others(wanted.from) {
        let began = Instant::now();
        let got = timeout(WHOLE, fetch_from(client, engine.cluster(), wanted.at_least)).await;
        match got.unwrap_or_else(|_| Err("it takes too long".to_owned())) {
            Ok(state) => {
                let milliseconds = began.elapsed().as_millis() as u64;
                let entry = state.applied();
                tracing::info!(%node, entry, milliseconds, "the state of the metadata group came");
                return keep(engine, state).await;
            }
            Err(reason) => tracing::info!(%node, "no state of the metadata group: {reason}"),
        }
    }
    false
}

async fn fetch_from(
    mut client: PeerClient<Channel>,
    cluster: u64,
    at_least: u64,
) -> Result<MetaState, String> {
    let request = GetMetadataStateRequest { cluster, at_least };
    let asked = client.get_metadata_state(request).await;
    let mut pieces = asked.map(Response::into_inner).map_err(|status| plain(&status))?;
    let mut reader = StateReader::default();
    loop {
        let next = timeout(PIECE, pieces.message()).await;
        let next = next.map_err(|_| "it sends nothing more".to_owned())?;
        match next.map_err(|status| plain(&status))? {
            Some(piece) => reader.add(&piece.chunk).map_err(|e| e.to_string())?,
            None => break,
        }
    }
    let state = reader.finish().map_err(|e| e.to_string())?;
    if state.applied() < at_least {
        return Err(format!("its state is of entry {}", state.applied()));
    }
    of_cluster(state, cluster)
}

/// Gives the state to another node.
///
/// # Errors
/// If the node is of another cluster, this one has not come so far, or it gives it to others just now.
pub async fn give(engine: &Engine, request: GetMetadataStateRequest) -> Result<Pieces, Status> {
    engine.check_cluster(request.cluster)?;
    let there = |state: &MetaState| state.applied() >= request.at_least;
    if !engine.metadata.wait_for(CATCH_UP_MS, there).await {
        let applied = engine.metadata.look(MetaState::applied);
        return Err(Status::unavailable(format!("this node has applied entry {applied}")));
    }
    stream(engine, |chunk| GetMetadataStateResponse { chunk })
}

/// Gives the state to whoever keeps it, with all that was answered before.
///
/// # Errors
/// If there is no quorum, or the state is given to others just now.
pub async fn backup(engine: &Engine) -> Result<Backup, Status> {
    engine.metadata.barrier().await?;
    let mut version = env!("CARGO_PKG_VERSION").to_owned();
    stream(engine, move |chunk| {
        let version = std::mem::take(&mut version);
        BackupMetadataResponse { version, chunk }
    })
}

/// The state as it is now, piece by piece.
fn stream<T: Send + 'static>(
    engine: &Engine,
    mut answer: impl FnMut(Vec<u8>) -> T + Send + 'static,
) -> Result<ReceiverStream<Result<T, Status>>, Status> {
    let Ok(permit) = GIVING.try_acquire() else {
        return Err(Status::unavailable("the state is given to others just now; ask again"));
    };
    let (sender, pieces) = mpsc::channel(2);
    let state = engine.metadata.state();
    tokio::spawn(async move {
        let _permit = permit;
        for chunk in state.chunks() {
            // Who takes nothing more has gone, or hangs.
            if !matches!(timeout(PIECE, sender.send(Ok(answer(chunk)))).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    Ok(ReceiverStream::new(pieces))
}
