//! The NBD front door: protocol sessions over a volume client.
//!
//! [`Session`] is one connection as a state machine without I/O, [`Connection`] is the same behind
//! optional TLS. The export name is the volume's name.

mod connection;
mod export;
mod handshake;
mod input;
mod output;
mod proto;
mod reply;
mod session;
mod tls;
mod transmission;

pub mod activation;

pub use connection::Connection;
pub use export::{Catalog, ExportInfo};
pub use session::{Session, SessionConfig, Submission, TlsPolicy};
pub use tls::{TlsError, TlsFiles, TlsServer};

