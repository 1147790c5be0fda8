//! What may be asked for on a link.

use crate::handshake::Proven;
use crate::key::{KeyId, Keys};
use crate::planted::{self, Bug};
use crate::ticket::{Access, Grant, TicketBody};
use crate::transcript;
use basalt_wire::frame::{Present, Request, RequestOp};
use basalt_wire::ids::ClusterId;

/// Sessions with volumes that one link may be for: tickets beyond are not taken, so that memory is bounded.
pub const SESSIONS_MAX: usize = 4096;

/// What may be asked for on a link of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grants {
    /// Everything: a node asks, or nobody is asked who he is.
    All,
    /// What these tickets say, in the order of volumes and epochs, each with the key of its ticket.
    Only(Vec<(Grant, KeyId)>),
}

/// Why one more ticket was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresentError {
    /// It is good for nothing here; the link goes on with what it has.
    Useless(String),
    /// It is forged, or the link has no use for tickets: the link must end.
    Forged(String),
}

impl Grant {
    fn permits(&self, request: &Request) -> Result<(), String> {
        let need = needed(&request.op).ok_or_else(|| {
            "what changes more than a volume's content is the control plane's to ask for".to_owned()
        })?;
        if self.access < need && !planted::is(Bug::ReaderWrites) {
            let volume = request.volume;
            return Err(format!("the ticket for volume {volume} does not allow that ({need:?})"));
        }
        let within = need == Access::Snapshots || request.epoch == self.epoch;
        if !within && !planted::is(Bug::AnyEpoch) {
            return Err(format!(
                "the ticket for volume {} is for the session with epoch {}, not {}",
                request.volume, self.epoch, request.epoch
            ));
        }
        Ok(())
    }
}

impl Grants {
    /// Those of a ticket.
    pub(crate) fn of(body: &TicketBody) -> Grants {
        Grants::Only(body.grants.iter().map(|grant| (*grant, body.key)).collect())
    }

    /// Whether a request may be made on the link.
    ///
    /// # Errors
    /// Says in what it exceeds the tickets.
    pub fn permits(&self, request: &Request) -> Result<(), String> {
        let Grants::Only(all) = self else { return Ok(()) };
        let from = all.partition_point(|(grant, _)| grant.volume < request.volume);
        let of_it = all[from..].iter().take_while(|(grant, _)| grant.volume == request.volume);
        let mut outcome = match planted::is(Bug::AnyVolume) {
            true => Ok(()),
            false => Err(format!("no ticket of the link names volume {}", request.volume)),
        };
        for (grant, _) in of_it {
            outcome = grant.permits(request);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Takes one more ticket; it takes the place of one for the same session. Says for whom and what it is.
    ///
    /// # Errors
    /// If it is not good.
    pub fn present(
        &mut self,
        present: &Present,
        proven: Option<&Proven>,
        keys: &Keys,
        cluster: ClusterId,
        now: u64,
    ) -> Result<TicketBody, PresentError> {
        let (Grants::Only(all), Some(proven)) = (self, proven) else {
            return Err(PresentError::Forged("a ticket says nothing on this link".to_owned()));
        };
        let (body, key) = keys.admit(&present.body, cluster, now).map_err(PresentError::Useless)?;
        if !transcript::is_present(&key, &proven.session, &present.body, &present.proof) {
            let text = "it showed a ticket without knowing the ticket's key";
            return Err(PresentError::Forged(text.to_owned()));
        }
        for grant in &body.grants {
            let entry = (*grant, body.key);
            let place = |(grant, _): &(Grant, KeyId)| (grant.volume, grant.epoch);
            match all.binary_search_by_key(&(grant.volume, grant.epoch), place) {
                Ok(at) => all[at] = entry,
                Err(at) if all.len() < SESSIONS_MAX => all.insert(at, entry),
                Err(_) => {
                    let text = format!("{SESSIONS_MAX} sessions are the most of one link");
                    return Err(PresentError::Useless(text));
                }
            }
        }
        Ok(body)
    }

    /// Forgets what tickets of keys say that are accepted no more. Whether anything is left.
    pub fn retain(&mut self, keys: &Keys) -> bool {
        match self {
            Grants::All => true,
            Grants::Only(all) => {
                all.retain(|(_, key)| keys.accepts(*key) || planted::is(Bug::KeyOutlived));
                !all.is_empty()
            }
        }
    }
}

/// What a client needs to be allowed for a request; nothing if no ticket allows it.
fn needed(op: &RequestOp) -> Option<Access> {
    match op {
        RequestOp::Leader => Some(Access::Snapshots),
        RequestOp::Read { snapshot, .. }
        | RequestOp::Extents { snapshot, .. }
        | RequestOp::Changes { snapshot, .. } => match snapshot {
            Some(_) => Some(Access::Snapshots),
            None => Some(Access::Read),
        },
        RequestOp::Fence { .. } => Some(Access::Read),
        RequestOp::Write { .. } | RequestOp::Unmap { .. } => Some(Access::Write),
        RequestOp::Delete { .. }
        | RequestOp::Freeze { .. }
        | RequestOp::CloseGate { .. }
        | RequestOp::OpenGate { .. }
        | RequestOp::DropSnapshot { .. }
        | RequestOp::Revert { .. }
        | RequestOp::Clone { .. }
        | RequestOp::Fill { .. }
        | RequestOp::Detach { .. } => None,
    }
}
