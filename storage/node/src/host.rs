//! A shard and its device: opened, formatted if allowed, and opened again when the device fails.

use crate::config::{FormatPolicy, NodeError, ShardSetup};
use crate::status::{HostState, HostStatus};
use basalt_core::config::ShardConfig;
use basalt_core::event::{Effect, Event, ProposeError};
use basalt_core::shard::{HeldGroup, Phase, Shard};
use basalt_device::{Completion, Device, DeviceSpec, Ring};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::{SUPERBLOCK_AREA_BYTES, segment_count};
use basalt_wire::frame::{Refusal, Reply, ReplyResult};
use basalt_wire::io::{DiskDone, DiskOp, DiskOpKind};
use basalt_wire::time::Time;
use std::time::{Duration, Instant};

/// Pause before the first attempt to open a suspect device again; each further one takes twice as
/// long.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);
/// A device that served this long counts as healthy again.
const HEALTHY: Duration = Duration::from_secs(60);

pub(crate) struct Host {
    config: ShardConfig,
    spec: DeviceSpec,
    attempts_max: u32,
    description: String,
    /// The device, until nothing of it is in flight any more.
    device: Option<Box<dyn Device>>,
    shard: Option<Shard>,
    pub effects: Vec<Effect>,
    done: Vec<DiskDone>,
    state: HostState,
    attempts: u32,
    opened_at: Time,
    retry_at: Option<Time>,
    /// Whether the shard got an event since its last `end_turn`.
    stirred: bool,
    /// Whether it is not known yet if the shard's recovery succeeds.
    recovering: bool,
    /// Whether the device is closed for good.
    closing: bool,
}

impl Host {
    /// Opens the device, formats it if it is blank and may be, and starts the shard's recovery.
    pub(crate) fn open(
        setup: ShardSetup,
        attempts_max: u32,
        ring: &mut Ring,
        now: Time,
    ) -> Result<Host, NodeError> {
        let (spec, mut config) = (setup.device, setup.config);
        let name = spec.source.to_string();
        let refuse = |reason: String| NodeError::Device { device: name.clone(), reason };
        let mut device =
            basalt_device::open(&spec).map_err(|e| refuse(crate::config::with_causes(&e)))?;
        let size = device.info().size;
        if config.device_bytes == 0 {
            let segments = u64::from(segment_count(size, config.segment_bytes));
            config.device_bytes = SUPERBLOCK_AREA_BYTES + segments * config.segment_bytes;
        }
        if config.index_bytes == 0 {
            config.index_bytes = ShardConfig::usual_index_bytes(config.device_bytes);
        }
        config.volatile_cache = device.info().volatile_cache;
        let description = device.info().description.clone();
        let made = if config.device_bytes > size {
            Err(format!("it has {size} bytes, {} were configured", config.device_bytes))
        } else {
            make_ready(&mut *device, ring, &config, setup.format, now)
        };
        if let Err(reason) = made {
            close_idle(device, ring, now);
            return Err(refuse(reason));
        }
        let mut host = Host {
            config,
            spec,
            attempts_max,
            description,
            device: Some(device),
            shard: None,
            effects: Vec::new(),
            done: Vec::new(),
            state: HostState::Open,
            attempts: 0,
            opened_at: now,
            retry_at: None,
            stirred: false,
            recovering: true,
            closing: false,
        };
        host.start_shard(now);
        Ok(host)
    }

    fn start_shard(&mut self, now: Time) {
        self.shard = Some(Shard::open(self.config.clone(), now, &mut self.effects));
        self.state = HostState::Open;
        self.opened_at = now;
        (self.stirred, self.recovering) = (true, true);
    }

    pub(crate) fn status(&self) -> HostStatus {
        HostStatus {
            device: self.description.clone(),
            state: self.state.clone(),
            shard: self.shard.as_ref().map(Shard::status),
        }
    }

    pub(crate) fn held(&self) -> Vec<HeldGroup> {
        self.shard.as_ref().map(Shard::held_groups).unwrap_or_default()
    }

    pub(crate) fn event(&mut self, now: Time, event: Event) {
        self.note_config(&event);
        match &mut self.shard {
            Some(shard) => {
                self.stirred = true;
                shard.handle(now, event, &mut self.effects);
            }
            None => self.answer_closed(event),
        }
    }

    /// A device that is opened again has the replicas that came since, and not those that went: a founder
    /// that came back empty would vote as if it had never promised anything. And the control plane has the state
    /// that it has by now.
    fn note_config(&mut self, event: &Event) {
        let groups = &mut self.config.groups;
        match event {
            Event::MetadataSaved { index } => {
                self.config.metadata_saved = self.config.metadata_saved.max(*index);
            }
            Event::Join(config) if groups.iter().all(|group| group.id != config.id) => {
                groups.push(config.clone());
            }
            Event::Retire(group) => groups.retain(|config| config.id != *group),
            _ => {}
        }
    }

