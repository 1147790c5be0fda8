//! The door's state machine: streams and links on one side, sessions and clients on the other.
//!
//! Everything that one event sets off is carried out before the next one: a request becomes an
//! operation of a client, which may complete at once and so admit the next request. What is to be
//! sent is collected until the end of the turn.

mod cuts;

use super::conns::{Conn, Conns};
use super::exports::{Export, Exports, NewExport, Purpose};
use super::links::Links;
use super::memory::Memory;
use super::{DoorCommand, DoorConfig, DoorError, DoorStatus, ExportEnd, ExportStatus, Host, Reply};
use crate::connection::Connection;
use crate::session::{SessionConfig, Submission, TlsPolicy};
use basalt_client::latency::Histogram;
use basalt_client::trace::Traces;
use basalt_client::{BlockError, BlockOp, BlockResult, ClientEffect, ClientEvent, VolumeConfig};
use basalt_node::{StreamId, TenantEvent};
use basalt_wire::ids::{Epoch, Generation};
use basalt_wire::time::Time;
use basalt_wire::trace::Stage;
use bytes::Bytes;
use cuts::Cuts;
use std::collections::VecDeque;
use std::sync::Arc;

/// The tag of the one operation of a session that changes its volume as a whole.
const CHANGE_TAG: u64 = u64::MAX;

/// Something for an export's client to hear.
type Task = (u64, ClientEvent);

pub(super) struct Core {
    config: DoorConfig,
    session: Arc<SessionConfig>,
    /// The same without a demand for TLS.
    session_exempt: Arc<SessionConfig>,
    exports: Exports,
    cuts: Cuts,
    conns: Conns,
    links: Links,
    memory: Memory,
    tasks: VecDeque<Task>,
    effects: Vec<ClientEffect>,
    submitted: Vec<Submission>,
    output: Vec<Bytes>,
    /// Connections that may have something to send.
    touched: Vec<u32>,
    /// When connections must have chosen their export, in order.
    deadlines: VecDeque<(Time, StreamId)>,
    stopping: bool,
}

impl Core {
    pub fn new(config: DoorConfig) -> Core {
        let session = Arc::new(config.session.clone());
        let mut exempt = config.session.clone();
        if exempt.tls == TlsPolicy::Required {
            exempt.tls = TlsPolicy::Offered;
        }
        let memory = Memory::new(config.memory_max, config.request_time);
        let exports = Exports::new(config.export_connections_max);
        Core {
            config,
            session,
            session_exempt: Arc::new(exempt),
            exports,
            cuts: Cuts::default(),
            conns: Conns::default(),
            links: Links::default(),
            memory,
            tasks: VecDeque::new(),
            effects: Vec::new(),
            submitted: Vec::new(),
            output: Vec::new(),
            touched: Vec::new(),
            deadlines: VecDeque::new(),
            stopping: false,
        }
    }

    pub fn event<H: Host>(&mut self, now: Time, event: TenantEvent, host: &mut H) {
        match event {
            TenantEvent::Accepted { stream, listener } => {
                self.accepted(now, stream, listener, host);
            }
            TenantEvent::Received { stream, bytes } => self.received(stream, bytes),
            TenantEvent::Drained { stream } => self.drained(stream),
            TenantEvent::Closed { stream } => {
                if let Some(conn) = self.conns.remove(stream) {
                    self.memory.release(&conn);
                    if let Some(export) = conn.export.and_then(|id| self.exports.get_mut(id)) {
                        export.connections -= 1;
                    }
                    let reason = conn.connection.session().reason();
                    tracing::debug!(peer = conn.peer, reason, "an NBD connection ended");
                }
            }
            TenantEvent::LinkUp { to, credit_bytes, credit_requests } => {
                for export in self.links.up(to, (credit_bytes, credit_requests)) {
                    let event = ClientEvent::LinkUp { to, credit_bytes, credit_requests };
                    self.tasks.push_back((export, event));
                }
            }
            TenantEvent::LinkDown { to } => {
                for export in self.links.down(to) {
                    self.tasks.push_back((export, ClientEvent::LinkDown { to }));
                }
                self.map_may_be_old();
            }
            TenantEvent::Reply { from, reply } => {
                let tag = (reply.id.0 >> 48) as u16;
                if let Some(export) = self.exports.by_tag(tag) {
                    self.tasks.push_back((export, ClientEvent::Reply { from, reply }));
                }
            }
            TenantEvent::Command(command) => match command.downcast::<DoorCommand>() {
                Ok(command) => self.command(now, *command, host),
                Err(_) => tracing::warn!("a command that is not for an NBD door was dropped"),
            },
            TenantEvent::Stopping => self.stop(),
        }
        self.work(now, host);
    }

