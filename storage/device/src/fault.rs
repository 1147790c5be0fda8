//! A layer above any device that fails, delays, hangs, loses, misdirects or corrupts operations.
//!
//! Faults are armed at run time through a [`FaultHandle`], from any thread, as text:
//!
//! ```text
//! ACTION:OPERATION[:KEY=VALUE,...]
//!
//! error:write:count=1              the next write fails, and does not take place
//! error:flush:stage=complete       every flush takes place and fails
//! error:read:kind=short,from=1m,to=2m
//! delay:any:us=5000,every=10       every tenth operation ends 5 ms later
//! hang:write:after=100             the 101st write and all later ones never end
//! lose:write:count=1               one write is acknowledged and does not take place
//! misdirect:write:by=64k,count=1   one write lands 64 KiB further on
//! corrupt:write:at=100,count=1     one write has a flipped bit at its byte 100, on the device for good
//! corrupt:read                     every read has a flipped bit that is not on the device
//! ```
//!
//! Keys: `count` (how often, then the fault is spent), `after` (operations to let pass first),
//! `every` (only each n-th), `from` and `to` (bytes of the device that the operation must touch),
//! `stage` (`submit` or `complete`), `kind` (`io`, `nospace`, `short`, `gone`), `us`, `by`, `at`,
//! `sticky=no` (the device does not become suspect). Numbers take the suffixes k, m and g.
//!
//! As with the device below, a failed flush or durable write makes every later write fail.

use crate::device::{Device, DeviceInfo};
use crate::ring::{Completion, Ring};
use basalt_wire::buffer::IoBuf;
use basalt_wire::io::{DiskDone, DiskError, DiskOp, DiskOpKind, OpToken};
use basalt_wire::time::Time;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use crate::fault_spec::{Action, Fault, FaultError, Operation, Stage};

/// Names an armed fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(u64);

/// Arms and disarms the faults of one device, from any thread.
#[derive(Clone, Debug, Default)]
pub struct FaultHandle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Armed faults, so that a device without any takes no lock.
    armed: AtomicUsize,
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    faults: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    id: FaultId,
    fault: Fault,
    /// Operations that matched.
    seen: u64,
    /// Operations that were hit.
    hits: u64,
}

impl FaultHandle {
    /// No faults yet.
    pub fn new() -> FaultHandle {
        FaultHandle::default()
    }

    /// Arms the fault that a text describes.
    pub fn arm(&self, text: &str) -> Result<FaultId, FaultError> {
        Ok(self.arm_fault(text.parse()?))
    }

    /// Arms a fault.
    pub fn arm_fault(&self, fault: Fault) -> FaultId {
        let mut list = self.list();
        list.next += 1;
        let id = FaultId(list.next);
        list.faults.push(Armed { id, fault, seen: 0, hits: 0 });
        self.0.armed.store(list.faults.len(), Ordering::Release);
        id
    }

    /// Disarms a fault; operations that it hung end when their device is next drained, with what
    /// became of them below.
    pub fn disarm(&self, id: FaultId) {
        let mut list = self.list();
        list.faults.retain(|armed| armed.id != id);
        self.0.armed.store(list.faults.len(), Ordering::Release);
    }

    /// Disarms all faults.
    pub fn clear(&self) {
        let mut list = self.list();
        list.faults.clear();
        self.0.armed.store(0, Ordering::Release);
    }

    /// How many operations a fault that is still armed has hit. A spent fault stays armed.
    pub fn hits(&self, id: FaultId) -> u64 {
        self.list().faults.iter().find(|armed| armed.id == id).map_or(0, |armed| armed.hits)
    }

    fn is_armed(&self, id: FaultId) -> bool {
        self.list().faults.iter().any(|armed| armed.id == id)
    }

    /// The first fault that hits this operation, counted as hit.
    fn hit(&self, kind: &DiskOpKind) -> Option<(FaultId, Fault)> {
        if self.0.armed.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut list = self.list();
        let armed = list.faults.iter_mut().find_map(|armed| armed.takes(kind).then_some(armed))?;
        armed.hits += 1;
        Some((armed.id, armed.fault.clone()))
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // The list is valid after every statement that changes it.
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    fn takes(&mut self, kind: &DiskOpKind) -> bool {
        if !self.fault.matches(kind) {
            return false;
        }
        self.seen += 1;
        let spent = self.fault.count.is_some_and(|count| self.hits >= count);
        let turn = self.seen.checked_sub(self.fault.after + 1);
        !spent && turn.is_some_and(|turn| turn.is_multiple_of(self.fault.every))
    }
}

/// The layer.
pub struct FaultDevice {
    inner: Box<dyn Device>,
    handle: FaultHandle,
    /// Operations in the device below; its tokens are indices into this.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    below: Vec<DiskDone>,
    delayed: Vec<(Time, DiskDone)>,
    hung: Vec<(FaultId, DiskDone)>,
    done: Vec<DiskDone>,
    suspect: bool,
}

struct Slot {
    token: OpToken,
    /// Whether its failure makes the device suspect.
    durable: bool,
    fault: Option<(FaultId, Fault)>,
}

impl FaultDevice {
    /// A layer above `inner`.
    pub fn new(inner: Box<dyn Device>, handle: FaultHandle) -> FaultDevice {
        FaultDevice {
            inner,
            handle,
            slots: Vec::new(),
            free: Vec::new(),
            below: Vec::new(),
            delayed: Vec::new(),
            hung: Vec::new(),
            done: Vec::new(),
            suspect: false,
        }
    }