    /// Nobody is there: what waits for an answer gets one.
    fn answer_closed(&mut self, event: Event) {
        match event {
            Event::Request { link, request, .. } => {
                let result = ReplyResult::Refused(Refusal::Unavailable);
                let reply = Reply::new(request.id, request.group, result);
                self.effects.push(Effect::Reply { link, reply });
            }
            Event::Propose { token, .. } => {
                let result = Err(ProposeError::Unavailable);
                self.effects.push(Effect::Proposed { token, result });
            }
            Event::Drain => self.effects.push(Effect::Drained),
            _ => {}
        }
    }

    /// Ends the shard's turn if anything happened to it or it is due.
    pub(crate) fn end_turn(&mut self, now: Time) {
        let Some(shard) = &mut self.shard else { return };
        let due = shard.next_deadline().is_some_and(|at| at <= now);
        if self.stirred || due {
            self.stirred = false;
            shard.end_turn(now, &mut self.effects);
        }
    }

    pub(crate) fn submit(&mut self, op: DiskOp, ring: &mut Ring) {
        if let Some(device) = &mut self.device
            && self.shard.is_some()
        {
            device.submit(op, ring);
        }
    }

    pub(crate) fn complete(&mut self, completion: Completion, ring: &mut Ring) {
        let device = self.device.as_mut().expect("a device outlives its operations");
        device.complete(completion, ring);
    }

    /// Gives ended device operations to the shard. How many there were.
    pub(crate) fn drain(&mut self, ring: &mut Ring, now: Time) -> usize {
        let Some(device) = &mut self.device else { return 0 };
        let mut done = std::mem::take(&mut self.done);
        device.drain(ring, now, &mut done);
        let count = done.len();
        for done in done.drain(..) {
            if self.shard.is_some() {
                self.event(now, Event::Disk(done));
            }
        }
        self.done = done;
        count
    }

    /// Whether the device has something to give already.
    pub(crate) fn ready(&self) -> bool {
        self.device.as_ref().and_then(|d| d.next_deadline()) == Some(Time::ZERO)
    }

    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let device = self.device.as_ref().and_then(|d| d.next_deadline());
        let shard = self.shard.as_ref().and_then(Shard::next_deadline);
        [device, shard, self.retry_at].into_iter().flatten().min()
    }

    /// A write failed: the shard is dropped at once, and the device closed once it is quiet.
    pub(crate) fn suspect(&mut self, reason: String, now: Time) {
        if now.since(self.opened_at) >= HEALTHY {
            self.attempts = 0;
        }
        self.drop_shard();
        if self.attempts >= self.attempts_max {
            self.give_up(format!("opened {} times again, and: {reason}", self.attempts));
        } else {
            self.state = HostState::Reopening { attempts: self.attempts, reason };
        }
    }

    /// Why the shard's recovery failed, once, if it did.
    pub(crate) fn recovery_failed(&mut self) -> Option<String> {
        let shard = self.shard.as_ref().filter(|_| self.recovering)?;
        match shard.status().phase {
            Phase::Opening => None,
            Phase::Failed(reason) => {
                self.recovering = false;
                Some(reason)
            }
            Phase::Running | Phase::Draining | Phase::Suspect(_) => {
                self.recovering = false;
                None
            }
        }
    }

    /// The shard could not open its log. A device that never opened in this run is given up: it is
    /// damaged or somebody else's, and trying again would not change that.
    pub(crate) fn unopened(&mut self, reason: String) {
        self.drop_shard();
        if self.attempts == 0 || self.attempts >= self.attempts_max {
            self.give_up(reason);
        } else {
            self.state = HostState::Reopening { attempts: self.attempts, reason };
        }
    }

    fn drop_shard(&mut self) {
        self.shard = None;
        if let Some(device) = &mut self.device {
            device.quiesce();
        }
    }

    fn give_up(&mut self, reason: String) {
        let text = format!("the device {} is given up: {reason}", self.description);
        self.effects.push(Effect::Notice { alarm: true, text });
        self.state = HostState::Failed(reason);
    }

    /// Goes on with closing and opening again. Whether a new shard was started.
    pub(crate) fn advance(&mut self, ring: &mut Ring, now: Time) -> bool {
        if self.shard.is_some() {
            return false;
        }
        if self.device.as_ref().is_some_and(|d| d.in_flight() == 0) {
            if let Some(mut device) = self.device.take() {
                device.close(ring);
            }
            if matches!(self.state, HostState::Reopening { .. }) && !self.closing {
                self.retry_at = Some(now + REOPEN_PAUSE * (1 << self.attempts.min(8)));
            }
        }
        if self.retry_at.is_none_or(|at| at > now) || self.closing {
            return false;
        }
        self.retry_at = None;
        self.attempts += 1;
        self.reopen(now)
    }

    fn reopen(&mut self, now: Time) -> bool {
        let reason = match basalt_device::open(&self.spec) {
            Ok(device) if device.info().size >= self.config.device_bytes => {
                self.config.volatile_cache = device.info().volatile_cache;
                self.device = Some(device);
                let text = format!("the device {} is opened again", self.description);
                self.effects.push(Effect::Notice { alarm: false, text });
                self.start_shard(now);
                return true;
            }
            Ok(device) => {
                let size = device.info().size;
                self.device = Some(device);
                format!("it has shrunk to {size} bytes")
            }
            Err(e) => crate::config::with_causes(&e),
        };
        if self.attempts >= self.attempts_max {
            self.give_up(reason);
        } else {
            self.state = HostState::Reopening { attempts: self.attempts, reason };
            self.retry_at = Some(now + REOPEN_PAUSE * (1 << self.attempts.min(8)));
        }
        false
    }

    /// Lets go of the shard and the device for good; [`Host::advance`] closes it when it is quiet.
    pub(crate) fn close(&mut self) {
        self.closing = true;
        self.retry_at = None;
        self.drop_shard();
    }

    pub(crate) fn closed(&self) -> bool {
        self.device.is_none()
    }
}

