//! Tickets: what the control plane gives a client, so that it opens links without the cluster's secret.
//!
//! A ticket says whose it is, until when, and which volumes it is good for. It has a key, which follows from what
//! it says and from a key of the cluster, so that every node can tell without asking anybody whether the
//! client was given it. The ticket itself is shown openly; the key never travels on a link.

use crate::key::{Key, KeyId, Keys, hmac_key, mac};
use crate::planted::{self, Bug};
use basalt_wire::codec::{CLIENT_NAME_BYTES_MAX, TICKET_BYTES_MAX};
use basalt_wire::ids::{ClusterId, Epoch, VolumeId};
use bytes::{BufMut, Bytes, BytesMut};
use ring::hmac;
use std::fmt;

/// Version of what a ticket looks like.
const VERSION: u8 = 1;
/// Bytes before the client's name, and of each grant.
const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 1;
const GRANT_BYTES: usize = 8 + 8 + 1;
/// Volumes of one ticket; a client with more has several.
pub const GRANTS_MAX: usize = 24;

const _: () =
    assert!(HEAD_BYTES + CLIENT_NAME_BYTES_MAX + 1 + GRANTS_MAX * GRANT_BYTES <= TICKET_BYTES_MAX);

/// What a client may do with a volume. Each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read its snapshots.
    Snapshots = 1,
    /// Read it in a session.
    Read = 2,
    /// Write to it in a session.
    Write = 3,
}

/// What a ticket allows for one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The volume.
    pub volume: VolumeId,
    /// The session: a ticket is worth nothing any more once another one has the volume. 0 where there is none.
    pub epoch: Epoch,
    /// What may be done.
    pub access: Access,
}

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketBody {
    /// The cluster.
    pub cluster: ClusterId,
    /// By which key it was made.
    pub key: KeyId,
    /// Until when it opens links, in seconds since 1970. A link that stands may go on.
    pub expires: u64,
    /// Who was given it.
    pub client: String,
    /// What it allows, in the order of the volumes.
    pub grants: Vec<Grant>,
}

impl TicketBody {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(TICKET_BYTES_MAX);
        out.put_u8(VERSION);
        out.put_u64_le(self.cluster.0);
        out.put_u64_le(self.key.0);
        out.put_u64_le(self.expires);
        out.put_u8(self.client.len() as u8);
        out.extend_from_slice(self.client.as_bytes());
        out.put_u8(self.grants.len() as u8);
        for grant in &self.grants {
            out.put_u64_le(grant.volume.0);
            out.put_u64_le(grant.epoch.0);
            out.put_u8(grant.access as u8);
        }
        out.freeze()
    }

    /// Reads a ticket. Whether it is to be believed is not asked here.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> Result<TicketBody, String> {
        read(bytes).ok_or_else(|| "it is no ticket of this release".to_owned())
    }

    fn check(&self) -> Result<(), String> {
        let rising = self.grants.windows(2).all(|pair| pair[0].volume < pair[1].volume);
        let few = (1..=GRANTS_MAX).contains(&self.grants.len());
        match rising && few && self.client.len() <= CLIENT_NAME_BYTES_MAX {
            true => Ok(()),
            false => Err(format!(
                "a ticket is for 1 to {GRANTS_MAX} volumes, each once, and a name of \
                 {CLIENT_NAME_BYTES_MAX} bytes"
            )),
        }
    }
}

fn read(bytes: &[u8]) -> Option<TicketBody> {
    let mut rest = bytes;
    let mut take = |len: usize| {
        let (taken, left) = rest.split_at_checked(len)?;
        rest = left;
        Some(taken)
    };
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    if take(1)? != [VERSION] {
        return None;
    }
    let cluster = ClusterId(number(take(8)?)?);
    let key = KeyId(number(take(8)?)?);
    let expires = number(take(8)?)?;
    let len = usize::from(take(1)?[0]);
    let client = std::str::from_utf8(take(len)?).ok()?.to_owned();
    let count = usize::from(take(1)?[0]);
    let mut grants = Vec::with_capacity(count.min(GRANTS_MAX));
    for _ in 0..count {
        let (volume, epoch) = (VolumeId(number(take(8)?)?), Epoch(number(take(8)?)?));
        let access = match take(1)?[0] {
            1 => Access::Snapshots,
            2 => Access::Read,
            3 => Access::Write,
            _ => return None,
        };
        grants.push(Grant { volume, epoch, access });
    }
    let body = TicketBody { cluster, key, expires, client, grants };
    (rest.is_empty() && body.check().is_ok()).then_some(body)
}

/// A ticket with its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    body: Bytes,
    secret: [u8; 32],
    expires: u64,
    key: KeyId,
}

impl Ticket {
    /// As a client was given it.
    ///
    /// # Errors
    /// If it is none.
    pub fn new(body: Bytes, secret: &[u8]) -> Result<Ticket, String> {
        let secret = *secret
            .first_chunk()
            .filter(|_| secret.len() == 32)
            .ok_or_else(|| format!("the key of a ticket has 32 bytes, not {}", secret.len()))?;
        let TicketBody { expires, key, .. } = TicketBody::parse(&body)?;
        Ok(Ticket { body, secret, expires, key })
    }

    /// What is shown.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Its key, to be kept.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Until when it opens links, in seconds since 1970.
    pub fn expires(&self) -> u64 {
        self.expires
    }

    /// By which key of the cluster it was made.
    pub fn key(&self) -> KeyId {
        self.key
    }

    pub(crate) fn proofs(&self) -> hmac::Key {
        hmac_key(&self.secret)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).field("expires", &self.expires).finish()
    }
}

impl Keys {
    /// Makes a ticket by the first key. The grants need not be in order.
    ///
    /// # Errors
    /// If there are too many grants, or several for one volume, or the name is too long.
    pub fn issue(
        &self,
        cluster: ClusterId,
        client: &str,
        mut grants: Vec<Grant>,
        expires: u64,
    ) -> Result<Ticket, String> {
        let (key, client) = (self.first(), client.to_owned());
        grants.sort_unstable_by_key(|grant| grant.volume);
        let body = TicketBody { cluster, key: key.id, expires, client, grants };
        body.check()?;
        let body = body.encode();
        let secret = secret_of(key, &body);
        Ok(Ticket { body, secret, expires, key: key.id })
    }

    /// What a ticket says, and by which key its holder proves to have been given it.
    ///
    /// # Errors
    /// Says why it opens no link.
    pub(crate) fn admit(
        &self,
        body: &[u8],
        cluster: ClusterId,
        now: u64,
    ) -> Result<(TicketBody, hmac::Key), String> {
        let read = TicketBody::parse(body)?;
        if read.cluster != cluster && !planted::is(Bug::AnyCluster) {
            return Err("the ticket is for another cluster".to_owned());
        }
        let key = self.find(read.key).ok_or_else(|| {
            "the ticket was made by a secret that is not accepted here (any more); attach the volume anew"
                .to_owned()
        })?;
        if now >= read.expires && !planted::is(Bug::Everlasting) {
            let why = "the ticket has expired; attach the volume anew, or compare the clocks";
            return Err(why.to_owned());
        }
        let proofs = hmac_key(&secret_of(key, body));
        Ok((read, proofs))
    }
}

fn secret_of(key: &Key, body: &[u8]) -> [u8; 32] {
    let body = if planted::is(Bug::TicketUnbound) { &body[..1] } else { body };
    mac(&key.tickets, &[body])
}
