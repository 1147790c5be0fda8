//! One NBD connection as a state machine: bytes in, operations out; results in, bytes out.

use crate::export::Catalog;
use crate::handshake::{Handshake, Step};
use crate::input::Input;
use crate::output::Output;
use crate::transmission::Transmission;
use basalt_client::{BlockError, BlockOp, BlockResult};
use bytes::Bytes;
use std::sync::Arc;

/// Answers that may wait while a client negotiates: one that asks on without reading is cut off.
const NEGOTIATION_OUTPUT_MAX: usize = 16 << 20;

/// How a server treats TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// No TLS.
    #[default]
    Off,
    /// A client may start it; exports marked as such demand it.
    Offered,
    /// Nothing is told or served without it.
    Required,
}

/// Bounds and properties common to all connections of a server.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// How TLS is treated.
    pub tls: TlsPolicy,
    /// Smallest unit of a request that is advertised.
    pub min_block: u32,
    /// Unit that is served best.
    pub preferred_block: u32,
    /// Longest data of one request.
    pub max_payload: u32,
    /// Requests of one connection that may be outstanding.
    pub requests_max: usize,
    /// Data of one connection's outstanding requests. One request may always be outstanding.
    pub in_flight_max: usize,
    /// The longest range of one unmap or of one question for extents.
    pub range_max: u64,
}

impl Default for SessionConfig {
    fn default() -> SessionConfig {
        SessionConfig {
            tls: TlsPolicy::Off,
            min_block: 512,
            preferred_block: 4096,
            max_payload: 32 << 20,
            requests_max: 1024,
            in_flight_max: 64 << 20,
            range_max: 1 << 30,
        }
    }
}

/// An operation that a session asks for, to be answered by [`Session::complete`] with its slot.
#[derive(Debug)]
pub struct Submission {
    /// Names the request within the connection until it is completed.
    pub slot: u32,
    /// What to do.
    pub op: BlockOp,
}

enum Phase {
    Handshake(Handshake),
    /// The client was told to start TLS.
    StartTls(Handshake),
    Transmission(Box<Transmission>),
    Closed,
}

/// One connection.
pub struct Session {
    config: Arc<SessionConfig>,
    phase: Phase,
    input: Input,
    output: Output,
    held: bool,
    reason: &'static str,
}

impl Session {
    /// A new connection; its greeting is in the output.
    pub fn new(config: Arc<SessionConfig>) -> Session {
        let mut output = Output::default();
        let handshake = Handshake::new(config.tls, &mut output);
        Session {
            config,
            phase: Phase::Handshake(handshake),
            input: Input::default(),
            output,
            held: false,
            reason: "",
        }
    }

    /// Bytes arrived.
    pub fn receive(&mut self, bytes: Bytes, catalog: &dyn Catalog, out: &mut Vec<Submission>) {
        if !self.closing() {
            self.input.push(bytes);
            self.go_on(catalog, out);
            self.input.let_go();
        }
    }

