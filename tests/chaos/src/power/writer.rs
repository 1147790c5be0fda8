//! A tenant that writes to a volume without pause and keeps the books.

use super::ledger::{Ledger, content};
use super::{CHUNKS, HOT_BLOCKS, VOLUME};
use crate::random::Random;
use basalt_client::{BlockError, BlockOp, ClientEffect, ClientEvent, VolumeClient, VolumeConfig};
use basalt_node::{Tenant, TenantCx, TenantEvent};
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS};
use basalt_wire::buffer::Payload;
use basalt_wire::time::Time;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Requests under way at a time.
const DEPTH: usize = 16;
/// Requests of more than one block have up to so many.
const BLOCKS_MAX: u64 = 6;

/// What the load and its observer share.
#[derive(Debug, Default)]
pub struct Books {
    /// What was asked and acknowledged.
    pub ledger: Ledger,
    /// Set when the session has begun.
    pub ready: AtomicBool,
    /// Set by the observer: nothing more is submitted.
    pub enough: AtomicBool,
    /// Requests that ended.
    pub answered: AtomicUsize,
    /// Set when a request failed in a way that none may.
    pub failed: AtomicBool,
}

/// The tenant.
pub struct Writer {
    config: VolumeConfig,
    client: Option<VolumeClient>,
    books: Arc<Books>,
    random: Random,
    open: BTreeMap<u64, u64>,
    next_tag: u64,
    effects: Vec<ClientEffect>,
}

impl Writer {
    /// A load on the volume of `config`.
    pub fn new(config: VolumeConfig, books: Arc<Books>, seed: u64) -> Writer {
        Writer {
            config,
            client: None,
            books,
            random: Random::new(seed),
            open: BTreeMap::new(),
            next_tag: 0,
            effects: Vec::new(),
        }
    }

    fn feed(&mut self, now: Time, event: ClientEvent) {
        let (config, effects) = (&self.config, &mut self.effects);
        let client =
            self.client.get_or_insert_with(|| VolumeClient::new(config.clone(), now, effects));
        client.handle(now, event, effects);
    }

    fn submit(&mut self, now: Time) {
        let going = self.books.ready.load(Ordering::Relaxed)
            && !self.books.enough.load(Ordering::Relaxed)
            && !self.books.failed.load(Ordering::Relaxed);
        while going && self.open.len() < DEPTH {
            let count = if self.random.one_in(4) { 1 + self.random.below(BLOCKS_MAX) } else { 1 };
            let chunk = self.random.below(CHUNKS);
            let first = chunk * CHUNK_BLOCKS + self.random.below(HOT_BLOCKS - count + 1);
            let unmap = self.random.one_in(20);
            let number = self.books.ledger.submitted(first, count, unmap);
            let offset = first * BLOCK_BYTES as u64;
            let op = if unmap {
                BlockOp::Unmap { offset, len: count * BLOCK_BYTES as u64 }
            } else {
                let mut data = Payload::empty();
                (first..first + count).for_each(|block| data.push(content(VOLUME, block, number)));
                BlockOp::Write { offset, data, fua: false }
            };
            self.next_tag += 1;
            self.open.insert(self.next_tag, number);
            self.feed(now, ClientEvent::Submit { tag: self.next_tag, op });
        }
    }

    fn carry_out(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    ClientEffect::Dial { to } => cx.dial(to),
                    ClientEffect::Reset { to } => cx.reset(to),
                    ClientEffect::Send { to, request } => cx.request(to, request),
                    ClientEffect::Complete { tag, result } => {
                        let number = self.open.remove(&tag).expect("a tag is completed once");
                        self.books.answered.fetch_add(1, Ordering::Relaxed);
                        match result {
                            Ok(_) => self.books.ledger.acknowledged(number),
                            // A full device is no failure, and its cuts are worth having.
                            Err(BlockError::NoSpace) => {
                                self.books.enough.store(true, Ordering::Relaxed);
                            }
                            Err(error) => self.fail(cx, format!("a write failed: {error}")),
                        }
                    }
                    ClientEffect::AskMap => {}
                    ClientEffect::Ready => self.books.ready.store(true, Ordering::Relaxed),
                    ClientEffect::Lost(error) => {
                        self.fail(cx, format!("the session ended: {error}"))
                    }
                }
            }
            self.submit(now);
        }
    }

    fn fail(&self, cx: &mut TenantCx<'_>, text: String) {
        self.books.failed.store(true, Ordering::Relaxed);
        cx.notice(true, text);
    }
}

impl Tenant for Writer {
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>) {
        match event {
            TenantEvent::LinkUp { to, credit_bytes, credit_requests } => {
                self.feed(now, ClientEvent::LinkUp { to, credit_bytes, credit_requests });
            }
            TenantEvent::LinkDown { to } => self.feed(now, ClientEvent::LinkDown { to }),
            TenantEvent::Reply { from, reply } => {
                self.feed(now, ClientEvent::Reply { from, reply });
            }
            TenantEvent::Accepted { stream, .. } => cx.close(stream),
            // The one command is the one to begin.
            TenantEvent::Command(_) => self.feed(now, ClientEvent::Map(self.config.map.clone())),
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
    }

    fn next_deadline(&self) -> Option<Time> {
        self.client.as_ref().and_then(VolumeClient::next_deadline)
    }
}
