//! What the log tells: replay at start, places, durability, reads.

use super::{Phase, Shard};
use crate::consensus::{Cx, LogRead, read_trace};
use crate::event::Effect;
use crate::log::{Damage, LogEvent, OpenReport, Record, RecordSeq};
use crate::mark;
use crate::planted::Bug;
use crate::scrub::Target;
use basalt_wire::frame::{Refusal, Reply, ReplyResult};
use basalt_wire::ids::GroupId;
use basalt_wire::time::Time;
use bytes::Bytes;

impl Shard {
    pub(super) fn log_events(
        &mut self,
        now: Time,
        events: &mut Vec<LogEvent>,
        out: &mut Vec<Effect>,
    ) {
        for event in events.drain(..) {
            match event {
                LogEvent::Replayed { record, location, blocks, data_at } => {
                    match (self.by_id.get(&record.group()), &record) {
                        (Some(slot), _) => {
                            self.opening[*slot].replay(record, location, blocks, data_at);
                        }
                        // A group that is not configured here any more leaves its records behind.
                        (None, Record::HardState { group, state }) => {
                            self.departed.insert(*group, *state);
                        }
                        (None, _) => {}
                    }
                }
                LogEvent::CheckpointReplayed => self.judge_checkpoint(),
                LogEvent::CheckpointRefused(reason) => self.checkpoint_refused(&reason, out),
                LogEvent::Damaged(damage) => {
                    self.start.damaged = true;
                    self.damaged(damage, out);
                }
                LogEvent::Opened(report) => self.opened(now, report, out),
                LogEvent::OpenFailed(reason) => {
                    let text = format!("the device can not be opened: {reason}");
                    out.push(Effect::Notice { alarm: true, text });
                    self.phase = Phase::Failed(reason);
                }
                LogEvent::Placed { seq, location, data_at, payload } => {
                    let at = (seq.0 - self.shared.durable.0) as usize - 1;
                    let written = self.shared.written[at];
                    if !self.shared.traces.is_idle() {
                        self.shared.traces.submitted(seq, now);
                    }
                    let group = &mut self.groups[written.group];
                    match written.entry {
                        Some(entry) => group.placed(entry, (location, data_at), payload),
                        None => {
                            group.fill_placed(seq, location);
                            self.cleaner.placed(seq, location);
                        }
                    }
                }
                LogEvent::Durable(seq) => {
                    if !self.shared.traces.is_idle() {
                        self.shared.traces.durable(seq, now, out);
                    }
                    self.durable(seq);
                }
                LogEvent::CopiesDurable(number) => self.apart_durable(number),
                LogEvent::Read { token, result } => self.read_done(now, token, result.ok(), out),
                LogEvent::ReadData { token, result } => {
                    let read = self.shared.log_reads.take(token as usize);
                    self.entry_read(now, read, result, None, out);
                }
                LogEvent::Full => self.log_full(now, out),
                LogEvent::Room => self.log_has_room(now, out),
                LogEvent::Suspect(reason) => self.suspect(reason, out),
            }
        }
    }

    fn damaged(&mut self, damage: Damage, out: &mut Vec<Effect>) {
        mark!("log damaged");
        self.votes_lost |= damage.vote_lost;
        for (slot, group) in self.groups.iter().enumerate() {
            if damage.group.is_none_or(|id| id == group.id) {
                self.opening[slot].damaged(&damage);
            }
        }
        let vote = if damage.vote_lost {
            "; a vote may be lost, so that the replica takes no part until its leader readmits it"
        } else {
            ""
        };
        let text = format!("the log is damaged: {}{vote}", damage.text);
        out.push(Effect::Notice { alarm: true, text });
    }

    fn opened(&mut self, now: Time, report: OpenReport, out: &mut Vec<Effect>) {
        let snapshot = self.start.snapshot.take();
        self.tell_opening(now, report, snapshot.as_deref(), out);
        self.phase = Phase::Running;
        self.measure_room();
        self.next_tick = now + self.shared.timing.tick;
        let states = std::mem::take(&mut self.opening);
        self.restore(snapshot);
        if self.start.damaged {
            self.taker.damaged(&self.shared.log);
        }
        let mut cx = Cx { shared: &mut self.shared, now, out };
        for (group, state) in self.groups.iter_mut().zip(states) {
            group.open(&mut cx, state);
        }
        if self.drain.take().is_some() {
            self.start_drain(now, out);
        }
    }

    /// What became durable is acknowledged when the turn ends, all of it together.
    fn durable(&mut self, seq: RecordSeq) {
        self.copies_durable(seq);
        let count = (seq.0.saturating_sub(self.shared.durable.0)) as usize;
        self.shared.durable = self.shared.durable.max(seq);
        for written in self.shared.written.drain(..count) {
            self.groups[written.group].dirty = true;
        }
    }