    pub fn end_turn<H: Host>(&mut self, now: Time, host: &mut H) {
        self.expire(now);
        self.expire_cuts(now);
        let mut ended = Vec::new();
        for export in self.exports.iter_mut() {
            if export.touched || export.deadline.is_some_and(|at| at <= now) {
                export.client.end_turn(now, &mut self.effects);
                ended.push((export.info.id, std::mem::take(&mut self.effects)));
            }
        }
        for (export, effects) in ended {
            self.carry_out(export, effects, host);
        }
        self.work(now, host);
        for export in self.exports.iter_mut() {
            if std::mem::take(&mut export.touched) || export.deadline.is_some_and(|at| at <= now) {
                export.deadline = export.client.next_deadline();
            }
        }
        self.share(now);
        while !self.touched.is_empty() {
            self.send(now, host);
            self.share(now);
        }
    }

    pub fn next_deadline(&self) -> Option<Time> {
        let clients = self.exports.iter().filter_map(|export| export.deadline);
        let handshakes = self.deadlines.front().map(|(at, _)| *at);
        let others =
            handshakes.into_iter().chain(self.memory.deadline()).chain(self.cuts.deadline());
        clients.chain(others).min()
    }

    pub fn may_stop(&self) -> bool {
        self.conns.len() == 0
    }

    // ---- connections ----

    fn accepted<H: Host>(&mut self, now: Time, stream: StreamId, listener: usize, host: &mut H) {
        if self.stopping || (self.is_full() && !self.evict()) {
            if !self.stopping {
                tracing::warn!(max = self.config.connections_max, "too many NBD connections");
            }
            host.close(stream);
            return;
        }
        let exempt = self.config.tls_exempt.contains(&listener);
        let session = if exempt { &self.session_exempt } else { &self.session };
        let connection = Connection::new(session.clone(), self.config.tls.clone());
        let conn = Conn {
            stream,
            connection,
            peer: host.peer(stream),
            export: None,
            paused: false,
            held: false,
            closing: false,
            touched: false,
            granted: 0,
            starved: false,
            owes_since: None,
        };
        let index = self.conns.add(conn);
        self.touch(index);
        self.deadlines.push_back((now + self.config.handshake_time, stream));
    }

    fn is_full(&self) -> bool {
        let open = self.conns.iter().filter(|conn| !conn.connection.closed());
        open.count() >= self.config.connections_max
    }

    /// Makes room for one more connection. Whoever means it names an export at once, so the one that
    /// negotiates for longest goes; otherwise a few idle connections would keep everybody out. False
    /// if all connections use an export.
    fn evict(&mut self) -> bool {
        for at in 0..self.deadlines.len() {
            let (_, stream) = self.deadlines[at];
            let Some(index) = self.conns.index(stream) else { continue };
            let Some(conn) = self.conns.get_mut(index) else { continue };
            let session = conn.connection.session_mut();
            if session.negotiating() {
                session.close("it named no export yet, and others need its place");
                // Those before it are gone, or have chosen.
                self.deadlines.drain(..=at);
                self.touch(index);
                return true;
            }
        }
        false
    }

    fn received(&mut self, stream: StreamId, bytes: Bytes) {
        let Some(index) = self.conns.index(stream) else {
            return;
        };
        if let Some(conn) = self.conns.get_mut(index) {
            conn.connection.receive(bytes, &self.exports, &mut self.submitted);
            if conn.export.is_none() {
                conn.export = conn.connection.session().export();
                if let Some(export) = conn.export.and_then(|id| self.exports.get_mut(id)) {
                    export.connections += 1;
                }
            }
        }
        self.submit(index);
    }

