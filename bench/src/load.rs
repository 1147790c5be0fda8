//! A tenant that loads one volume: it keeps a fixed number of requests under way and times each.

use basalt_client::{BlockOp, ClientEffect, ClientEvent, Tuning, VolumeClient, VolumeConfig};
use basalt_node::{Tenant, TenantCx, TenantEvent};
use basalt_wire::buffer::{IoBuf, Payload};
use basalt_wire::time::Time;
use hdrhistogram::Histogram;
use std::sync::mpsc::Sender;
use std::time::Duration;

/// What to do to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Random writes.
    RandomWrite,
    /// Random reads.
    RandomRead,
    /// Writes from the start to the end, then again.
    SequentialWrite,
    /// Reads from the start to the end, then again.
    SequentialRead,
}

impl Pattern {
    fn writes(self) -> bool {
        matches!(self, Pattern::RandomWrite | Pattern::SequentialWrite)
    }

    fn random(self) -> bool {
        matches!(self, Pattern::RandomWrite | Pattern::RandomRead)
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// What to do.
    pub pattern: Pattern,
    /// Bytes of each request.
    pub request_bytes: u32,
    /// Requests under way at a time.
    pub depth: usize,
    /// Ends after this many requests ...
    pub requests: u64,
    /// ... or after this time.
    pub duration: Duration,
    /// Bytes of the volume that are touched.
    pub span_bytes: u64,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that ended well.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// From the first submission to the last completion.
    pub elapsed: Duration,
    /// Latency in nanoseconds.
    pub latency: Histogram<u64>,
}

/// Told to the tenant by [`basalt_node::ReactorHandle::tenant`]: run a job, answer when it ended.
pub struct Run {
    /// The job.
    pub job: Job,
    /// Where the outcome goes.
    pub reply: Sender<Outcome>,
}

struct Running {
    job: Job,
    reply: Sender<Outcome>,
    outcome: Outcome,
    began: Time,
    issued: u64,
    open: usize,
    cursor: u64,
    /// When each slot's request was submitted; the slot is its tag.
    submitted: Vec<Time>,
    /// Slots without a request.
    free: Vec<usize>,
}

/// The tenant.
pub struct Load {
    client: Option<VolumeClient>,
    config: VolumeConfig,
    tuning: Tuning,
    ready: bool,
    running: Option<Running>,
    data: Payload,
    random: u64,
    effects: Vec<ClientEffect>,
    /// Scratch, kept between turns.
    carried: Vec<ClientEffect>,
}

impl Load {
    /// A load on the volume of `config`, of which one request in `trace_period` is traced.
    pub fn new(config: VolumeConfig, trace_period: Duration) -> Load {
        let tuning = Tuning { trace_period, ..Tuning::default() };
        let mut block = IoBuf::alloc(4 << 20);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for word in block.chunks_exact_mut(8) {
            state = next_random(state);
            word.copy_from_slice(&state.to_le_bytes());
        }
        Load {
            client: None,
            config,
            tuning,
            ready: false,
            running: None,
            data: Payload::from(block.freeze()),
            random: 1,
            effects: Vec::new(),
            carried: Vec::new(),
        }
    }

    fn begin(&mut self, now: Time) {
        if self.client.is_none() {
            let config = self.config.clone();
            let client = VolumeClient::with_tuning(config, self.tuning, now, &mut self.effects);
            self.client = Some(client);
        }
    }

    fn feed(&mut self, now: Time, event: ClientEvent) {
        if let Some(client) = &mut self.client {
            client.handle(now, event, &mut self.effects);
        }
    }

    /// Submits until the wanted depth is under way.
    fn submit(&mut self, now: Time) {
        loop {
            let Some(run) = &mut self.running else { return };
            let over = run.issued >= run.job.requests || now.since(run.began) >= run.job.duration;
            if over || run.open >= run.job.depth || !self.ready {
                return;
            }
            let tag = run.free.pop().expect("fewer requests than slots are under way");
            run.submitted[tag] = now;
            run.issued += 1;
            run.open += 1;
            let slots = run.job.span_bytes / u64::from(run.job.request_bytes);
            let slot = if run.job.pattern.random() {
                self.random = next_random(self.random);
                self.random % slots
            } else {
                run.cursor += 1;
                (run.cursor - 1) % slots
            };
            let offset = slot * u64::from(run.job.request_bytes);
            let len = run.job.request_bytes;
            let op = if run.job.pattern.writes() {
                let room = self.data.len() - len as usize;
                let from = (next_random(offset) as usize % (room / 4096 + 1)) * 4096;
                BlockOp::Write { offset, data: self.data.slice(from, len as usize), fua: false }
            } else {
                BlockOp::Read { offset, len }
            };
            self.feed(now, ClientEvent::Submit { tag: tag as u64, op });
        }
    }