    /// An operation ended. Unknown slots are ignored, for the connection may have been cut short.
    pub fn complete(
        &mut self,
        slot: u32,
        result: Result<BlockResult, BlockError>,
        out: &mut Vec<Submission>,
    ) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.complete(slot, result, &mut self.output, out);
            self.serve(out);
        }
    }

    /// Whether the driver should stop receiving, until a completion or [`Session::hold`] changes it.
    pub fn paused(&self) -> bool {
        self.held
            || match &self.phase {
                Phase::Transmission(transmission) => transmission.paused(),
                Phase::Handshake(_) | Phase::StartTls(_) | Phase::Closed => false,
            }
    }

    /// Stops (or goes on) taking requests, because the client does not take its replies.
    pub fn hold(&mut self, held: bool, catalog: &dyn Catalog, out: &mut Vec<Submission>) {
        self.held = held;
        if !held {
            self.go_on(catalog, out);
        }
    }

    /// Moves what is to be sent into `into`, in order.
    pub fn take_output(&mut self, into: &mut Vec<Bytes>) {
        self.output.take(into);
    }

    /// Bytes waiting in the output.
    pub fn output_len(&self) -> usize {
        self.output.len()
    }

    /// The export that the client chose: [`crate::ExportInfo::id`].
    pub fn export(&self) -> Option<u64> {
        match &self.phase {
            Phase::Transmission(transmission) => Some(transmission.export().id),
            Phase::Handshake(_) | Phase::StartTls(_) | Phase::Closed => None,
        }
    }

    /// Whether the client is still negotiating (and the driver's deadline for it counts).
    pub fn negotiating(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_) | Phase::StartTls(_))
    }

    /// Whether everything was said: send the output, then close.
    pub fn closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Why the session ended; empty if the client ended it properly.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// Requests that are not answered yet.
    pub fn outstanding(&self) -> usize {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.outstanding(),
            Phase::Handshake(_) | Phase::StartTls(_) | Phase::Closed => 0,
        }
    }

    /// Data of a request that has arrived only in part: how long it will be.
    pub fn awaited(&self) -> usize {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.awaited(),
            Phase::Handshake(_) | Phase::StartTls(_) | Phase::Closed => 0,
        }
    }

    /// Data of the requests that are not answered yet.
    pub fn in_flight(&self) -> usize {
        match &self.phase {
            Phase::Transmission(transmission) => transmission.in_flight(),
            Phase::Handshake(_) | Phase::StartTls(_) | Phase::Closed => 0,
        }
    }

    /// The volume's size changed. Later requests are held against it.
    pub fn resize(&mut self, size: u64) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.resize(size);
        }
    }

    /// The export is gone: outstanding requests are answered with ESHUTDOWN, and the session ends.
    pub fn withdraw(&mut self) {
        if let Phase::Transmission(transmission) = &mut self.phase {
            transmission.withdraw(&mut self.output);
        }
        self.close("the export was withdrawn");
    }

    /// The server is stopping: nothing more is taken, and the session ends when all is answered.
    pub fn drain(&mut self) {
        match &mut self.phase {
            Phase::Transmission(transmission) if transmission.outstanding() > 0 => {
                transmission.drain("the server is stopping");
                self.input.clear();
            }
            _ => self.close("the server is stopping"),
        }
    }

    /// Whether the client is about to start TLS: the output is to be sent in clear text, and
    /// everything after it goes through TLS; then call [`Session::tls_started`].
    pub fn starting_tls(&self) -> bool {
        matches!(self.phase, Phase::StartTls(_))
    }

    /// TLS is on from here.
    pub fn tls_started(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::StartTls(mut handshake) => {
                handshake.tls_started();
                Phase::Handshake(handshake)
            }
            other => other,
        };
    }

    /// Ends the session for a reason of the driver's, such as a deadline.
    pub fn close(&mut self, reason: &'static str) {
        self.phase = Phase::Closed;
        self.reason = reason;
        self.input.clear();
    }

    fn closing(&self) -> bool {
        match &self.phase {
            Phase::Closed => true,
            Phase::Transmission(transmission) => transmission.draining(),
            Phase::Handshake(_) | Phase::StartTls(_) => false,
        }
    }

    fn go_on(&mut self, catalog: &dyn Catalog, out: &mut Vec<Submission>) {
        while let Phase::Handshake(handshake) = &mut self.phase {
            if self.held {
                return;
            }
            if self.output.len() > NEGOTIATION_OUTPUT_MAX {
                return self.close("more is asked than read while negotiating");
            }
            match handshake.step(&self.config, catalog, &mut self.input, &mut self.output) {
                Step::Wait => return,
                Step::Again => {}
                Step::Close(reason) => return self.close(reason),
                Step::Enter(agreed) => {
                    let transmission = Transmission::new(self.config.clone(), *agreed);
                    self.phase = Phase::Transmission(Box::new(transmission));
                }
                Step::StartTls => {
                    if self.input.len() > 0 {
                        // What came in clear text must never count as said under TLS.
                        return self.close("bytes in clear text after STARTTLS");
                    }
                    if let Phase::Handshake(handshake) =
                        std::mem::replace(&mut self.phase, Phase::Closed)
                    {
                        self.phase = Phase::StartTls(handshake);
                    }
                    return;
                }
            }
        }
        if let Phase::StartTls(_) = self.phase {
            return self.close("bytes in clear text after STARTTLS");
        }
        self.serve(out);
    }

    fn serve(&mut self, out: &mut Vec<Submission>) {
        let Phase::Transmission(transmission) = &mut self.phase else {
            return;
        };
        if !self.held {
            transmission.parse(&mut self.input, &mut self.output, out);
        }
        if transmission.draining() {
            self.input.clear();
            if transmission.outstanding() == 0 {
                let reason = transmission.reason();
                self.close(reason);
            }
        }
    }
}

#[cfg(test)]
mod tests;