/// Formats a blank device if that is allowed.
fn make_ready(
    device: &mut dyn Device,
    ring: &mut Ring,
    config: &ShardConfig,
    policy: FormatPolicy,
    now: Time,
) -> Result<(), String> {
    if !is_blank(device, ring, now)? {
        // Whether it is a Basalt device, and the right one, is for the shard to find out.
        return Ok(());
    }
    if policy == FormatPolicy::Never {
        return Err(format!(
            "it is blank (nothing but zeros where the superblocks stand), but it was in use before and \
             should hold the data of node {}: another or an emptied device is in its place, or the \
             path is wrong; start the node with its own device",
            config.address.node
        ));
    }
    let segments = segment_count(config.device_bytes, config.segment_bytes);
    if segments <= config.limits.segments_reserved {
        return Err(format!(
            "{} bytes have room for {segments} segments of {} bytes only, and more than {} are needed; \
             give it a larger device or use smaller segments",
            config.device_bytes, config.segment_bytes, config.limits.segments_reserved
        ));
    }
    tracing::info!("formatting {}", device.info().description);
    let done = run(device, ring, Shard::format(config), now)?;
    match done.iter().find_map(|done| done.result.err()) {
        Some(error) => Err(format!("it can not be formatted: {error}")),
        None => Ok(()),
    }
}

/// Whether the superblock area holds nothing but zeros.
fn is_blank(device: &mut dyn Device, ring: &mut Ring, now: Time) -> Result<bool, String> {
    if device.info().size < SUPERBLOCK_AREA_BYTES {
        let (size, need) = (device.info().size, SUPERBLOCK_AREA_BYTES);
        return Err(format!("it has {size} bytes, its superblocks alone need {need}"));
    }
    let ops = (0..SUPERBLOCK_AREA_BYTES)
        .step_by(BLOCK_BYTES)
        .map(|offset| {
            let kind = DiskOpKind::Read { offset, buf: IoBuf::zeroed(BLOCK_BYTES) };
            DiskOp { token: offset, kind }
        })
        .collect();
    for done in run(device, ring, ops, now)? {
        match (done.result, done.buf) {
            (Ok(()), Some(buf)) if buf.iter().all(|byte| *byte == 0) => {}
            (Ok(()), _) => return Ok(false),
            // An unreadable place had content. The shard tells what can be done.
            (Err(_), _) => return Ok(false),
        }
    }
    Ok(true)
}

/// Carries operations out and waits for all of them. Only at start, before anything is served.
fn run(
    device: &mut dyn Device,
    ring: &mut Ring,
    ops: Vec<DiskOp>,
    now: Time,
) -> Result<Vec<DiskDone>, String> {
    let count = ops.len();
    for op in ops {
        device.submit(op, ring);
    }
    let mut done = Vec::with_capacity(count);
    let started = Instant::now();
    while done.len() < count {
        pump(device, ring, now + started.elapsed(), &mut done)
            .map_err(|e| format!("waiting for it failed: {e}"))?;
    }
    Ok(done)
}

fn pump(
    device: &mut dyn Device,
    ring: &mut Ring,
    now: Time,
    done: &mut Vec<DiskDone>,
) -> std::io::Result<()> {
    let mut completions = Vec::new();
    device.drain(ring, now, done);
    if device.in_flight() > 0 {
        ring.submit_and_wait(1, Some(Duration::from_millis(100)))?;
        ring.reap(&mut completions);
        for completion in completions.drain(..) {
            device.complete(completion, ring);
        }
        device.drain(ring, now, done);
    }
    Ok(())
}

/// Closes a device that is not used after all.
fn close_idle(mut device: Box<dyn Device>, ring: &mut Ring, now: Time) {
    device.quiesce();
    let mut done = Vec::new();
    let started = Instant::now();
    while device.in_flight() > 0 {
        if pump(&mut *device, ring, now + started.elapsed(), &mut done).is_err() {
            return;
        }
    }
    device.close(ring);
}
