//! Keys and tickets of the data path: what the reactor shows on links and asks of others, and what hosts are given so
//! that they open links without the secret.

use crate::daemon::Daemon;
use crate::engine::Engine;
use crate::metadata::now_ms;
use crate::services::shown::moment;
use crate::services::{id_in, linearized};
use anyhow::{Context, Result, anyhow};
use basalt_api::error;
use basalt_api::v1::{ErrorReason, IssueTicketRequest, LinkTicket};
use basalt_link::{Access, Grant, Keys, LinkAuth};
use basalt_meta::{MetaState, VolumeRecord};
use basalt_security::secret::Purpose;
use basalt_wire::ids::{ClusterId, Epoch, VolumeId};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::sleep;
use tonic::Status;

/// How long a ticket opens links. A host renews it when half of that is over, so that attached volumes can do without
/// the control plane for days. It needs not be short: what a host may do with a volume ends with the next session.
const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the keyring is compared with what the reactor has. Files of secrets are looked at every second.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// The keys of the secrets that this process holds; nothing without any.
///
/// # Errors
/// Never, as a keyring with secrets has at least one.
fn keys() -> Result<Option<Keys>> {
    let secrets = basalt_api::dial::credentials().keyring.and_then(|keyring| keyring.secrets());
    secrets
        .map(|secrets| Keys::new(&secrets.keys(Purpose::DataPath)).map_err(|e| anyhow!(e)))
        .transpose()
}

/// What the reactor of this node shows on its links, and asks of others.
///
/// # Errors
/// If the keys can not be used.
pub fn auth() -> Result<LinkAuth> {
    Ok(keys()?.map_or(LinkAuth::Open, LinkAuth::Secret))
}

/// By which secret this node makes tickets; 0 without any.
pub fn ticket_key() -> u64 {
    keys().ok().flatten().map_or(0, |keys| keys.first_id().0)
}

/// Tells the reactor when the secrets were exchanged, until the engine is gone.
pub async fn follow(weak: Weak<Engine>) {
    let Some(keyring) = basalt_api::dial::credentials().keyring else { return };
    let mut told = None;
    while let Some(engine) = weak.upgrade() {
        let generation = keyring.generation();
        if told != Some(generation) {
            match auth() {
                Ok(auth) => engine.reactor.auth(auth),
                Err(problem) => tracing::error!("the data path keeps its former keys: {problem:#}"),
            }
            told = Some(generation);
        }
        drop(engine);
        sleep(FOLLOW_EVERY).await;
    }
}

/// A ticket for one volume; nothing in a cluster without a secret.
fn ticket(cluster: u64, host: &str, grant: Grant) -> Result<Option<LinkTicket>> {
    let Some(keys) = keys()? else { return Ok(None) };
    let lifetime = i64::try_from(LIFETIME.as_millis()).context("days")?;
    let until = now_ms().saturating_add(lifetime);
    let expires = u64::try_from(until / 1000).unwrap_or(0);
    let made = keys.issue(ClusterId(cluster), host, vec![grant], expires);
    let made = made.map_err(|e| anyhow!(e))?;
    Ok(Some(LinkTicket {
        body: made.body().to_vec(),
        key: made.secret().to_vec(),
        expire_time: moment(until / 1000 * 1000),
    }))
}

/// The ticket that comes with an attachment.
///
/// # Errors
/// If it can not be made.
pub fn attached(
    cluster: u64,
    volume: u64,
    host: &str,
    epoch: u64,
) -> Result<Option<LinkTicket>, Status> {
    let (volume, epoch) = (VolumeId(volume), Epoch(epoch));
    let grant = Grant { volume, epoch, access: Access::Write };
    ticket(cluster, host, grant).map_err(|problem| Status::internal(format!("{problem:#}")))
}

/// Another ticket, for a session that stands or for reading snapshots.
///
/// # Errors
/// If there is no such volume or session, or the cluster has no secret.
pub async fn issue(
    daemon: &Arc<Daemon>,
    request: &IssueTicketRequest,
) -> Result<LinkTicket, Status> {
    let engine = daemon.engine()?;
    let id = id_in("volumes", &request.name)?;
    basalt_security::principal::check_name(&request.host)
        .map_err(|why| error::invalid("host", why))?;
    // What this node has heard of is enough if it fits: tickets are renewed without a quorum.
    let found = match engine.metadata.look(|state| granted(state, id, request)) {
        Ok(grant) => Ok(grant),
        Err(_) => linearized(daemon).await?.look(|state| granted(state, id, request)),
    };
    let made = ticket(engine.cluster(), &request.host, found?);
    made.map_err(|problem| Status::internal(format!("{problem:#}")))?.ok_or_else(|| {
        let message =
            "this node was started without a secret (--insecure): its links need no tickets";
        error::status(ErrorReason::InvalidField, message, &[])
    })
}

fn granted(state: &MetaState, id: &str, request: &IssueTicketRequest) -> Result<Grant, Status> {
    let volume = state.volume(id).ok_or_else(|| {
        let shown = id.escape_debug().to_string();
        let message = format!("there is no volume '{shown}'");
        error::status(ErrorReason::VolumeNotFound, message, &[("volume", shown)])
    })?;
    let access = match (request.epoch, request.read_only) {
        (0, _) => Access::Snapshots,
        (_, true) => Access::Read,
        (_, false) => Access::Write,
    };
    if access != Access::Snapshots && !is_attached(volume, request) {
        let message = format!(
            "the volume '{id}' is not attached to '{}' with epoch {} (any more)",
            request.host, request.epoch
        );
        return Err(error::status(ErrorReason::AttachmentChanged, message, &[]));
    }
    Ok(Grant { volume: VolumeId(volume.number), epoch: Epoch(request.epoch), access })
}

fn is_attached(volume: &VolumeRecord, request: &IssueTicketRequest) -> bool {
    let attachment = volume.attachment.as_ref();
    attachment.is_some_and(|a| a.host == request.host && a.epoch == request.epoch)
}
