//! The tickets of the volumes that a host serves: asked for, renewed, shown by the reactor.

use anyhow::{Result, anyhow};
use basalt_api::dial::{Cluster, plain};
use basalt_api::error::reason_of;
use basalt_api::v1::{IssueTicketRequest, LinkTicket};
use basalt_link::{LinkAuth, Ticket};
use basalt_node::Mailbox;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tonic::Status;

/// A ticket is renewed this long before it opens no link any more: half of its time.
const RENEW_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600 / 2);

/// What this host may do with the nodes.
pub struct Tickets {
    /// Whether the cluster asks for tickets: it does if it asks who calls.
    secured: bool,
    read_only: bool,
    /// By which secret nodes make tickets, as heard last; 0 if that is not known.
    latest: u64,
    /// By the volume's name; views by theirs, with the snapshot.
    held: BTreeMap<String, Held>,
}

struct Held {
    ticket: Ticket,
    /// To get another one like it.
    request: IssueTicketRequest,
}

impl Tickets {
    /// None yet. Without credentials there are never any.
    pub fn new(secured: bool, read_only: bool) -> Tickets {
        Tickets { secured, read_only, latest: 0, held: BTreeMap::new() }
    }

    /// What the reactor shows.
    pub fn auth(&self) -> LinkAuth {
        match self.secured {
            true => LinkAuth::Tickets(self.held.values().map(|held| held.ticket.clone()).collect()),
            false => LinkAuth::Open,
        }
    }

    /// The reactor may serve a volume, or a view of a snapshot if `epoch` is 0. `given` came with the
    /// attachment; where it does not fit, the cluster is asked for one.
    ///
    /// # Errors
    /// If there is none.
    pub async fn open(
        &mut self,
        (name, host, epoch): (&str, &str, u64),
        given: Option<LinkTicket>,
        cluster: &Cluster,
        mailbox: &Mailbox,
    ) -> Result<()> {
        if !self.secured {
            return Ok(());
        }
        let volume = name.split('@').next().unwrap_or(name);
        let request = IssueTicketRequest {
            name: format!("volumes/{volume}"),
            host: host.to_owned(),
            epoch,
            read_only: self.read_only,
        };
        let given = match given.filter(|_| !self.read_only) {
            Some(given) => given,
            None => ask(cluster, &request)
                .await
                .map_err(|status| anyhow!("no ticket for '{name}': {}", plain(&status)))?,
        };
        let ticket = read(&given).map_err(|e| anyhow!(e))?;
        self.held.insert(name.to_owned(), Held { ticket, request });
        mailbox.auth(self.auth());
        Ok(())
    }

    /// A volume is served no more.
    pub fn close(&mut self, name: &str) {
        self.held.remove(name);
    }

    /// By which secret a node makes tickets.
    pub fn heard(&mut self, key: u64) {
        self.latest = key;
    }

    /// Renews what is due: half of its time is over, or the secret was exchanged.
    pub async fn renew(&mut self, cluster: &Cluster, mailbox: &Mailbox) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let soon = (now + RENEW_BEFORE).as_secs();
        let latest = self.latest;
        let other = |ticket: &Ticket| latest != 0 && ticket.key().0 != latest;
        let mut renewed = false;
        for (name, held) in &mut self.held {
            if held.ticket.expires() > soon && !other(&held.ticket) {
                continue;
            }
            // What is held may be good for long; it is asked for again soon.
            match ask(cluster, &held.request).await {
                Ok(given) => match read(&given) {
                    Ok(ticket) => {
                        renewed |= ticket != held.ticket;
                        held.ticket = ticket;
                    }
                    Err(why) => tracing::warn!(volume = %name, "its new ticket is none: {why}"),
                },
                Err(status) => {
                    tracing::debug!(volume = %name, "its ticket is not renewed: {}", plain(&status));
                    // One that is attached elsewhere by now holds up no other; no answer at all does.
                    if reason_of(&status).is_none() {
                        break;
                    }
                }
            }
        }
        if renewed {
            mailbox.auth(self.auth());
        }
    }
}

async fn ask(cluster: &Cluster, request: &IssueTicketRequest) -> Result<LinkTicket, Status> {
    let asked = cluster.call(|mut client| {
        let request = request.clone();
        async move { client.issue_ticket(request).await }
    });
    asked.await
}

fn read(ticket: &LinkTicket) -> Result<Ticket, String> {
    Ticket::new(ticket.body.clone().into(), &ticket.key)
}
