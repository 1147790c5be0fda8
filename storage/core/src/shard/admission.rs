//! Which requests begin at once, and which wait for others: what keeps the minimum that a volume is guaranteed.
//!
//! Clients say of each request whether it is within its volume's minimum, and whether that volume gets less than
//! its minimum although it asks for it. What is within a minimum begins at once, always. Everything else begins at
//! once too
//! while every minimum is kept. When one is not, only so many requests may be under way, fewer from one interval
//! to the next until it is kept (additive increase, multiplicative decrease, as in TCP); what comes beyond that
//! waits here, the volumes in turn, so that none of them is served at the cost of another. Something of it begins now
//! and then in any case: nothing waits for ever.

use super::Shard;
use crate::consensus::Arrival;
use crate::event::{Effect, LinkId};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::frame::{Priority, Refusal, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::ids::VolumeId;
use basalt_wire::time::Time;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::time::Duration;

/// How often the window may change: as long as a client measures before it says that it is behind.
const INTERVAL: Duration = Duration::from_millis(100);
/// The window is not made smaller than this.
const WINDOW_MIN: usize = 2;
/// Intervals in which all minimums were kept, one after the other, before it grows by more than one at a time.
const CALM: u32 = 50;
/// The part of it by which it grows then.
const WINDOW_PART: usize = 16;
/// A window that grew so far bounds nothing.
const WINDOW_MAX: usize = 1024;
/// One that waits begins after this time, whatever is under way.
const PATIENCE: Duration = Duration::from_millis(10);

/// A request that waits.
struct Queued {
    link: LinkId,
    remote: bool,
    arrived: Time,
    request: Request,
}

/// What waits, and how much may be under way.
#[derive(Default)]
pub(super) struct Admission {
    /// Requests under way at which the others wait; nothing: none do.
    window: Option<usize>,
    /// Whether a client said in this interval that it is behind, and when the interval ends.
    behind: bool,
    interval_ends: Time,
    /// Intervals since the last in which one was.
    calm: u32,
    /// When something that waited began last.
    admitted_at: Time,
    /// Volumes of which something waits, in turn.
    turns: VecDeque<VolumeId>,
    queues: FxHashMap<VolumeId, VecDeque<Queued>>,
    waiting: usize,
    bytes: usize,
    /// Requests that waited so far.
    held: u64,
}

impl Admission {
    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Requests that waited so far.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Whether nothing is bounded and nothing waits.
    pub fn rests(&self) -> bool {
        self.window.is_none() && self.waiting == 0
    }

    /// A volume is behind its minimum while so many requests are under way.
    fn hear_behind(&mut self, now: Time, under_way: usize) {
        self.behind = true;
        if self.window.is_none() {
            mark!("a guaranteed minimum is not kept");
            self.window = Some((under_way / 2).max(WINDOW_MIN));
            self.interval_ends = now + INTERVAL;
            (self.behind, self.calm) = (false, 0);
            self.admitted_at = now;
        }
    }

    /// Ends the interval if it is time: the window becomes smaller or larger, or is not needed any more.
    fn adjust(&mut self, now: Time) {
        let Some(window) = self.window else { return };
        if now < self.interval_ends {
            return;
        }
        self.interval_ends = now + INTERVAL;
        self.calm += 1;
        let window = if std::mem::take(&mut self.behind) {
            self.calm = 0;
            (window / 2).max(WINDOW_MIN)
        } else if self.calm < CALM {
            window + 1
        } else {
            window + 1 + window / WINDOW_PART
        };
        self.window = Some(window).filter(|window| *window <= WINDOW_MAX);
    }

    fn has_room(&self, under_way: usize) -> bool {
        self.window.is_none_or(|window| under_way < window)
    }

    fn push(&mut self, queued: Queued) {
        let volume = queued.request.volume;
        self.waiting += 1;
        self.held += 1;
        self.bytes += bytes_of(&queued.request);
        let queue = self.queues.entry(volume).or_default();
        if queue.is_empty() {
            self.turns.push_back(volume);
        }
        queue.push_back(queued);
    }

    /// The next one, of the volume whose turn it is.
    fn pop(&mut self) -> Option<Queued> {
        let volume = self.turns.pop_front()?;
        let queue =
            self.queues.get_mut(&volume).expect("a volume with a turn has something that waits");
        let queued = queue.pop_front().expect("a volume with a turn has something that waits");
        match queue.is_empty() {
            true => drop(self.queues.remove(&volume)),
            false => self.turns.push_back(volume),
        }
        self.waiting -= 1;
        self.bytes -= bytes_of(&queued.request);
        Some(queued)
    }

    /// A link is gone: nobody waits for the answers.
    pub fn forget(&mut self, link: LinkId) {
        if self.waiting == 0 {
            return;
        }
        let (mut waiting, mut bytes) = (0, 0);
        self.queues.retain(|_, queue| {
            queue.retain(|queued| queued.link != link);
            waiting += queue.len();
            bytes += queue.iter().map(|queued| bytes_of(&queued.request)).sum::<usize>();
            !queue.is_empty()
        });
        self.turns.retain(|volume| self.queues.contains_key(volume));
        (self.waiting, self.bytes) = (waiting, bytes);
    }

    /// When something has to be done about what waits.
    pub fn deadline(&self) -> Option<Time> {
        let waits = (self.waiting > 0).then_some(self.admitted_at + PATIENCE);
        let interval = self.window.map(|_| self.interval_ends);
        waits.into_iter().chain(interval).min()
    }
}

impl Shard {
    /// Takes a request: it begins at once, or waits for what is under way.
    pub(super) fn admit(
        &mut self,
        now: Time,
        (link, remote): (LinkId, bool),
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let ignored = self.shared.planted.is(Bug::GuaranteeIgnored);
        let priority = if ignored { Priority::BestEffort } else { request.priority };
        if priority == Priority::Behind {
            self.admission.hear_behind(now, self.requests_under_way());
        }
        let waits = priority == Priority::BestEffort
            && moves_data(&request.op)
            && (self.admission.waiting > 0 || !self.admission.has_room(self.requests_under_way()));
        if !waits {
            return self.request(now, (Arrival::new(now), link, remote), request, out);
        }
        // The other half is left to what does not wait.
        let limits = &self.shared.limits;
        let fits = self.admission.waiting < limits.pending_requests / 2
            && self.admission.bytes + bytes_of(&request) <= limits.pending_bytes / 2;
        if !fits {
            let result = ReplyResult::Refused(Refusal::Busy);
            let reply = Reply::new(request.id, request.group, result);
            return out.push(Effect::Reply { link, reply });
        }
        self.admission.push(Queued { link, remote, arrived: now, request });
    }

    /// Begins what waited and may begin now.
    pub(super) fn admit_waiting(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.admission.rests() {
            return;
        }
        self.admission.adjust(now);
        let mut due = now >= self.admission.admitted_at + PATIENCE;
        while due || self.admission.has_room(self.requests_under_way()) {
            let Some(queued) = self.admission.pop() else { break };
            let Queued { link, remote, arrived, request } = queued;
            self.admission.admitted_at = now;
            due = false;
            let arrival = Arrival { at: arrived, admitted: now };
            self.request(now, (arrival, link, remote), request, out);
        }
    }
}

/// Whether a minimum counts a request; everything else is rare, and others may wait for it.
fn moves_data(op: &RequestOp) -> bool {
    matches!(op, RequestOp::Read { .. } | RequestOp::Write { .. } | RequestOp::Unmap { .. })
}

/// Bytes that a request occupies.
fn bytes_of(request: &Request) -> usize {
    match &request.op {
        RequestOp::Write { payload, .. } => payload.len() + BLOCK_BYTES,
        _ => 0,
    }
}
