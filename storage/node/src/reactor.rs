//! The reactor: one thread that steps a shard and tenants, and does their I/O on one ring.
//!
//! A turn: wait for completions; hand what arrived to the shard and the tenants; end their turns;
//! carry out the shard's effects; start one send for each connection that has something queued. All
//! of the next turn's operations reach the kernel in the system call that waits for it.

use crate::accept::Listener;
use crate::checkpoints::Checkpoints;
use crate::config::{NodeError, Notices, Polling, ReactorConfig};
use crate::handle::Mail;
use crate::host::Host;
use crate::memory;
use crate::net::{Identity, Net, NetEvent};
use crate::polling::Spinner;
use crate::status::{Counters, ReactorStatus};
use crate::tenant::{Tenant, TenantCx, TenantEvent};
use basalt_core::event::{Effect, Event};
use basalt_device::{Completion, Ring};
use basalt_wire::buffer::Arena;
use basalt_wire::time::Time;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How often within a turn the shard and the tenants may answer each other before the reactor looks
/// at the kernel again.
const ROUNDS: usize = 3;
/// A turn that starts this much later than planned tells that this thread was not running.
const LATE: Duration = Duration::from_millis(250);
/// Time to send what is queued when stopping, and for the kernel to let go of everything.
const FLUSH_TIME: Duration = Duration::from_millis(500);
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// How far the reactor is through its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Running,
    /// Stopping: the tenants put things in order.
    Tenants(Time),
    /// Stopping: the shard hands its leaderships over.
    Draining(Time),
    /// Stopping: what is queued is sent.
    Flushing(Time),
    /// Waiting for the kernel to let go.
    Closing(Time),
    Ended,
}

pub(crate) struct Reactor {
    /// First, for it holds the ring, whose end must come before that of the memory it works on.
    net: Net,
    host: Option<Host>,
    tenants: Vec<Box<dyn Tenant>>,
    /// Tenants that got an event since their last `end_turn`.
    stirred: Vec<bool>,
    notices: Notices,
    checkpoints: Checkpoints,
    mail: Receiver<Mail>,
    polling: Polling,
    spinner: Spinner,
    origin: Instant,
    stage: Stage,
    /// Whether the stage changed in this turn, so that the next has something to look at.
    moved: bool,
    drained: bool,
    /// When this turn began, and when it should have begun at the latest.
    turn_at: Time,
    planned: Option<Time>,
    completions: Vec<Completion>,
    work: Vec<NetEvent>,
    effects: Vec<Effect>,
}

/// Where a reactor can be reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bound {
    pub data: Option<SocketAddr>,
    pub streams: Vec<Option<SocketAddr>>,
}

impl Reactor {
    pub(crate) fn new(
        mut config: ReactorConfig,
        checkpoints: Checkpoints,
        mail: Receiver<Mail>,
        wake: Arc<OwnedFd>,
    ) -> Result<(Reactor, Bound), NodeError> {
        check(&config)?;
        let now = Time::ZERO;
        let origin = Instant::now();
        let (mut listeners, bound) = listeners(&config.data_listen, config.stream_listeners)?;
        let mut ring = Ring::new(config.limits.ring_entries)
            .map_err(|e| NodeError::Config(crate::config::with_causes(&e)))?;
        // Without an arena, or without registering it, everything works at a higher price.
        if let Ok(arena) = Arena::install(config.limits.arena_bytes) {
            ring.use_arena(&arena);
        }
        if let Some(setup) = config.shard.as_mut().filter(|_| !checkpoints.is_there()) {
            setup.config.checkpoint_bytes = 0;
        }
        let host = match config.shard {
            Some(setup) => Some(Host::open(setup, config.limits.reopen_attempts, &mut ring, now)?),
            None => None,
        };
        let identity = Identity {
            name: config.name,
            cluster: config.cluster,
            address: config.address,
            boot: RandomState::new().build_hasher().finish(),
        };
        let mut net = Net::new(ring, wake, identity, config.routes, config.limits);
        net.auth = config.auth;
        net.serving = host.is_some();
        if host.is_some() {
            net.keep_peers(now);
        }
        let tenants: Vec<_> = config.tenants.into_iter().map(|build| build()).collect();
        for listener in listeners.drain(..) {
            net.listen(listener);
        }
        let reactor = Reactor {
            net,
            host,
            stirred: vec![true; tenants.len()],
            tenants,
            notices: config.notices,
            checkpoints,
            mail,
            polling: config.polling,
            spinner: Spinner::new(config.polling.spin_max),
            origin,
            stage: Stage::Running,
            moved: false,
            drained: false,
            turn_at: now,
            planned: None,
            completions: Vec::new(),
            work: Vec::new(),
            effects: Vec::new(),
        };
        Ok((reactor, bound))
    }