    fn drained(&mut self, stream: StreamId) {
        let Some(index) = self.conns.index(stream) else {
            return;
        };
        if let Some(conn) = self.conns.get_mut(index)
            && std::mem::take(&mut conn.held)
        {
            let session = conn.connection.session_mut();
            session.hold(false, &self.exports, &mut self.submitted);
        }
        self.submit(index);
    }

    /// Hands on what a connection's session asks for.
    fn submit(&mut self, index: u32) {
        self.touch(index);
        let Some(conn) = self.conns.get_mut(index) else {
            return;
        };
        let export = conn.connection.session().export();
        for Submission { slot, op } in self.submitted.drain(..) {
            let export = export.expect("only a session with an export submits operations");
            let tag = self.conns.tag(index, slot);
            self.tasks.push_back((export, ClientEvent::Submit { tag, op }));
        }
    }

    fn touch(&mut self, index: u32) {
        if let Some(conn) = self.conns.get_mut(index)
            && !std::mem::replace(&mut conn.touched, true)
        {
            self.touched.push(index);
        }
    }

    fn expire(&mut self, now: Time) {
        while let Some((at, stream)) = self.deadlines.front().copied()
            && at <= now
        {
            self.deadlines.pop_front();
            let Some(index) = self.conns.index(stream) else {
                continue;
            };
            if let Some(conn) = self.conns.get_mut(index)
                && conn.connection.session().negotiating()
            {
                conn.connection.session_mut().close("the negotiation took too long");
                self.touch(index);
            }
        }
    }

