//! A session with the TLS that its client may start: what a driver puts behind a socket.

use crate::export::Catalog;
use crate::session::{Session, SessionConfig, Submission};
use crate::tls::{TlsServer, TlsStream};
use basalt_client::{BlockError, BlockResult};
use bytes::Bytes;
use std::sync::Arc;

/// One connection: bytes as they are on the wire.
///
/// After every call the driver sends what [`Connection::take_output`] gives, closes the socket once
/// [`Connection::closed`], and stops receiving as long as [`Connection::paused`].
pub struct Connection {
    session: Session,
    server: Option<Arc<TlsServer>>,
    tls: Option<Box<TlsStream>>,
    ended: bool,
}

impl Connection {
    /// A new connection. `tls` must be there if the policy of `config` is not off.
    pub fn new(config: Arc<SessionConfig>, tls: Option<Arc<TlsServer>>) -> Connection {
        Connection { session: Session::new(config), server: tls, tls: None, ended: false }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The session, to complete, hold, resize or withdraw it.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Bytes came from the socket.
    pub fn receive(&mut self, bytes: Bytes, catalog: &dyn Catalog, out: &mut Vec<Submission>) {
        let Some(tls) = &mut self.tls else {
            return self.session.receive(bytes, catalog, out);
        };
        let mut plain = Vec::new();
        let received = tls.receive(&bytes, &mut plain);
        for piece in plain {
            self.session.receive(piece, catalog, out);
        }
        if received.is_err() {
            self.session.close("TLS ended or was violated");
        }
    }

    /// An operation ended.
    pub fn complete(
        &mut self,
        slot: u32,
        result: Result<BlockResult, BlockError>,
        out: &mut Vec<Submission>,
    ) {
        self.session.complete(slot, result, out);
    }

    /// Appends what is to be sent, in order.
    pub fn take_output(&mut self, into: &mut Vec<Bytes>) {
        match &mut self.tls {
            None => self.session.take_output(into),
            Some(tls) => {
                let mut plain = Vec::new();
                self.session.take_output(&mut plain);
                tls.send(&plain);
                if self.session.closed() && !self.ended {
                    self.ended = true;
                    tls.end();
                }
                tls.take_output(into);
            }
        }
        if self.session.starting_tls() {
            match self.server.as_ref().map(|server| server.accept()) {
                Some(Ok(tls)) => {
                    self.tls = Some(Box::new(tls));
                    self.session.tls_started();
                }
                Some(Err(error)) => {
                    tracing::warn!("TLS was asked for and failed: {error}");
                    self.session.close("TLS can not be started");
                }
                None => self.session.close("TLS is offered without a certificate"),
            }
        }
    }

    /// Whether the driver should stop receiving for now.
    pub fn paused(&self) -> bool {
        self.session.paused()
    }

    /// Whether the socket is to be closed once the output is sent.
    pub fn closed(&self) -> bool {
        self.session.closed()
    }
}
