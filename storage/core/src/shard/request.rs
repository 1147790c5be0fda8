//! Clients' requests: what is refused at once, what is read, what is proposed.

use super::Shard;
use crate::consensus::{Arrival, ClientRead, Cx, Filling, LogRead, Proposal, read_trace};
use crate::event::{Effect, LinkId};
use crate::mark;
use crate::planted::Bug;
use basalt_wire::block::{BLOCK_BYTES, CHUNK_BLOCKS, COMMAND_BLOCKS_MAX};
use basalt_wire::blockset::BlockSet;
use basalt_wire::buffer::Payload;
use basalt_wire::codec::BLOCK_END_MAX;
use basalt_wire::command::{BlockRange, Command};
use basalt_wire::frame::{Refusal, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::ids::{Generation, LogIndex, SnapshotId, Term};
use basalt_wire::time::Time;
use basalt_wire::trace::Trace;

/// Whether a range has 1 to `most` blocks, all of one chunk.
fn is_range(range: BlockRange, most: u32) -> bool {
    range.count >= 1
        && range.count <= most
        && range.block < BLOCK_END_MAX
        && range.block % CHUNK_BLOCKS + u64::from(range.count) <= CHUNK_BLOCKS
}

/// An answer, and where its time went if it is traced.
pub(super) type Answer = (ReplyResult, Option<Box<Trace>>);

/// What a request becomes.
enum Want {
    Leader,
    Read(BlockRange, LogIndex, Option<Generation>),
    Extents(BlockRange, LogIndex, Option<Generation>),
    Changes(BlockRange, LogIndex, Generation, Option<Generation>),
    Change(Term, Command, Payload),
    CloseGate(Term, Generation),
    OpenGate(Term, Command),
    Fill(Term, SnapshotId, BlockRange),
}

/// A change without blocks.
fn small(term: Term, command: Command) -> Want {
    Want::Change(term, command, Payload::empty())
}

/// Checks a request's shape.
fn parse(request: Request) -> Result<Want, Refusal> {
    let (volume, epoch) = (request.volume, request.epoch);
    match request.op {
        RequestOp::Leader => Ok(Want::Leader),
        RequestOp::Read { range, floor, snapshot } if is_range(range, COMMAND_BLOCKS_MAX) => {
            Ok(Want::Read(range, floor, snapshot))
        }
        RequestOp::Extents { range, floor, snapshot } if is_range(range, CHUNK_BLOCKS as u32) => {
            Ok(Want::Extents(range, floor, snapshot))
        }
        RequestOp::Changes { range, floor, since, snapshot }
            if is_range(range, CHUNK_BLOCKS as u32) && snapshot.is_none_or(|s| since <= s) =>
        {
            Ok(Want::Changes(range, floor, since, snapshot))
        }
        RequestOp::Write { term, generation, range, checksums, payload } => {
            let count = range.count as usize;
            let fits = checksums.len() == count && payload.len() == count * BLOCK_BYTES;
            if !is_range(range, COMMAND_BLOCKS_MAX) || !fits {
                return Err(Refusal::Invalid);
            }
            Ok(Want::Change(
                term,
                Command::Write { volume, epoch, generation, range, checksums },
                payload,
            ))
        }
        RequestOp::Unmap { term, generation, range } if is_range(range, CHUNK_BLOCKS as u32) => {
            Ok(small(term, Command::Unmap { volume, epoch, generation, range }))
        }
        RequestOp::Fence { term, generation } => {
            Ok(small(term, Command::Fence { volume, epoch, generation }))
        }
        RequestOp::Delete { term } => Ok(small(term, Command::Delete { volume })),
        RequestOp::Freeze { term, generation } => {
            Ok(small(term, Command::Freeze { volume, generation }))
        }
        RequestOp::CloseGate { term, generation } => Ok(Want::CloseGate(term, generation)),
        RequestOp::OpenGate { term, generation } => {
            Ok(Want::OpenGate(term, Command::Freeze { volume, generation }))
        }
        RequestOp::DropSnapshot { term, generation } => {
            Ok(small(term, Command::DropSnapshot { volume, generation }))
        }
        RequestOp::Revert { term, generation } => {
            Ok(small(term, Command::Revert { volume, epoch, generation }))
        }
        RequestOp::Clone { term, parent } => Ok(small(term, Command::Clone { volume, parent })),
        RequestOp::Detach { term, parent } => Ok(small(term, Command::Detach { volume, parent })),
        RequestOp::Fill { term, parent, range } if is_range(range, COMMAND_BLOCKS_MAX) => {
            Ok(Want::Fill(term, parent, range))
        }
        _ => Err(Refusal::Invalid),
    }
}

impl Shard {
    pub(super) fn request(
        &mut self,
        now: Time,
        (arrival, link, remote): (Arrival, LinkId, bool),
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        let (id, group) = (request.id, request.group);
        let result = match self.read_waits(&request) {
            true if self.is_out_of_reach(&request) => Err(Refusal::Unavailable),
            true if self.is_busy(0) => Err(Refusal::Busy),
            true => {
                self.keep_read((arrival, link, remote), request);
                Ok(None)
            }
            false => self.try_request(now, (arrival, link, remote), request, out),
        };
        let refused = |refusal| Some((ReplyResult::Refused(refusal), None));
        if let Some((result, trace)) = result.unwrap_or_else(refused) {
            let reply = Reply { id, group, result, trace };
            out.push(Effect::Reply { link, reply });
        }
    }

    /// Serves a request: gives the answer if there is one at once.
    fn try_request(
        &mut self,
        now: Time,
        (arrival, link, remote): (Arrival, LinkId, bool),
        request: Request,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Answer>, Refusal> {
        let at_once = |result| (result, None);
        let slot = *self.by_id.get(&request.group).ok_or(Refusal::NotHere)?;
        if request.group == basalt_wire::ids::GroupId::METADATA {
            let RequestOp::Leader = request.op else { return Err(Refusal::Invalid) };
        }
        let (id, volume, epoch) = (request.id, request.volume, request.epoch);
        let (incarnation, traced) = (request.incarnation, request.traced);
        match parse(request)? {
            Want::Leader if self.shared.read_only && self.groups[slot].leader().is_none() => {
                Err(Refusal::NoSpace)
            }
            Want::Leader => Ok(Some(at_once(self.leader(slot)))),
            Want::Extents(range, floor, snapshot) => {
                let replica = &self.groups[slot].replica;
                self.check_agreement(slot)?;
                replica.check_read((volume, epoch), floor, snapshot)?;
                let (index, runs) = replica.extents(volume, range, snapshot);
                Ok(Some(at_once(ReplyResult::Extents { index, runs })))
            }
            Want::Changes(range, floor, since, snapshot) => {
                let replica = &self.groups[slot].replica;
                replica.check_snapshot(volume, since)?;
                self.check_agreement(slot)?;
                replica.check_read((volume, epoch), floor, snapshot)?;
                let (index, runs) = replica.changes(volume, range, since, snapshot);
                Ok(Some(at_once(ReplyResult::Extents { index, runs })))
            }
            Want::Read(range, floor, snapshot) => {
                let replica = &self.groups[slot].replica;
                self.check_agreement(slot)?;
                replica.check_read((volume, epoch), floor, snapshot)?;
                if self.is_busy(0) {
                    return Err(Refusal::Busy);
                }
                let plan = replica.plan(volume, range, snapshot);
                let group = self.groups[slot].id;
                let read = ClientRead {
                    link,
                    id,
                    group,
                    volume,
                    range,
                    plan,
                    filling: None,
                    outstanding: 0,
                    failed: false,
                    traced: traced.then_some((arrival, now)),
                };
                Ok(self.start_read(now, read, out))
            }
            Want::Fill(term, parent, range) => {
                let filling = Filling {
                    parent,
                    blocks: BlockSet::default(),
                    session: (epoch, incarnation),
                    term,
                };
                let answer =
                    self.start_fill(now, slot, (link, id), (volume, range), filling, out)?;
                Ok(answer.map(at_once))
            }
            Want::CloseGate(term, generation) => {
                if !self.groups[slot].leads() || term != self.groups[slot].term() {
                    return Ok(Some(at_once(self.leader(slot))));
                }
                let mut cx = Cx { shared: &mut self.shared, now, out };
                self.groups[slot].close_gate(&mut cx, volume, generation)?;
                let index = self.groups[slot].replica.applied();
                Ok(Some(at_once(ReplyResult::Done { index })))
            }
            Want::Change(term, command, payload) => {
                let session = (epoch, incarnation, term);
                let proposal = Proposal::volume((link, id), session, command, payload);
                let proposal = proposal.traced(traced.then_some(arrival));
                Ok(self.accept(now, slot, (term, remote), proposal, out)?.map(at_once))
            }
            Want::OpenGate(term, command) => {
                let session = (epoch, incarnation, term);
                let proposal = Proposal::volume((link, id), session, command, Payload::empty());
                let proposal = proposal.opening_gate();
                Ok(self.accept(now, slot, (term, false), proposal, out)?.map(at_once))
            }
        }
    }

    /// Accepts a change that is meant for the leader of a term, or tells why not.
    fn accept(
        &mut self,
        now: Time,
        slot: usize,
        (term, remote): (Term, bool),
        proposal: Proposal,
        out: &mut Vec<Effect>,
    ) -> Result<Option<ReplyResult>, Refusal> {
        if let Some(answer) = self.elsewhere(slot, term)? {
            return Ok(Some(answer));
        }
        self.check_load(proposal.bytes())?;
        if remote && !proposal.is_intact() {
            return Err(Refusal::BadChecksum);
        }
        let mut cx = Cx { shared: &mut self.shared, now, out };
        self.groups[slot].accept(&mut cx, proposal);
        Ok(None)
    }

    /// Who leads, if a change that is meant for the leader of a term can not be proposed here.
    pub(super) fn elsewhere(
        &self,
        slot: usize,
        term: Term,
    ) -> Result<Option<ReplyResult>, Refusal> {
        let group = &self.groups[slot];
        let right_term = term == group.term() || self.shared.planted.is(Bug::TermUnchecked);
        // Just handed over: the answer names the new leader as soon as it is known.
        let wait = !group.leads() && group.awaits_leader();
        if self.shared.read_only && group.leader().is_none() {
            return Err(Refusal::NoSpace);
        }
        if !wait && (!group.leads() || !right_term) {
            mark!("request for another leader");
            return Ok(Some(self.leader(slot)));
        }
        Ok(None)
    }

    /// Whether so many bytes can be taken now.
    pub(super) fn check_load(&self, bytes: usize) -> Result<(), Refusal> {
        if !self.shared.fits_surely(bytes) {
            return Err(Refusal::Invalid);
        }
        if self.is_busy(bytes) {
            return Err(Refusal::Busy);
        }
        Ok(())
    }

    /// A replica that is known to hold something else than its leader answers no reads.
    fn check_agreement(&self, slot: usize) -> Result<(), Refusal> {
        match self.groups[slot].differs() {
            true => Err(Refusal::Behind),
            false => Ok(()),
        }
    }

    fn leader(&self, slot: usize) -> ReplyResult {
        let group = &self.groups[slot];
        ReplyResult::Leader { leader: group.leader(), term: group.term() }
    }

    pub(super) fn start_read(
        &mut self,
        now: Time,
        mut read: ClientRead,
        out: &mut Vec<Effect>,
    ) -> Option<Answer> {
        if read.plan.is_complete() {
            let (index, checksums, payload) = read.plan.finish(true).ok()?;
            let trace = read.traced.map(|traced| read_trace(traced, now));
            return Some((ReplyResult::Data { index, checksums, payload }, trace));
        }
        let runs: Vec<_> = read.plan.reads().collect();
        read.outstanding = runs.len() as u32;
        let at = self.shared.client_reads.insert(read);
        let mut cx = Cx { shared: &mut self.shared, now, out };
        for (run, location, blocks) in runs {
            cx.read(LogRead::Client(at, run), location, blocks);
        }
        None
    }
}