    fn fail(&mut self, op: DiskOp, error: DiskError) {
        let buf = match op.kind {
            DiskOpKind::Read { buf, .. } => Some(buf),
            _ => None,
        };
        self.done.push(DiskDone { token: op.token, buf, result: Err(error) });
    }

    fn pass_down(&mut self, op: DiskOp, fault: Option<(FaultId, Fault)>, ring: &mut Ring) {
        let durable = self.counts_as_durable(&op.kind);
        let slot = Slot { token: op.token, durable, fault };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(slot);
        self.inner.submit(DiskOp { token: index as OpToken, kind: op.kind }, ring);
    }

    fn counts_as_durable(&self, kind: &DiskOpKind) -> bool {
        match kind {
            DiskOpKind::Flush => true,
            DiskOpKind::Write { durable, .. } => *durable || !self.inner.info().volatile_cache,
            _ => false,
        }
    }

    /// What an operation that ended below becomes.
    fn ended(&mut self, mut done: DiskDone, now: Time) {
        let index = usize::try_from(done.token).expect("a token of this layer");
        let slot = self.slots[index].take().expect("an operation ends once");
        self.free.push(index);
        done.token = slot.token;
        let Some((id, fault)) = slot.fault else {
            self.done.push(done);
            return;
        };
        match fault.action {
            Action::Error(error) => {
                self.suspect |= slot.durable && fault.sticky;
                done.result = Err(error);
            }
            Action::Corrupt { at } => {
                if let Some(buf) = &mut done.buf {
                    flip(buf, at);
                }
            }
            Action::Delay(delay) => return self.delayed.push((now + delay, done)),
            Action::Hang => return self.hung.push((id, done)),
            Action::Lose | Action::Misdirect { .. } => {}
        }
        self.done.push(done);
    }
}

impl Device for FaultDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn submit(&mut self, mut op: DiskOp, ring: &mut Ring) {
        if self.suspect && !matches!(op.kind, DiskOpKind::Read { .. }) {
            return self.fail(op, DiskError::Gone);
        }
        let Some((id, fault)) = self.handle.hit(&op.kind) else {
            return self.pass_down(op, None, ring);
        };
        match (fault.action, fault.stage) {
            (Action::Error(error), Stage::Submit) => {
                self.suspect |= self.counts_as_durable(&op.kind) && fault.sticky;
                return self.fail(op, error);
            }
            (Action::Lose, _) if !matches!(op.kind, DiskOpKind::Read { .. }) => {
                self.done.push(DiskDone { token: op.token, buf: None, result: Ok(()) });
                return;
            }
            (Action::Corrupt { at }, _) => {
                if let DiskOpKind::Write { data, .. } = &mut op.kind {
                    let mut copy = IoBuf::copy_from(data);
                    flip(&mut copy, at);
                    *data = copy.freeze();
                }
            }
            (Action::Misdirect { by }, _) => match &mut op.kind {
                DiskOpKind::Read { offset, .. } | DiskOpKind::Write { offset, .. } => *offset += by,
                _ => {}
            },
            _ => {}
        }
        self.pass_down(op, Some((id, fault)), ring);
    }

    fn complete(&mut self, completion: Completion, ring: &mut Ring) {
        self.inner.complete(completion, ring);
    }

    fn drain(&mut self, ring: &mut Ring, now: Time, out: &mut Vec<DiskDone>) {
        let mut below = std::mem::take(&mut self.below);
        self.inner.drain(ring, now, &mut below);
        below.drain(..).for_each(|done| self.ended(done, now));
        self.below = below;
        let handle = self.handle.clone();
        let released = self.hung.extract_if(.., |(id, _)| !handle.is_armed(*id));
        self.done.extend(released.map(|(_, done)| done));
        let due = self.delayed.extract_if(.., |(at, _)| *at <= now);
        self.done.extend(due.map(|(_, done)| done));
        out.append(&mut self.done);
    }

    fn next_deadline(&self) -> Option<Time> {
        let ready = (!self.done.is_empty()).then_some(Time::ZERO);
        let delayed = self.delayed.iter().map(|(at, _)| *at).min();
        [ready, delayed, self.inner.next_deadline()].into_iter().flatten().min()
    }

    fn in_flight(&self) -> usize {
        let mine = self.delayed.len() + self.hung.len() + self.done.len();
        mine + self.inner.in_flight()
    }

    fn quiesce(&mut self) {
        // What hangs would keep its owner from ever stopping.
        let hung = self.hung.drain(..);
        self.done.extend(hung.map(|(_, done)| DiskDone { result: Err(DiskError::Gone), ..done }));
        self.inner.quiesce();
    }

    fn close(&mut self, ring: &mut Ring) {
        self.inner.close(ring);
    }
}

fn flip(bytes: &mut [u8], at: Option<u64>) {
    let at = at.and_then(|at| usize::try_from(at).ok()).unwrap_or(bytes.len() / 2);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
}

/// A delay from microseconds, as the specification has it.
pub(crate) fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}
