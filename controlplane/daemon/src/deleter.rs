//! Deletes the blocks of volumes that were deleted: a tenant of the reactor that opens one session
//! with each such volume, fences everyone else out, and gives its blocks back in every group.

use basalt_client::{
    BlockError, BlockOp, ClientEffect, ClientEvent, VolumeClient, VolumeConfig,
};
use basalt_node::{Tenant, TenantCx, TenantEvent};
use basalt_wire::time::Time;
use tokio::sync::oneshot;

const DELETE: u64 = 1;

/// A volume to be deleted.
pub struct DeleteJob {
    /// A session of an epoch that nobody else has.
    pub config: VolumeConfig,
    /// Told the end.
    pub done: oneshot::Sender<Result<(), BlockError>>,
}

/// The tenant. It works on one volume at a time; a further job waits for its turn.
#[derive(Default)]
pub struct Deleter {
    active: Option<Active>,
    waiting: Vec<DeleteJob>,
    effects: Vec<ClientEffect>,
}

struct Active {
    client: VolumeClient,
    done: oneshot::Sender<Result<(), BlockError>>,
}

impl Deleter {
    fn begin(&mut self, now: Time) {
        if self.active.is_some() {
            return;
        }
        let Some(DeleteJob { config, done }) = self.waiting.pop() else { return };
        let mut client = VolumeClient::new(config, now, &mut self.effects);
        // It waits in the client until every group is fenced.
        let submit = ClientEvent::Submit { tag: DELETE, op: BlockOp::Delete };
        client.handle(now, submit, &mut self.effects);
        self.active = Some(Active { client, done });
    }

    fn carry_out(&mut self, cx: &mut TenantCx<'_>) {
        let mut end = None;
        for effect in self.effects.drain(..) {
            match effect {
                ClientEffect::Dial { to } => cx.dial(to),
                ClientEffect::Reset { to } => cx.reset(to),
                ClientEffect::Send { to, request } => cx.request(to, request),
                ClientEffect::Complete { tag: DELETE, result } => end = Some(result.map(|_| ())),
                ClientEffect::Lost(error) => end = Some(end.unwrap_or(Err(error))),
                ClientEffect::Complete { .. } | ClientEffect::Ready => {}
            }
        }
        if let (Some(result), Some(active)) = (end, self.active.take_if(|_| end.is_some())) {
            // Whoever asked may have stopped.
            let _ = active.done.send(result);
        }
    }
}

impl Tenant for Deleter {
    fn event(&mut self, now: Time, event: TenantEvent, _cx: &mut TenantCx<'_>) {
        let event = match event {
            TenantEvent::Command(command) => {
                if let Ok(job) = command.downcast::<DeleteJob>() {
                    self.waiting.push(*job);
                }
                return;
            }
            TenantEvent::LinkUp { to, credit_bytes, credit_requests } => {
                ClientEvent::LinkUp { to, credit_bytes, credit_requests }
            }
            TenantEvent::LinkDown { to } => ClientEvent::LinkDown { to },
            TenantEvent::Reply { from, reply } => ClientEvent::Reply { from, reply },
            _ => return,
        };
        if let Some(active) = &mut self.active {
            active.client.handle(now, event, &mut self.effects);
        }
    }

    fn end_turn(&mut self, now: Time, cx: &mut TenantCx<'_>) {
        self.begin(now);
        if let Some(active) = &mut self.active {
            active.client.end_turn(now, &mut self.effects);
        }
        self.carry_out(cx);
    }

    fn next_deadline(&self) -> Option<Time> {
        match (&self.active, self.waiting.is_empty()) {
            (Some(active), _) => active.client.next_deadline(),
            (None, false) => Some(Time::ZERO),
            (None, true) => None,
        }
    }
}