    /// Nothing more can be promised here, neither an entry nor a vote; what is applied is read.
    fn log_full(&mut self, now: Time, out: &mut Vec<Effect>) {
        mark!("shard is read only");
        self.shared.read_only = true;
        let text =
            "the device is full to the last block: it only serves reads until space is freed";
        out.push(Effect::Notice { alarm: true, text: text.to_owned() });
        self.each(now, out, |group, cx| group.log_full(cx));
    }

    /// Space was freed: what waited is being written, and replicas vote and lead again.
    fn log_has_room(&mut self, now: Time, out: &mut Vec<Effect>) {
        mark!("shard is writable again");
        self.shared.read_only = false;
        let text = "the device has room again: it takes full part from here on";
        out.push(Effect::Notice { alarm: false, text: text.to_owned() });
        self.each(now, out, |group, cx| group.log_has_room(cx));
    }

    /// Nothing more becomes durable, so nothing more may be answered.
    pub(super) fn suspect(&mut self, reason: String, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Suspect(_)) {
            mark!("device suspect");
            self.phase = Phase::Suspect(reason.clone());
            out.push(Effect::DeviceSuspect { reason });
        }
    }

    fn read_done(&mut self, now: Time, token: u64, result: Option<Bytes>, out: &mut Vec<Effect>) {
        match self.shared.log_reads.take(token as usize) {
            Some(LogRead::Client(read, run)) => self.client_read(now, read, run, result, out),
            Some(LogRead::Page(read, run)) => self.page_read(now, read, run, result, out),
            Some(LogRead::Cleaner) => self.cleaner_read(now, result, out),
            Some(LogRead::Header) => self.header_read(result.as_ref(), out),
            Some(LogRead::Scrub) => self.scrub_read(now, result, out),
            Some(LogRead::Repair(at)) => self.copy_read(now, at, result, out),
            read => self.entry_read(now, read, None, result, out),
        }
    }

    fn entry_read(
        &mut self,
        now: Time,
        read: Option<LogRead>,
        data: Option<Bytes>,
        payload: Option<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        let Some(LogRead::Entry { group, peer, message, entry }) = read else { return };
        let mut cx = Cx { shared: &mut self.shared, now, out };
        self.groups[group].fetched(&mut cx, peer, (message, entry), data, payload);
    }

    fn page_read(
        &mut self,
        now: Time,
        at: usize,
        run: usize,
        data: Option<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        let last = self.shared.page_reads.get_mut(at).is_some_and(|read| read.fill(run, data));
        if let Some(read) = last.then(|| self.shared.page_reads.take(at)).flatten() {
            let mut cx = Cx { shared: &mut self.shared, now, out };
            self.groups[read.group].send_blocks(&mut cx, read);
        }
    }

    fn client_read(
        &mut self,
        now: Time,
        at: usize,
        run: usize,
        data: Option<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        let Some(read) = self.shared.client_reads.get_mut(at) else { return };
        read.outstanding -= 1;
        match data {
            Some(data) => read.plan.fill(run, data),
            None => read.failed = true,
        }
        if read.outstanding > 0 {
            return;
        }
        let mut read = self.shared.client_reads.take(at).expect("seen above");
        let served = self.by_id.get(&read.group).map(|slot| &self.groups[*slot].replica);
        if served.is_some_and(|replica| replica.is_fuzzy())
            && !self.shared.planted.is(Bug::FuzzyPagesServed)
        {
            mark!("pages ran ahead of a read");
            let result = ReplyResult::Refused(Refusal::Behind);
            let reply = Reply::new(read.id, read.group, result);
            out.push(Effect::Reply { link: read.link, reply });
            return;
        }
        let trust = self.shared.planted.is(Bug::ReadUnverified);
        let plan = std::mem::take(&mut read.plan);
        let finished = if read.failed { None } else { plan.finish(trust).ok() };
        let result = match (finished, read.filling) {
            (Some((_, checksums, payload)), Some(filling)) => {
                return self.propose_fill(now, &read, filling, (checksums, payload), out);
            }
            (Some((index, checksums, payload)), None) => {
                ReplyResult::Data { index, checksums, payload }
            }
            (None, _) => {
                mark!("damaged block read");
                if let Some(slot) = self.by_id.get(&read.group) {
                    // Of a clone the block may be one that a volume above it holds.
                    let owners = self.groups[*slot].replica.lineage(read.volume);
                    let target = |volume| Target { slot: *slot, volume, range: read.range };
                    self.shared.suspects.extend(owners.map(target));
                }
                self.note_damage(read.group, out);
                ReplyResult::Refused(Refusal::Damaged)
            }
        };
        let trace = read.traced.map(|traced| read_trace(traced, now));
        let reply = Reply { id: read.id, group: read.group, result, trace };
        out.push(Effect::Reply { link: read.link, reply });
    }

    fn note_damage(&mut self, group: GroupId, out: &mut Vec<Effect>) {
        let text =
            format!("group {group}: a block does not match its checksum; another replica is asked");
        out.push(Effect::Notice { alarm: true, text });
    }
}
