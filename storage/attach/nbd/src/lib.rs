//! The NBD front door: protocol sessions over a volume client.
//!
//! [`Session`] is one connection as a state machine without I/O, [`Connection`] is the same behind
//! optional TLS. [`NbdDoor`] is the tenant of a reactor that puts them
//! behind its listening sockets and before volume clients. The export name is the volume's name.

mod connection;
mod door;
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
pub use door::{
    DoorCommand, DoorConfig, DoorError, DoorStatus, ExportEnd, ExportStatus, NbdDoor, Reply,
};
pub use export::{Catalog, ExportInfo};
pub use session::{Session, SessionConfig, Submission, TlsPolicy};
pub use tls::{TlsError, TlsFiles, TlsServer, TlsSupply};
