//! Planted bugs: how the tests prove that they would notice.
//!
//! Only the tests of this crate contain them: elsewhere [`is`] is the constant `false`.

/// A known way to be wrong, switched on to see that a test catches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The proof of the side that dialled is not compared.
    DiallerUnproven,
    /// The proof of the side that answered is not compared.
    AcceptorUnproven,
    /// The nonce of the side that answers is not in what is proven.
    NonceLeftOut,
    /// What a ticket says is not in its key.
    TicketUnbound,
    /// The expiry of a ticket is not looked at.
    Everlasting,
    /// A ticket of another cluster is taken.
    AnyCluster,
    /// A ticket opens a link as a peer.
    TicketOpensPeer,
    /// A further ticket is not bound to its link.
    PresentUnbound,
    /// A volume that stands in no ticket is allowed.
    AnyVolume,
    /// The epoch of a request is not compared with that of the ticket.
    AnyEpoch,
    /// A ticket that only reads is good for writing.
    ReaderWrites,
    /// Links of a secret that is accepted no more go on.
    KeyOutlived,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 12] = [
        Bug::DiallerUnproven,
        Bug::AcceptorUnproven,
        Bug::NonceLeftOut,
        Bug::TicketUnbound,
        Bug::Everlasting,
        Bug::AnyCluster,
        Bug::TicketOpensPeer,
        Bug::PresentUnbound,
        Bug::AnyVolume,
        Bug::AnyEpoch,
        Bug::ReaderWrites,
        Bug::KeyOutlived,
    ];
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether a bug is planted.
#[cfg(test)]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a bug is planted: never.
#[cfg(not(test))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

/// Plants a bug in this thread, or none.
#[cfg(test)]
pub(crate) fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