    fn completed(&mut self, now: Time, tag: u64, good: bool) {
        let Some(run) = &mut self.running else { return };
        let began = std::mem::replace(&mut run.submitted[tag as usize], Time::ZERO);
        run.free.push(tag as usize);
        let nanos = now.since(began).as_nanos().max(1) as u64;
        run.outcome.latency.saturating_record(nanos);
        run.open -= 1;
        if good {
            run.outcome.requests += 1;
        } else {
            run.outcome.errors += 1;
        }
    }

    fn carry_out(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        while !self.effects.is_empty() {
            let mut effects = std::mem::take(&mut self.carried);
            std::mem::swap(&mut effects, &mut self.effects);
            for effect in effects.drain(..) {
                match effect {
                    ClientEffect::Dial { to } => cx.dial(to),
                    ClientEffect::Reset { to } => cx.reset(to),
                    ClientEffect::Send { to, request } => cx.request(to, request),
                    ClientEffect::Complete { tag, result } => {
                        if let Err(error) = &result {
                            cx.notice(true, format!("a request of the load failed: {error:?}"));
                        }
                        self.completed(now, tag, result.is_ok());
                    }
                    ClientEffect::AskMap => {}
                    ClientEffect::Ready => self.ready = true,
                    ClientEffect::Lost(error) => {
                        cx.notice(true, format!("the load's session is over: {error:?}"));
                    }
                }
            }
            self.carried = effects;
            self.submit(now);
        }
    }

    fn finish(&mut self, now: Time) {
        let over = self.running.as_ref().is_some_and(|run| {
            run.open == 0
                && (run.issued >= run.job.requests || now.since(run.began) >= run.job.duration)
        });
        if over && let Some(mut run) = self.running.take() {
            run.outcome.elapsed = now.since(run.began);
            // Nobody waits any more if the receiver is gone.
            let _ = run.reply.send(run.outcome);
        }
    }
}

/// xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
fn next_random(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    x
}

impl Tenant for Load {
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>) {
        match event {
            TenantEvent::LinkUp { to, credit_bytes, credit_requests } => {
                self.feed(now, ClientEvent::LinkUp { to, credit_bytes, credit_requests });
            }
            TenantEvent::LinkDown { to } => self.feed(now, ClientEvent::LinkDown { to }),
            TenantEvent::Reply { from, reply } => {
                self.feed(now, ClientEvent::Reply { from, reply });
            }
            TenantEvent::Command(command) => {
                if let Ok(run) = command.downcast::<Run>() {
                    self.begin(now);
                    let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)
                        .expect("the bounds are legal");
                    self.running = Some(Running {
                        outcome: Outcome {
                            requests: 0,
                            errors: 0,
                            elapsed: Duration::ZERO,
                            latency,
                        },
                        began: now,
                        issued: 0,
                        open: 0,
                        cursor: 0,
                        submitted: vec![Time::ZERO; run.job.depth],
                        free: (0..run.job.depth).rev().collect(),
                        job: run.job,
                        reply: run.reply,
                    });
                }
            }
            TenantEvent::Accepted { stream, .. } => cx.close(stream),
            TenantEvent::Received { .. }
            | TenantEvent::Drained { .. }
            | TenantEvent::Closed { .. }
            | TenantEvent::Stopping => {}
        }
    }

    fn end_turn(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        self.submit(now);
        if let Some(client) = &mut self.client {
            client.end_turn(now, &mut self.effects);
        }
        self.carry_out(now, cx);
        self.finish(now);
    }

    fn next_deadline(&self) -> Option<Time> {
        let end = self.running.as_ref().map(|run| run.began + run.job.duration);
        let client = self.client.as_ref().and_then(VolumeClient::next_deadline);
        end.into_iter().chain(client).min()
    }
}
