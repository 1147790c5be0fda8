//! Listeners, and the requests of clients that dialled in.

use crate::config::{ListenSource, NodeError};
use crate::conn::{Conn, Phase, Role};
use crate::net::{Net, NetEvent, Op, Timer, frame_name};
use crate::slab::Handle;
use crate::sys;
use crate::tenant::TenantEvent;
use basalt_core::event::{Event, LinkId};
use basalt_link::Acceptor;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::codec::DecodeLimits;
use basalt_wire::frame::{Frame, Refusal, Reply, ReplyResult, Request, RequestOp};
use basalt_wire::time::Time;
use io_uring::opcode;
use io_uring::types::Fd;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
pub(crate) struct Listener {
    fd: OwnedFd,
    purpose: Purpose,
    /// Removed when the reactor ends.
    path: Option<PathBuf>,
    armed: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Links of peers and clients.
    Data,
    /// Streams for a tenant; the number is that of the listener in the configuration.
    Stream { tenant: usize, number: usize },
}

impl Listener {
    pub(crate) fn data(address: SocketAddr) -> Result<(Listener, SocketAddr), NodeError> {
        let (fd, bound) = listen_tcp(address)?;
        Ok((Listener { fd, purpose: Purpose::Data, path: None, armed: false }, bound))
    }

    /// A listener for a tenant's streams, with its address if it is a TCP socket.
    pub(crate) fn stream(
        tenant: usize,
        number: usize,
        source: ListenSource,
    ) -> Result<(Listener, Option<SocketAddr>), NodeError> {
        let purpose = Purpose::Stream { tenant, number };
        let (fd, bound, path) = match source {
            ListenSource::Tcp(address) => {
                let (fd, bound) = listen_tcp(address)?;
                (fd, Some(bound), None)
            }
            ListenSource::Unix { path, unlink_stale } => {
                (listen_unix(&path, unlink_stale)?, None, Some(path))
            }
            ListenSource::Inherited(fd) => {
                let bound = check_inherited(&fd)?;
                (fd, bound, None)
            }
        };
        Ok((Listener { fd, purpose, path, armed: false }, bound))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen_tcp(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), NodeError> {
    let what = || format!("can not listen on {address}");
    let listener = TcpListener::bind(address).map_err(NodeError::system(what()))?;
    let bound = listener.local_addr().map_err(NodeError::system(what()))?;
    Ok((listener.into(), bound))
}

fn listen_unix(path: &Path, unlink_stale: bool) -> Result<OwnedFd, NodeError> {
    let what = |action: &str| format!("can not {action} the socket {}", path.display());
    if unlink_stale && path.exists() {
        match UnixStream::connect(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(NodeError::system(what("remove the stale")))?;
            }
            Ok(_) | Err(_) => {
                let source = std::io::Error::from(std::io::ErrorKind::AddrInUse);
                return Err(NodeError::System { what: what("replace"), source });
            }
        }
    }
    // Made under another name and then linked to its own: nobody can connect before the mode is
    // set, and a socket that exists is never replaced.
    let mut made = path.as_os_str().to_owned();
    made.push(format!(".{}.new", std::process::id()));
    let made = PathBuf::from(made);
    let _ = std::fs::remove_file(&made);
    let listener = UnixListener::bind(&made).map_err(NodeError::system(what("make")))?;
    let linked = std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::hard_link(&made, path));
    let _ = std::fs::remove_file(&made);
    linked.map_err(NodeError::system(what("make")))?;
    Ok(listener.into())
}

fn check_inherited(fd: &OwnedFd) -> Result<Option<SocketAddr>, NodeError> {
    let what = || format!("the inherited descriptor {} is no socket", fd.as_raw_fd());
    if !sys::is_listening(fd).map_err(NodeError::system(what()))? {
        let text = format!("the inherited socket {} does not listen", fd.as_raw_fd());
        return Err(NodeError::Config(text));
    }
    sys::set_blocking(fd).map_err(NodeError::system(what()))?;
    let copy = fd.try_clone().map_err(NodeError::system(what()))?;
    Ok(TcpListener::from(copy).local_addr().ok())
}

