//! Fills of clones: the leader reads what the parent holds, and proposes it.

use super::Shard;
use crate::consensus::{ClientRead, Cx, Filling, Proposal};
use crate::event::{Effect, LinkId};
use crate::mark;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::Payload;
use basalt_wire::command::{BlockRange, Command};
use basalt_wire::frame::{Refusal, Reply, ReplyResult};
use basalt_wire::ids::{RequestId, VolumeId};
use basalt_wire::time::Time;

impl Shard {
    /// Begins a fill: gives the answer if there is one at once.
    pub(super) fn start_fill(
        &mut self,
        now: Time,
        slot: usize,
        (link, id): (LinkId, RequestId),
        (volume, range): (VolumeId, BlockRange),
        filling: Filling,
        out: &mut Vec<Effect>,
    ) -> Result<Option<ReplyResult>, Refusal> {
        if let Some(answer) = self.elsewhere(slot, filling.term)? {
            return Ok(Some(answer));
        }
        let group = &self.groups[slot];
        group.replica.check_fill(volume, filling.parent)?;
        let (blocks, plan) = group.replica.plan_fill(volume, range);
        self.check_load(blocks.len() as usize * BLOCK_BYTES)?;
        let group = &self.groups[slot];
        if blocks.is_empty() {
            // What is shared never becomes more: this is so for good, whatever is not applied here yet.
            mark!("nothing left to fill");
            return Ok(Some(ReplyResult::Done { index: group.replica.applied() }));
        }
        let group = group.id;
        let filling = Some(Filling { blocks, ..filling });
        let (outstanding, failed, traced) = (0, false, None);
        let read = ClientRead {
            link,
            id,
            group,
            volume,
            range,
            plan,
            filling,
            outstanding,
            failed,
            traced,
        };
        Ok(self.start_read(now, read, out).map(|(result, _)| result))
    }

    /// Proposes a fill whose blocks were read. Whether this replica still leads is seen then, and whether what
    /// came meanwhile leaves room for them now.
    pub(super) fn propose_fill(
        &mut self,
        now: Time,
        read: &ClientRead,
        filling: Filling,
        (checksums, payload): (Vec<u32>, Payload),
        out: &mut Vec<Effect>,
    ) {
        let (link, id) = (read.link, read.id);
        let slot = self.by_id.get(&read.group).copied().ok_or(Refusal::NotHere);
        let slot = slot.and_then(|slot| self.check_load(payload.len()).map(|()| slot));
        let slot = match slot {
            Ok(slot) => slot,
            Err(refusal) => {
                mark!("blocks of a fill were read in vain");
                let result = ReplyResult::Refused(refusal);
                let reply = Reply::new(id, read.group, result);
                return out.push(Effect::Reply { link, reply });
            }
        };
        let Filling { parent, blocks, session: (epoch, incarnation), term } = filling;
        let (volume, range) = (read.volume, read.range);
        let command = Command::Fill { volume, parent, range, blocks, checksums };
        let proposal = Proposal::volume((link, id), (epoch, incarnation, term), command, payload);
        let mut cx = Cx { shared: &mut self.shared, now, out };
        self.groups[slot].accept(&mut cx, proposal);
    }
}
