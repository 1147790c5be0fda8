//! What a server offers.

use std::sync::Arc;

/// One export, as a session needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The driver's number for it; handed back by [`crate::Session::export`].
    pub id: u64,
    /// Its name: the volume's.
    pub name: Arc<str>,
    /// One line for people, empty if there is none.
    pub description: Arc<str>,
    /// Bytes.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether it is shown and served over TLS only.
    pub tls_only: bool,
    /// Whether it has all the connections that it may have.
    pub full: bool,
}

/// The exports of a server, looked up while a client negotiates.
pub trait Catalog {
    /// The export of that name. The empty name asks for the default export.
    fn find(&self, name: &str) -> Option<ExportInfo>;
    /// Every export, in the order in which they are listed.
    fn each(&self, visit: &mut dyn FnMut(&ExportInfo));
}
