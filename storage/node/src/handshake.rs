//! Who is at the other end of a link: the frames before it is open, and what becomes of it when the
//! keys of the cluster are exchanged or a client gets other tickets. What counts is decided by
//! [`basalt_link`]; here its frames are carried.

use crate::conn::{Client, Credit, Role};
use crate::links::State;
use crate::net::{Net, frame_name};
use crate::slab::Handle;
use basalt_link::grants::PresentError;
use basalt_link::{Admission, AfterHello, DialStep, Dialler, LinkAuth, Proven, nonce};
use basalt_wire::codec::DecodeLimits;
use basalt_wire::frame::{
    Frame, Hello, Mac, PROTOCOL_VERSION, Present, Role as HelloRole, Welcome,
};
use basalt_wire::ids::Address;
use basalt_wire::time::Time;
use std::time::SystemTime;

/// Seconds since 1970, by which tickets expire.
fn wall_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Net {
    // ---- links that others dialled ----

    pub(crate) fn on_stranger_frame(&mut self, handle: Handle, frame: Frame, now: Time) {
        let Some(conn) = self.conns.get(handle) else { return };
        let Role::Stranger(acceptor) = &conn.role else { return };
        match (acceptor.awaits_proof(), frame) {
            (false, Frame::Hello(hello)) => self.on_hello(handle, hello, now),
            (true, Frame::Proof(proof)) => self.on_proof(handle, &proof, now),
            (false, other) => {
                let text = format!("it began with a {} instead of a Hello", frame_name(&other));
                self.fail(handle, &text, now);
            }
            (true, other) => {
                let text = format!("it sent a {} instead of a Proof", frame_name(&other));
                self.fail(handle, &text, now);
            }
        }
    }

    fn on_hello(&mut self, handle: Handle, hello: Hello, now: Time) {
        if let Err(reason) = self.judge(&hello) {
            return self.refuse(handle, reason, now);
        }
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Stranger(acceptor) = &mut conn.role else { return };
        match acceptor.hello(hello, &self.auth, nonce(), wall_clock()) {
            AfterHello::Challenge(challenge) => self.queue(handle, &Frame::Challenge(challenge)),
            AfterHello::Refuse(reason) => self.refuse(handle, reason, now),
            AfterHello::Admit(admission) => {
                let welcome = self.welcome(String::new());
                self.admit(handle, admission, welcome, now);
            }
        }
    }

    fn on_proof(&mut self, handle: Handle, proof: &Mac, now: Time) {
        let welcome = self.welcome(String::new());
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Stranger(acceptor) = &mut conn.role else { return };
        let admitted = acceptor.proof(proof, welcome).and_then(|(admission, welcome)| {
            // Routes, the shard and the accepted secrets may be others than when it was asked.
            self.judge(&admission.hello)?;
            self.still_counts(admission.proven.as_ref())?;
            Ok((admission, welcome))
        });
        match admitted {
            Ok((admission, welcome)) => self.admit(handle, admission, welcome, now),
            Err(reason) => self.refuse(handle, reason, now),
        }
    }

    fn admit(&mut self, handle: Handle, admission: Admission, welcome: Welcome, now: Time) {
        let Admission { hello, grants, proven } = admission;
        let (role, limits) = match hello.role {
            HelloRole::Peer { from, .. } => {
                self.replace_peer(from, now);
                (Role::Peer { from }, DecodeLimits::PEER)
            }
            HelloRole::Client { name } => {
                let (credit, exceeded) = (Credit::default(), false);
                (Role::Client(Client { name, grants, exceeded, credit }), DecodeLimits::CLIENT)
            }
        };
        let Some(conn) = self.conns.get_mut(handle) else { return };
        conn.rx.decoder.set_limits(limits);
        conn.role = role;
        conn.proven = proven;
        conn.deadline = None;
        self.strangers -= 1;
        self.queue(handle, &Frame::Welcome(welcome));
        tracing::info!(reactor = %self.identity.name, "{}: open", self.describe(handle));
        self.want_tick();
    }

    /// Whether a link may be opened.
    fn judge(&self, hello: &Hello) -> Result<(), String> {
        let identity = &self.identity;
        if hello.version != PROTOCOL_VERSION {
            return Err(format!(
                "protocol version {} is not spoken here, version {PROTOCOL_VERSION} is: run releases \
                 that fit on both sides",
                hello.version
            ));
        }
        if hello.cluster != identity.cluster {
            return Err("this node belongs to another cluster".into());
        }
        if self.stopping {
            return Err("this node is stopping".into());
        }
        match identity.address {
            Some(own) if own == hello.target => {}
            Some(own) => {
                return Err(format!(
                    "this is node {} shard {}, not node {} shard {}",
                    own.node, own.shard, hello.target.node, hello.target.shard
                ));
            }
            None => return Err("there is no shard here".into()),
        }
        match &hello.role {
            HelloRole::Peer { from, .. } if Some(*from) == identity.address => {
                Err("a peer has this node's own address".into())
            }
            HelloRole::Peer { from, .. } if !self.routes.contains_key(from) => {
                Err(format!("node {} shard {} is not known here", from.node, from.shard))
            }
            HelloRole::Client { .. } if !self.serving => Err("the shard is closed".into()),
            _ => Ok(()),
        }
    }

    fn welcome(&self, refusal: String) -> Welcome {
        // A reactor without a shard refuses every link; what it says about itself is never used.
        let nobody = Address { node: basalt_wire::ids::NodeId(1), shard: Default::default() };
        Welcome {
            version: PROTOCOL_VERSION,
            from: self.identity.address.unwrap_or(nobody),
            boot: self.identity.boot,
            credit_bytes: self.limits.credit_bytes,
            credit_requests: self.limits.credit_requests,
            refusal,
            proof: None,
        }
    }

    fn refuse(&mut self, handle: Handle, reason: String, now: Time) {
        let line = format!("{}: refused: {reason}", self.describe(handle));
        self.remember(line);
        let welcome = self.welcome(reason);
        self.queue(handle, &Frame::Welcome(welcome));
        self.close_after_flush(handle, now);
    }

    /// A peer that dials again has lost its old link, whether or not we have noticed; and it lives,
    /// so it is worth dialling at once.
    fn replace_peer(&mut self, from: Address, now: Time) {
        let old: Vec<Handle> = self
            .conns
            .iter()
            .filter(|(_, conn)| matches!(conn.role, Role::Peer { from: peer } if peer == from))
            .map(|(handle, _)| handle)
            .collect();
        for handle in old {
            self.lost(handle, "replaced by a newer link", now);
        }
        self.hurry_peer(from, now);
    }

    // ---- links that this reactor dials ----

    /// The first frame of a link that is connected.
    ///
    /// # Errors
    /// If there is nothing to show.
    pub(crate) fn greet(
        &mut self,
        handle: Handle,
        to: Address,
        role: HelloRole,
    ) -> Result<(), String> {
        let cluster = self.identity.cluster;
        let (dialler, hello) = Dialler::start(&self.auth, cluster, to, role, nonce())?;
        if let Some(conn) = self.conns.get_mut(handle) {
            conn.dialler = Some(Box::new(dialler));
        }
        self.queue(handle, &Frame::Hello(hello));
        Ok(())
    }

    /// A frame on a link that is not open yet.
    pub(crate) fn on_dialling_frame(
        &mut self,
        handle: Handle,
        number: usize,
        frame: Frame,
        now: Time,
    ) {
        let name = frame_name(&frame);
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Some(dialler) = &mut conn.dialler else { return };
        match dialler.receive(frame) {
            DialStep::Send(frame) => self.queue(handle, &frame),
            DialStep::Refused(reason) => self.refused(handle, number, &reason, now),
            DialStep::Unexpected => {
                let text = format!("it may not send a {name} now");
                self.fail(handle, &text, now);
            }
            DialStep::Open(welcome, proven) => {
                if let Err(reason) = self.still_counts(proven.as_ref()) {
                    return self.lost(handle, &reason, now);
                }
                let Some(conn) = self.conns.get_mut(handle) else { return };
                (conn.dialler, conn.proven) = (None, proven);
                // Before any request: those of other volumes follow at once.
                self.show_tickets(handle);
                self.on_welcome(handle, number, &welcome, now);
            }
        }
    }

    /// Shows all tickets on a link; the one that opened it does no harm.
    fn show_tickets(&mut self, handle: Handle) {
        let Some(proven) = self.conns.get(handle).and_then(|conn| conn.proven.as_ref()) else {
            return;
        };
        let LinkAuth::Tickets(tickets) = &self.auth else { return };
        let shown: Vec<Present> = tickets.iter().map(|ticket| proven.present(ticket)).collect();
        for present in shown {
            self.queue(handle, &Frame::Present(present));
        }
    }

    // ---- what changes ----

    /// A client shows one more ticket.
    pub(crate) fn on_present(&mut self, handle: Handle, present: &Present, now: Time) {
        let cluster = self.identity.cluster;
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Client(client) = &mut conn.role else { return };
        let shown = match &self.auth {
            LinkAuth::Secret(keys) => {
                let proven = conn.proven.as_ref();
                client.grants.present(present, proven, keys, cluster, wall_clock())
            }
            _ => Err(PresentError::Forged("this node knows no tickets".to_owned())),
        };
        match shown {
            Ok(_) => client.exceeded = false,
            Err(PresentError::Useless(why)) => {
                let line = format!("{}: a ticket is not taken: {why}", self.describe(handle));
                self.tell_operator(line);
            }
            Err(PresentError::Forged(why)) => self.fail(handle, &why, now),
        }
    }

    /// Takes other keys or tickets.
    pub(crate) fn set_auth(&mut self, auth: LinkAuth, now: Time) {
        self.auth = auth;
        let mut over = Vec::new();
        let mut standing = Vec::new();
        for (handle, conn) in self.conns.iter_mut() {
            let Some(proven) = &conn.proven else { continue };
            match (&self.auth, &mut conn.role) {
                // The other end has looked at the tickets, and looks at them again.
                (LinkAuth::Secret(keys), Role::Client(client)) if proven.by_ticket => {
                    let any = client.grants.retain(keys);
                    over.extend((!any).then_some(handle));
                }
                (LinkAuth::Secret(keys), _) if !keys.accepts(proven.key) => over.push(handle),
                (LinkAuth::Tickets(_), Role::Dialled { .. }) => standing.push(handle),
                _ => {}
            }
        }
        for handle in over {
            self.lost(handle, "the secret by which it was opened is accepted no more", now);
        }
        for handle in standing {
            self.show_tickets(handle);
        }
        self.dial_with_new_auth(now);
    }

    /// Whether what was proven is still accepted.
    fn still_counts(&self, proven: Option<&Proven>) -> Result<(), String> {
        match (&self.auth, proven) {
            (LinkAuth::Secret(keys), Some(proven)) if !keys.accepts(proven.key) => {
                Err("its secret is accepted no more".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Links that were refused are worth another try at once.
    fn dial_with_new_auth(&mut self, now: Time) {
        for number in 0..self.links.len() {
            if self.links[number].state == State::Waiting {
                self.dial_now(number, now);
            }
        }
    }
}