impl Net {
    /// Accepts on a listener, now that its tenant or shard is there.
    pub(crate) fn listen(&mut self, listener: Listener) {
        self.listeners.push(listener);
        self.accept_next(self.listeners.len() - 1);
    }

    pub(crate) fn accept_next(&mut self, number: usize) {
        let Some(listener) = self.listeners.get_mut(number) else { return };
        if listener.armed || self.stopping {
            return;
        }
        listener.armed = true;
        let fd = Fd(listener.fd.as_raw_fd());
        let none = std::ptr::null_mut();
        let entry = opcode::Accept::new(fd, none, none.cast()).flags(libc::SOCK_CLOEXEC).build();
        self.start(entry, Op::Accept, number as u64);
    }

    /// Accepts nothing more.
    pub(crate) fn stop_listening(&mut self) {
        for number in 0..self.listeners.len() {
            if self.listeners[number].armed {
                let target = crate::net::user_data(Op::Accept, number as u64);
                let entry = opcode::AsyncCancel::new(target).build();
                self.start(entry, Op::CancelOther, 0);
            }
        }
    }

    pub(crate) fn on_accept(&mut self, number: usize, result: i32, now: Time) {
        let Some(listener) = self.listeners.get_mut(number) else { return };
        listener.armed = false;
        let purpose = listener.purpose;
        match result {
            fd if fd >= 0 => {
                self.counters.accepts += 1;
                self.accepted(sys::owned(fd), purpose, now);
            }
            r if matches!(-r, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                let error = std::io::Error::from_raw_os_error(-r);
                tracing::warn!(reactor = %self.identity.name, "can not accept: {error}");
                return self.set_timer(now + ACCEPT_PAUSE, Timer::Accept(number));
            }
            _ => {}
        }
        self.accept_next(number);
    }

    fn accepted(&mut self, fd: OwnedFd, purpose: Purpose, now: Time) {
        if self.stopping {
            return;
        }
        sys::set_nodelay(&fd);
        match purpose {
            Purpose::Data => self.accepted_link(fd, now),
            Purpose::Stream { tenant, number } => self.accepted_stream(fd, tenant, number, now),
        }
    }

    fn accepted_link(&mut self, fd: OwnedFd, now: Time) {
        if self.strangers > 0 && self.strangers >= self.limits.handshakes {
            self.evict_stranger(now);
        }
        if self.accepted >= self.limits.connections {
            return self.turn_away(&fd, "too many connections");
        }
        let peer = sys::peer_name(&fd);
        let conn =
            Conn::new(fd, peer, Role::Stranger(Acceptor::default()), DecodeLimits::HANDSHAKE, now);
        let Some(handle) = self.conns.insert(conn) else { return };
        self.accepted += 1;
        self.strangers += 1;
        self.set_deadline(handle, now + self.limits.handshake);
        self.arm(handle);
    }

    /// Makes room for one more stranger: whoever means it says at once who it is, so the one that has
    /// been silent for longest goes. Otherwise a few idle connections would keep every peer out.
    fn evict_stranger(&mut self, now: Time) {
        let strangers = self.conns.iter().filter(|(_, conn)| {
            conn.phase != Phase::Dead && matches!(conn.role, Role::Stranger(_))
        });
        let oldest = strangers.min_by_key(|(_, conn)| conn.deadline).map(|(handle, _)| handle);
        if let Some(oldest) = oldest {
            self.fail(oldest, "it did not say in time who it is: others need its place", now);
        }
    }

