//! Who may open a link of the data path, and what a client may ask for on it.
//!
//! Nothing here does I/O: the state machines take frames, nonces and the time, and say what to send. A reactor
//! carries the bytes.
//!
//! * [`key`]: the keys that follow from the cluster's secret;
//! * [`ticket`]: what the control plane gives a client, so that it needs no secret;
//! * [`handshake`]: challenge and response, as the side that dials and as the side that answers;
//! * [`grants`]: what the tickets of a link allow.
//!
//! Both sides draw a nonce, and each proves by an HMAC-SHA256 over everything that was said that it knows the
//! key. The side that dials goes first, so that a stranger makes the other one compute nothing. Which
//! bytes are authenticated, and what an attacker can do all the same, stands in `docs/wire.md`.

pub mod grants;
pub mod handshake;
pub mod key;
pub mod planted;
#[cfg(test)]
mod tests;
pub mod ticket;
mod transcript;

pub use grants::Grants;
pub use handshake::{Acceptor, Admission, AfterHello, DialStep, Dialler, Proven};
pub use key::{KeyId, Keys, nonce};
pub use ticket::{Access, Grant, Ticket, TicketBody};

/// What a reactor shows on its links, and asks of others.
#[derive(Clone, Debug, Default)]
pub enum LinkAuth {
    /// Nothing, of a cluster without a secret.
    #[default]
    Open,
    /// The keys of the cluster's secret: those of a node.
    Secret(Keys),
    /// Tickets, those of a client. Without any it opens no link yet.
    Tickets(Vec<Ticket>),
}