    /// Cuts off those who keep others waiting, and lets go on who waited for memory.
    fn share(&mut self, now: Time) {
        for index in self.memory.stuck(now, &mut self.conns) {
            if let Some(conn) = self.conns.get_mut(index) {
                conn.connection.session_mut().close("the rest of a request did not come");
            }
            self.touch(index);
        }
        for index in self.memory.fed(&mut self.conns) {
            self.touch(index);
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        for index in self.conns.indexes() {
            if let Some(conn) = self.conns.get_mut(index) {
                conn.connection.session_mut().drain();
            }
            self.touch(index);
        }
    }

    /// Sends what the connections have to say, and sets whether they receive.
    fn send<H: Host>(&mut self, now: Time, host: &mut H) {
        for index in std::mem::take(&mut self.touched) {
            let Some(conn) = self.conns.get_mut(index) else {
                continue;
            };
            conn.touched = false;
            if conn.closing {
                continue;
            }
            conn.connection.take_output(&mut self.output);
            for piece in self.output.drain(..) {
                host.send(conn.stream, piece);
            }
            if conn.connection.closed() {
                // TLS is ended, and what it says last is taken, once the session is over.
                conn.connection.take_output(&mut self.output);
                for piece in self.output.drain(..) {
                    host.send(conn.stream, piece);
                }
                conn.closing = true;
                host.close(conn.stream);
                continue;
            }
            if !conn.held && host.queued(conn.stream) > self.config.output_high {
                conn.held = true;
                let session = conn.connection.session_mut();
                session.hold(true, &self.exports, &mut self.submitted);
            }
            let fed = self.memory.settle(now, index, conn);
            let paused = conn.connection.paused() || !fed;
            if paused != conn.paused {
                conn.paused = paused;
                host.pause(conn.stream, paused);
            }
        }
        debug_assert!(self.submitted.is_empty(), "holding a session submits nothing");
        debug_assert!(self.tasks.is_empty(), "all work was done at {now:?}");
    }

    fn map_may_be_old(&mut self) {
        if let Some(tell) = &mut self.config.on_old_map {
            tell();
        }
    }

    // ---- clients ----

    /// Carries out tasks until none is left.
    fn work<H: Host>(&mut self, now: Time, host: &mut H) {
        while let Some((id, event)) = self.tasks.pop_front() {
            let mut effects = std::mem::take(&mut self.effects);
            match self.exports.get_mut(id) {
                Some(export) => {
                    export.touched = true;
                    export.client.handle(now, event, &mut effects);
                }
                None => {
                    // The export was withdrawn after its session submitted this.
                    if let ClientEvent::Submit { tag, .. } = event {
                        let result = Err(BlockError::Closed);
                        effects.push(ClientEffect::Complete { tag, result });
                    }
                }
            }
            self.carry_out(id, effects, host);
        }
    }

    fn carry_out<H: Host>(&mut self, id: u64, mut effects: Vec<ClientEffect>, host: &mut H) {
        for effect in effects.drain(..) {
            match effect {
                ClientEffect::Send { to, request } => host.request(to, request),
                ClientEffect::Complete { tag, result } => self.completed(id, tag, result, host),
                ClientEffect::Dial { to } => match self.links.dial(id, to) {
                    Some((credit_bytes, credit_requests)) => {
                        let event = ClientEvent::LinkUp { to, credit_bytes, credit_requests };
                        self.tasks.push_back((id, event));
                    }
                    None => host.dial(to),
                },
                ClientEffect::Reset { to } => {
                    for loser in self.links.reset(id, to) {
                        self.tasks.push_back((loser, ClientEvent::LinkDown { to }));
                    }
                    host.reset(to);
                }
                ClientEffect::AskMap => self.map_may_be_old(),
                ClientEffect::Ready => self.ready(id),
                ClientEffect::Lost(error) => self.lost(id, error, host),
            }
        }
        if self.effects.capacity() < effects.capacity() {
            self.effects = effects;
        }
    }

    fn completed<H: Host>(
        &mut self,
        id: u64,
        tag: u64,
        result: Result<BlockResult, BlockError>,
        host: &mut H,
    ) {
        if tag == CHANGE_TAG {
            self.changed(id, result, host);
        } else if let Some((index, slot)) = self.conns.by_tag(tag) {
            if let Some(conn) = self.conns.get_mut(index) {
                conn.connection.complete(slot, result, &mut self.submitted);
            }
            self.submit(index);
        }
    }

    fn ready(&mut self, id: u64) {
        self.exports.keep_leaders(id);
        let Some(export) = self.exports.get_mut(id) else {
            return;
        };
        export.ready = true;
        match &mut export.purpose {
            Purpose::Serve { attached } => {
                if let Some(reply) = attached.take() {
                    reply(Ok(()));
                }
            }
            Purpose::Change { op, .. } => {
                let event = ClientEvent::Submit { tag: CHANGE_TAG, op: op.clone() };
                self.tasks.push_back((id, event));
            }
            Purpose::Cut { cut, place } => {
                let (cut, place) = (*cut, *place);
                self.ask_for_cut(id, cut, place);
            }
        }
    }

    fn lost<H: Host>(&mut self, id: u64, error: BlockError, host: &mut H) {
        let Some(export) = self.withdraw(id) else {
            return;
        };
        let (volume, epoch) = (export.volume, export.epoch);
        match export.purpose {
            Purpose::Change { told: Some(reply), .. } => reply(Err(DoorError::Lost(error))),
            Purpose::Change { told: None, .. } => {}
            Purpose::Cut { cut, .. } => self.cut_answered(cut, &Err(error)),
            Purpose::Serve { attached } => {
                let name = export.info.name.to_string();
                host.notice(true, format!("the export '{name}' was withdrawn: {error}"));
                if let Some(reply) = attached {
                    reply(Err(DoorError::Lost(error)));
                }
                if let Some(tell) = &mut self.config.on_end {
                    tell(ExportEnd { name, volume, epoch, error });
                }
            }
        }
    }

    /// Takes an export away: outstanding requests are answered with ESHUTDOWN, and its connections
    /// are closed.
    fn withdraw(&mut self, id: u64) -> Option<Export> {
        let export = self.exports.remove(id)?;
        self.links.forget(id);
        for index in self.conns.indexes() {
            if let Some(conn) = self.conns.get_mut(index)
                && conn.connection.session().export() == Some(id)
            {
                conn.connection.session_mut().withdraw();
                self.touch(index);
            }
        }
        Some(export)
    }

    // ---- commands ----

    fn command<H: Host>(&mut self, now: Time, command: DoorCommand, host: &mut H) {
        match command {
            DoorCommand::Attach { name, description, read_only, config, view, reply } => {
                if let Err(error) = self.may_attach(&name, &config, view) {
                    return reply(Err(error));
                }
                let old = self.exports.by_name(&name).map(|export| export.info.id);
                if let Some(old) = old.and_then(|id| self.withdraw(id)) {
                    end_session(old);
                }
                let purpose = Purpose::Serve { attached: Some(reply) };
                let new = NewExport { name, description, read_only, config, view, purpose };
                self.begin(now, new, host);
            }
            DoorCommand::Delete { config, reply } => {
                self.begin_change(now, config, (BlockOp::Delete, false), whatever(reply), host);
            }
            DoorCommand::Snapshot { config, drop, reply } => {
                let generation = config.generation;
                let op = match drop {
                    true => BlockOp::DropSnapshot { generation },
                    false => BlockOp::Snapshot { generation },
                };
                self.begin_change(now, config, (op, true), whatever(reply), host);
            }
            DoorCommand::Revert { config, generation, reply } => {
                let op = BlockOp::Revert { generation };
                self.begin_change(now, config, (op, false), whatever(reply), host);
            }
            DoorCommand::Ask { config, op, reply } => {
                self.begin_change(now, config, (op, true), reply, host);
            }
            DoorCommand::Cut { configs, reply } => self.begin_cut(now, configs, reply, host),
            DoorCommand::Detach { name, reply } => {
                let id = self.exports.by_name(&name).map(|export| export.info.id);
                let found = id.and_then(|id| self.withdraw(id));
                reply(match found {
                    Some(export) => {
                        end_session(export);
                        Ok(())
                    }
                    None => Err(DoorError::Unknown(name)),
                });
            }
            DoorCommand::Resize { name, epoch, description, size_bytes, generation, reply } => {
                reply(self.resize(name, epoch, &description, (size_bytes, generation)));
            }
            DoorCommand::Limit { name, epoch, limits, reply } => {
                let found = self.exports.by_name(&name).filter(|export| export.epoch == epoch);
                reply(match found.map(|export| export.info.id) {
                    Some(id) => {
                        self.tasks.push_back((id, ClientEvent::Limit(limits)));
                        Ok(())
                    }
                    None => Err(DoorError::Unknown(name)),
                });
            }
            DoorCommand::Map(map) => {
                let ids: Vec<u64> = self.exports.iter().map(|export| export.info.id).collect();
                for id in ids {
                    self.tasks.push_back((id, ClientEvent::Map(map.clone())));
                }
            }
            DoorCommand::Trace { name, reply } => {
                let found = self.exports.by_name(&name);
                reply(found.map(|export| (export.client.traces().clone(), now)));
            }
            DoorCommand::Status { reply } => reply(self.status()),
        }
    }

    fn may_attach(&self, name: &str, config: &VolumeConfig, view: bool) -> Result<(), DoorError> {
        if name.is_empty() || name.len() > crate::proto::STRING_MAX {
            return Err(DoorError::Name(name.to_owned()));
        }
        if self.stopping {
            return Err(DoorError::Stopping);
        }
        match self.exports.by_name(name) {
            // The same volume under a higher epoch: the old session is over anyway.
            Some(old) if !view && old.volume == config.volume && old.epoch < config.epoch => Ok(()),
            Some(_) => Err(DoorError::Attached(name.to_owned())),
            None if !view && self.exports.is_spent(config.volume, config.epoch) => {
                Err(DoorError::Spent(config.epoch))
            }
            None if self.exports.len() >= self.config.exports_max => {
                Err(DoorError::TooMany(self.config.exports_max))
            }
            None => Ok(()),
        }
    }

    /// A session that does one thing to its volume as a whole, as a view or in the volume's own place.
    fn begin_change<H: Host>(
        &mut self,
        now: Time,
        config: VolumeConfig,
        (op, view): (BlockOp, bool),
        reply: Reply<BlockResult>,
        host: &mut H,
    ) {
        let purpose = Purpose::Change { op, told: Some(reply) };
        let (name, description) = (String::new(), String::new());
        let new = NewExport { name, description, read_only: false, config, view, purpose };
        self.begin(now, new, host);
    }

    fn begin<H: Host>(&mut self, now: Time, new: NewExport, host: &mut H) -> u64 {
        let mut effects = Vec::new();
        let id = self.exports.add(new, now, &mut effects);
        self.carry_out(id, effects, host);
        id
    }

    fn resize(
        &mut self,
        name: String,
        epoch: Epoch,
        description: &str,
        (size_bytes, generation): (u64, Generation),
    ) -> Result<(), DoorError> {
        let found = self.exports.by_name(&name).filter(|export| export.epoch == epoch);
        let id = found.map(|export| export.info.id);
        let Some(export) = id.and_then(|id| self.exports.get_mut(id)) else {
            return Err(DoorError::Unknown(name));
        };
        if size_bytes <= export.info.size {
            return Ok(());
        }
        export.info.size = size_bytes;
        export.info.description = description.into();
        let id = export.info.id;
        self.tasks.push_back((id, ClientEvent::Resize { size_bytes, generation }));
        for index in self.conns.indexes() {
            if let Some(conn) = self.conns.get_mut(index)
                && conn.connection.session().export() == Some(id)
            {
                conn.connection.session_mut().resize(size_bytes);
            }
        }
        Ok(())
    }

    fn changed<H: Host>(&mut self, id: u64, result: Result<BlockResult, BlockError>, host: &mut H) {
        if let Some(Purpose::Cut { cut, .. }) = self.exports.get_mut(id).map(|e| &e.purpose) {
            let cut = *cut;
            return self.cut_answered(cut, &result);
        }
        if let Some(mut export) = self.withdraw(id) {
            if let Purpose::Change { told, .. } = &mut export.purpose
                && let Some(reply) = told.take()
            {
                reply(result.map_err(DoorError::Lost));
            }
            end_session(export);
        } else {
            host.notice(false, "a volume was changed for nobody".to_owned());
        }
    }

    fn status(&self) -> DoorStatus {
        let exports = self.exports.iter().filter(|export| export.served()).map(|export| {
            let id = Some(export.info.id);
            let peers = self.conns.iter().filter(|c| c.connection.session().export() == id);
            ExportStatus {
                name: export.info.name.to_string(),
                volume: export.volume,
                epoch: export.epoch,
                size_bytes: export.info.size,
                read_only: export.info.read_only,
                ready: export.ready,
                connections: peers.map(|conn| conn.peer.clone()).collect(),
                client: export.client.stats(),
                latencies: Box::new(*export.client.latencies()),
                stages: stages_of(export.client.traces()),
            }
        });
        DoorStatus { exports: exports.collect(), connections: self.conns.len() }
    }
}

/// What was traced, by kind and stage.
fn stages_of(traces: &Traces) -> Vec<(&'static str, Stage, Histogram)> {
    let kinds = traces.kinds().into_iter();
    kinds
        .flat_map(|(kind, of)| of.histograms().map(move |(stage, times)| (kind, stage, *times)))
        .collect()
}

/// A reply for whom any good end will do.
fn whatever(reply: Reply<()>) -> Reply<BlockResult> {
    Box::new(move |result| reply(result.map(|_| ())))
}

/// Ends the session with a volume whose export was withdrawn: its requests were answered already.
fn end_session(mut export: Export) {
    if let Purpose::Serve { attached: Some(reply) } = &mut export.purpose {
        let reply: Reply<()> = std::mem::replace(reply, Box::new(|_| {}));
        reply(Err(DoorError::Lost(BlockError::Closed)));
    }
    export.client.close(&mut Vec::new());
}
