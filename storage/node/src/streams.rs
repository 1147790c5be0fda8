//! The tenants' streams.

use crate::conn::{Conn, Phase, Role};
use crate::net::{Net, NetEvent};
use crate::slab::Handle;
use crate::tenant::{StreamId, TenantEvent};
use basalt_wire::time::Time;
use bytes::Bytes;

impl From<Handle> for StreamId {
    fn from(handle: Handle) -> StreamId {
        StreamId(handle.0)
    }
}

impl From<StreamId> for Handle {
    fn from(stream: StreamId) -> Handle {
        Handle(stream.0)
    }
}

impl Net {
    /// The stream, if it is open and the tenant's own.
    fn stream(&mut self, tenant: usize, stream: StreamId) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(stream.into())?;
        let own = matches!(conn.role, Role::Stream { tenant: owner, .. } if owner == tenant);
        (own && conn.phase == Phase::Open).then_some(conn)
    }

    pub(crate) fn stream_send(&mut self, tenant: usize, stream: StreamId, bytes: Bytes) {
        if let Some(conn) = self.stream(tenant, stream) {
            conn.tx.push(bytes);
            self.stream_queued_more(stream.into());
        }
    }

    pub(crate) fn stream_send_copy(&mut self, tenant: usize, stream: StreamId, bytes: &[u8]) {
        if let Some(conn) = self.stream(tenant, stream) {
            conn.tx.push_copy(bytes);
            self.stream_queued_more(stream.into());
        }
    }

    fn stream_queued_more(&mut self, handle: Handle) {
        let (high, bound) = (self.limits.stream_high, self.limits.stream_queue);
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let queued = conn.tx.queued();
        if let Role::Stream { above_high, .. } = &mut conn.role {
            *above_high |= queued > high;
        }
        if queued > bound {
            // Closing within the tenant's own call would surprise it: the queue is emptied, and the
            // connection ends with this turn.
            conn.tx.clear();
            let line = format!("{}: closed: it does not read", self.describe(handle));
            self.remember(line);
            self.close_now(handle);
            return;
        }
        self.touch(handle);
    }

    fn close_now(&mut self, handle: Handle) {
        if let Some(conn) = self.conns.get_mut(handle) {
            conn.phase = Phase::Lingering;
            self.set_deadline(handle, Time::ZERO);
        }
    }

    pub(crate) fn stream_queued(&self, tenant: usize, stream: StreamId) -> usize {
        let conn = self.conns.get(stream.into());
        conn.filter(|conn| matches!(conn.role, Role::Stream { tenant: t, .. } if t == tenant))
            .map_or(0, |conn| conn.tx.queued())
    }

    pub(crate) fn stream_pause(&mut self, tenant: usize, stream: StreamId, pause: bool) {
        let Some(conn) = self.stream(tenant, stream) else { return };
        let Role::Stream { paused, .. } = &mut conn.role else { return };
        if std::mem::replace(paused, pause) && !pause {
            self.arm(stream.into());
        }
    }

    pub(crate) fn stream_close(&mut self, tenant: usize, stream: StreamId, now: Time) {
        if self.stream(tenant, stream).is_some() {
            self.close_after_flush(stream.into(), now);
        }
    }

    pub(crate) fn stream_peer(&self, tenant: usize, stream: StreamId) -> String {
        let conn = self.conns.get(stream.into());
        conn.filter(|conn| matches!(conn.role, Role::Stream { tenant: t, .. } if t == tenant))
            .map_or_else(|| "a closed stream".into(), |conn| conn.peer.clone())
    }

    /// A send of a stream completed: its tenant hears when the queue has become short.
    pub(crate) fn stream_sent(&mut self, handle: Handle) {
        let low = self.limits.stream_low;
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let queued = conn.tx.queued();
        let Role::Stream { tenant, above_high, .. } = &mut conn.role else { return };
        if *above_high && queued < low && conn.phase == Phase::Open {
            *above_high = false;
            let event = TenantEvent::Drained { stream: handle.into() };
            self.inbox.push(NetEvent::Tenant(*tenant, event));
        }
    }
}