    /// Works until told to stop.
    pub(crate) fn run(&mut self) -> Result<(), NodeError> {
        while self.stage != Stage::Ended {
            self.turn()?;
        }
        Ok(())
    }

    fn clock(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    // ---- a turn ----

    fn turn(&mut self) -> Result<(), NodeError> {
        self.wait().map_err(NodeError::system("waiting on the ring failed"))?;
        let now = self.clock();
        if self.planned.is_some_and(|planned| now.since(planned) > LATE) {
            self.net.forgive_silence(now);
        }
        (self.turn_at, self.net.now) = (now, now);
        self.net.counters.turns += 1;
        self.take_completions(now);
        self.net.expire(now);
        if std::mem::take(&mut self.net.mailed) {
            self.read_mail(now);
            self.net.wait_for_mail();
        }
        self.step(now);
        self.advance_host(now);
        let stage = self.stage;
        self.advance_stage(now);
        self.moved = self.stage != stage;
        self.net.flush(now);
        self.tell();
        Ok(())
    }

    fn take_completions(&mut self, now: Time) {
        self.net.ring.reap(&mut self.completions);
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            match (completion.owner(), &mut self.host) {
                (0, Some(host)) => host.complete(completion, &mut self.net.ring),
                (0, None) => unreachable!("a device operation without a device"),
                _ => self.net.complete(completion, now),
            }
        }
        self.completions = completions;
    }

    /// Steps the shard and the tenants until they have nothing more to say to each other, but at
    /// most a few times: the kernel may have something new.
    fn step(&mut self, now: Time) {
        if let Some(host) = &mut self.host {
            host.drain(&mut self.net.ring, now);
        }
        for _ in 0..ROUNDS {
            self.deliver(now);
            self.deliver(now);
            self.end_tenants(now);
            // Requests that the tenants made while ending their turn.
            self.deliver(now);
            let drained = self.step_shard(now);
            if self.net.inbox.is_empty() && drained == 0 && !self.stirred.contains(&true) {
                return;
            }
        }
    }

    fn deliver(&mut self, now: Time) {
        let mut work = std::mem::take(&mut self.work);
        std::mem::swap(&mut work, &mut self.net.inbox);
        for event in work.drain(..) {
            match event {
                NetEvent::Shard(event) => {
                    self.net.counters.shard_events += 1;
                    if let Some(host) = &mut self.host {
                        host.event(now, event);
                    }
                }
                NetEvent::Tenant(tenant, event) => self.tenant_event(tenant, event, now),
            }
        }
        self.work = work;
    }

    fn tenant_event(&mut self, tenant: usize, event: TenantEvent, now: Time) {
        let Some(hosted) = self.tenants.get_mut(tenant) else { return };
        self.net.counters.tenant_events += 1;
        self.stirred[tenant] = true;
        let mut cx = TenantCx { net: &mut self.net, tenant, now };
        hosted.event(now, event, &mut cx);
    }

    fn end_tenants(&mut self, now: Time) {
        for (tenant, hosted) in self.tenants.iter_mut().enumerate() {
            let due = hosted.next_deadline().is_some_and(|at| at <= now);
            if std::mem::take(&mut self.stirred[tenant]) || due {
                let mut cx = TenantCx { net: &mut self.net, tenant, now };
                hosted.end_turn(now, &mut cx);
            }
        }
    }

    /// Ends the shard's turn and carries out its effects. How many device operations have ended
    /// since: a memory device is done at once.
    fn step_shard(&mut self, now: Time) -> usize {
        let Some(host) = &mut self.host else { return 0 };
        host.end_turn(now);
        let unopened = host.recovery_failed();
        self.carry_out(now);
        if let (Some(reason), Some(host)) = (unopened, &mut self.host) {
            host.unopened(reason);
            self.shard_closed(now);
        }
        match &mut self.host {
            Some(host) if host.ready() => host.drain(&mut self.net.ring, now),
            _ => 0,
        }
    }