    fn accepted_stream(&mut self, fd: OwnedFd, tenant: usize, listener: usize, now: Time) {
        if self.streams >= self.limits.streams {
            return self.turn_away(&fd, "too many streams");
        }
        sys::set_keepalive(&fd);
        let role = Role::Stream { tenant, paused: false, above_high: false };
        let peer = sys::peer_name(&fd);
        let conn = Conn::new(fd, peer, role, DecodeLimits::HANDSHAKE, now);
        let Some(handle) = self.conns.insert(conn) else { return };
        self.streams += 1;
        let event = TenantEvent::Accepted { stream: handle.into(), listener };
        self.inbox.push(NetEvent::Tenant(tenant, event));
        self.arm(handle);
    }

    fn turn_away(&mut self, fd: &OwnedFd, reason: &str) {
        let line = format!("connection from {}: closed: {reason}", sys::peer_name(fd));
        self.remember(line);
    }

    // ---- requests of clients ----

    pub(crate) fn on_client_frame(&mut self, handle: Handle, frame: Frame, now: Time) {
        let request = match frame {
            Frame::Request(request) => request,
            Frame::Present(present) => return self.on_present(handle, &present, now),
            other => {
                let text = format!("a client may not send a {}", frame_name(&other));
                return self.fail(handle, &text, now);
            }
        };
        let (bytes_max, requests_max) = (self.limits.credit_bytes, self.limits.credit_requests);
        let Some(conn) = self.conns.get_mut(handle) else { return };
        let Role::Client(client) = &mut conn.role else { return };
        let (id, size) = (request.id.0, payload_size(&request));
        if !client.credit.fits(size, bytes_max, requests_max) {
            let text = format!(
                "request {id} of {size} bytes is beyond the credit: {} of {requests_max} requests \
                 and {} of {bytes_max} bytes are unanswered",
                client.credit.requests(),
                client.credit.bytes()
            );
            return self.fail(handle, &text, now);
        }
        if !client.credit.open(id, size) {
            let text = format!("request {id} has the id of one that is not answered yet");
            return self.fail(handle, &text, now);
        }
        self.counters.requests += 1;
        if let Err(why) = client.grants.permits(&request) {
            return self.forbid(handle, &request, &why, now);
        }
        let event = Event::Request { link: LinkId(handle.0), remote: true, request };
        self.inbox.push(NetEvent::Shard(event));
    }

    /// Refuses a request that goes beyond what the client's tickets say.
    fn forbid(&mut self, handle: Handle, request: &Request, why: &str, now: Time) {
        if let Some(Role::Client(client)) = self.conns.get_mut(handle).map(|conn| &mut conn.role)
            && !std::mem::replace(&mut client.exceeded, true)
        {
            let line = format!("{}: a request is refused: {why}", self.describe(handle));
            self.tell_operator(line);
        }
        let result = ReplyResult::Refused(Refusal::NotPermitted);
        let reply = Reply { id: request.id, group: request.group, result, trace: None };
        self.reply(LinkId(handle.0), reply, now);
    }
}

/// The bytes of a request that count for credit.
pub(crate) fn payload_size(request: &Request) -> u32 {
    match &request.op {
        RequestOp::Write { range, .. } => range.count.saturating_mul(BLOCK_BYTES as u32),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_a_living_one_is_never_replaced() {
        let dir = std::env::temp_dir().join(format!("basalt-accept-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("s");
        let source = || ListenSource::Unix { path: path.clone(), unlink_stale: true };
        let (first, _) = Listener::stream(0, 0, source()).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Listener::stream(0, 0, source()).is_err());
        drop(first);
        assert!(!path.exists());
        // A socket whose owner died without removing it.
        drop(UnixListener::bind(&path).unwrap());
        let strict = ListenSource::Unix { path: path.clone(), unlink_stale: false };
        assert!(Listener::stream(0, 0, strict).is_err());
        drop(Listener::stream(0, 0, source()).unwrap());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn an_inherited_descriptor_must_listen() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(Listener::stream(0, 0, ListenSource::Inherited(a.into())).is_err());
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let (_, bound) = Listener::stream(0, 0, ListenSource::Inherited(tcp.into())).unwrap();
        assert_eq!(bound, Some(address));
    }
}