    fn carry_out(&mut self, now: Time) {
        let Some(host) = &mut self.host else { return };
        let mut effects = std::mem::take(&mut self.effects);
        std::mem::swap(&mut effects, &mut host.effects);
        self.net.counters.effects += effects.len() as u64;
        let mut suspect = None;
        for effect in effects.drain(..) {
            match effect {
                Effect::Disk(op) => {
                    self.net.counters.disk_ops += 1;
                    host.submit(op, &mut self.net.ring);
                }
                Effect::Store(op) => self.checkpoints.ask(op),
                Effect::Send { to, frame } => self.net.send_peer(to, &frame),
                Effect::Reply { link, reply } => self.net.reply(link, reply, now),
                Effect::DeviceSuspect { reason } => {
                    suspect = Some(reason.clone());
                    (self.notices)(Effect::DeviceSuspect { reason });
                }
                Effect::Drained => {
                    self.drained = true;
                    (self.notices)(Effect::Drained);
                }
                other => (self.notices)(other),
            }
        }
        self.effects = effects;
        if let Some(reason) = suspect {
            tracing::error!(reactor = %self.net.identity.name, "device suspect: {reason}");
            host.suspect(reason, now);
            self.shard_closed(now);
        }
    }

    /// The shard is gone for now, with everything that it had not answered.
    fn shard_closed(&mut self, now: Time) {
        self.net.serving = false;
        self.net.drop_clients(now);
    }

    /// Goes on with opening a suspect device again.
    fn advance_host(&mut self, now: Time) {
        let Some(host) = &mut self.host else { return };
        if host.advance(&mut self.net.ring, now) {
            self.net.serving = true;
            self.net.announce_peers();
        }
        if !host.effects.is_empty() {
            self.carry_out(now);
        }
    }

    fn tell(&mut self) {
        for (alarm, text) in self.net.notices.drain(..) {
            (self.notices)(Effect::Notice { alarm, text });
        }
    }

    // ---- waiting ----

    fn wait(&mut self) -> std::io::Result<()> {
        self.planned = None;
        if self.has_work() {
            return self.net.ring.submit_and_wait(0, None);
        }
        let before = self.clock();
        self.net.counters.busy_nanos += duration_nanos(before.since(self.turn_at));
        // A turn that took this long was interrupted; see `forgive_silence`.
        self.planned = (before.since(self.turn_at) > LATE).then_some(self.turn_at);
        if self.polling.spin_max > Duration::ZERO && self.spin(before)? {
            return Ok(());
        }
        let deadline = self.next_deadline();
        let timeout = deadline.map(|at| at.since(before));
        self.planned = self.planned.or(deadline);
        self.net.counters.sleeps += 1;
        if memory::is_due() {
            self.net.ring.submit_and_wait(0, None)?;
            memory::give_back();
        }
        self.net.ring.submit_and_wait(1, timeout)?;
        if self.polling.spin_max > Duration::ZERO {
            self.spinner.note(self.clock().since(before));
        }
        Ok(())
    }

    /// Looks for completions for a moment without sleeping. Whether any came.
    fn spin(&mut self, from: Time) -> std::io::Result<bool> {
        self.net.ring.submit_and_wait(0, None)?;
        let Some(patience) = self.spinner.plan() else { return Ok(false) };
        loop {
            self.net.ring.submit_and_wait(0, None)?;
            self.net.ring.reap(&mut self.completions);
            let gap = self.clock().since(from);
            self.net.counters.busy_nanos += duration_nanos(gap);
            if !self.completions.is_empty() {
                self.net.counters.spins_hit += 1;
                self.spinner.note(gap);
                return Ok(true);
            }
            if gap >= patience {
                self.net.counters.spins_missed += 1;
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Whether something is to be done without waiting.
    fn has_work(&self) -> bool {
        !self.net.inbox.is_empty()
            || self.stirred.contains(&true)
            || self.host.as_ref().is_some_and(Host::ready)
            || self.moved
    }

    fn next_deadline(&self) -> Option<Time> {
        let stage = match self.stage {
            Stage::Running | Stage::Ended => None,
            Stage::Tenants(at) | Stage::Draining(at) | Stage::Flushing(at) | Stage::Closing(at) => {
                Some(at)
            }
        };
        let host = self.host.as_ref().and_then(Host::next_deadline);
        let tenants = self.tenants.iter().filter_map(|tenant| tenant.next_deadline());
        [stage, host, self.net.next_deadline()].into_iter().flatten().chain(tenants).min()
    }

    // ---- the control path ----

    fn read_mail(&mut self, now: Time) {
        while let Ok(mail) = self.mail.try_recv() {
            match mail {
                Mail::Event(event) => self.net.inbox.push(NetEvent::Shard(event)),
                Mail::Tenant(tenant, command) => {
                    let event = TenantEvent::Command(command);
                    self.net.inbox.push(NetEvent::Tenant(tenant, event));
                }
                Mail::Routes(routes) => self.net.set_routes(routes, now),
                Mail::Auth(auth) => self.net.set_auth(auth, now),
                Mail::Status(asker) => {
                    // An asker that has given up needs no answer.
                    let _ = asker.send(Box::new(self.status(now)));
                }
                Mail::Held(asker) => {
                    let held = self.host.as_ref().map(Host::held).unwrap_or_default();
                    // As above.
                    let _ = asker.send(held);
                }
                Mail::Stop => self.begin_stop(now),
                Mail::Kill => self.begin_closing(now),
                Mail::Panic(text) => panic!("{text}"),
            }
        }
    }

    fn status(&self, now: Time) -> ReactorStatus {
        ReactorStatus {
            name: self.net.identity.name.clone(),
            address: self.net.identity.address,
            uptime: now.since(Time::ZERO),
            shard: self.host.as_ref().map(Host::status),
            links: self.net.link_statuses(),
            accepted: self.net.accepted,
            strangers: self.net.strangers,
            streams: self.net.streams,
            counters: Counters { enters: self.net.ring.enters(), ..self.net.counters },
            polling: self.polling,
            closed: self.net.closed.iter().cloned().collect(),
        }
    }

    // ---- stopping ----

    fn begin_stop(&mut self, now: Time) {
        if self.stage != Stage::Running {
            return;
        }
        self.net.stopping = true;
        self.net.stop_listening();
        for tenant in 0..self.tenants.len() {
            self.net.inbox.push(NetEvent::Tenant(tenant, TenantEvent::Stopping));
        }
        self.stage = Stage::Tenants(now + self.net.limits.stop);
    }

    fn advance_stage(&mut self, now: Time) {
        match self.stage {
            Stage::Running | Stage::Ended => {}
            Stage::Tenants(until) => {
                let told = self.net.inbox.is_empty();
                if now >= until || (told && self.tenants.iter().all(|t| t.may_stop())) {
                    self.net.inbox.push(NetEvent::Shard(Event::Drain));
                    self.stage = Stage::Draining(now + self.net.limits.stop);
                }
            }
            Stage::Draining(until) => {
                if self.host.is_none() || self.drained || now >= until {
                    self.net.closing = true;
                    self.net.close_all_after_flush(now);
                    self.stage = Stage::Flushing(now + FLUSH_TIME);
                }
            }
            Stage::Flushing(until) => {
                if now >= until || self.net.conns.len() == 0 {
                    self.begin_closing(now);
                }
            }
            Stage::Closing(until) => self.advance_closing(now, until),
        }
    }

    fn begin_closing(&mut self, now: Time) {
        (self.net.stopping, self.net.closing) = (true, true);
        self.net.stop_listening();
        self.net.kill_all(now);
        if let Some(host) = &mut self.host {
            host.close();
        }
        self.net.serving = false;
        self.stage = Stage::Closing(now + CLOSE_TIME);
    }

    fn advance_closing(&mut self, now: Time, until: Time) {
        let quiet = self.net.conns.len() == 0 && self.host.as_ref().is_none_or(Host::closed);
        if quiet || now >= until {
            self.stage = Stage::Ended;
        }
    }
}

fn duration_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn check(config: &ReactorConfig) -> Result<(), NodeError> {
    let wrong = |text: String| Err(NodeError::Config(text));
    if let Some(setup) = &config.shard
        && config.address != Some(setup.config.address)
    {
        return wrong("the reactor's address is not that of its shard".into());
    }
    if let Some(setup) = &config.shard
        && config.cluster != setup.config.cluster
    {
        return wrong("the reactor's cluster is not that of its shard".into());
    }
    if config.shard.is_none() && config.data_listen.is_some() {
        return wrong("a reactor without a shard has nothing to serve on a data port".into());
    }
    for (number, listener) in config.stream_listeners.iter().enumerate() {
        if listener.tenant >= config.tenants.len() {
            return wrong(format!("stream listener {number} is for tenant {}", listener.tenant));
        }
    }
    Ok(())
}

fn listeners(
    data: &Option<SocketAddr>,
    streams: Vec<crate::config::StreamListener>,
) -> Result<(Vec<Listener>, Bound), NodeError> {
    let (mut list, mut bound) = (Vec::new(), Bound::default());
    if let Some(address) = data {
        let (listener, address) = Listener::data(*address)?;
        list.push(listener);
        bound.data = Some(address);
    }
    for (number, stream) in streams.into_iter().enumerate() {
        let (listener, address) = Listener::stream(stream.tenant, number, stream.source)?;
        list.push(listener);
        bound.streams.push(address);
    }
    Ok((list, bound))
}
