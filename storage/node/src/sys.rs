//! Sockets: the system calls that the standard library has no words for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Turns the result of a system call into an error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A TCP socket for dialling `address`. It blocks, as io_uring wants it.
pub(crate) fn tcp_socket(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes ownership of a descriptor that a completion returned.
pub(crate) fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "a completion returned the descriptor {fd}");
    // SAFETY: an accept that succeeded gives a descriptor that nobody else knows.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn set_option(fd: &OwnedFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is as long as said and outlives the call.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len)
    })?;
    Ok(())
}

/// Sends without waiting for more. Sockets that are not TCP refuse it, which does no harm.
pub(crate) fn set_nodelay(fd: &OwnedFd) {
    let _ = set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
}

/// Lets the kernel find out that the other end of an idle stream is gone.
pub(crate) fn set_keepalive(fd: &OwnedFd) {
    let _ = set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
}

/// Whether the socket listens.
pub(crate) fn is_listening(fd: &OwnedFd) -> io::Result<bool> {
    let (mut value, mut len): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: `value` and `len` are valid places for the result.
    check(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut value).cast(),
            &mut len,
        )
    })?;
    Ok(value != 0)
}

/// Makes a socket blocking again: an inherited one may not be, and io_uring would then give
/// "try again" instead of waiting.
pub(crate) fn set_blocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) })?;
    Ok(())
}

/// Ends one or both directions. A socket that is not connected refuses it, which does no harm.
pub(crate) fn shutdown(fd: &OwnedFd, how: std::net::Shutdown) {
    let how = match how {
        std::net::Shutdown::Read => libc::SHUT_RD,
        std::net::Shutdown::Write => libc::SHUT_WR,
        std::net::Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no memory is involved.
    let _ = unsafe { libc::shutdown(fd.as_raw_fd(), how) };
}

/// A counter that can be waited for.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Wakes whoever waits for the counter.
pub(crate) fn eventfd_signal(fd: &OwnedFd) {
    let one: u64 = 1;
    // SAFETY: `one` is 8 bytes long and outlives the call. It fails only when the counter is full,
    // and then the reader is awake.
    let _ = unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

/// An address in the kernel's form, and its length.
pub(crate) fn sockaddr(address: &SocketAddr) -> (Box<libc::sockaddr_storage>, libc::socklen_t) {
    // SAFETY: all zeros is a valid `sockaddr_storage`.
    let mut storage: Box<libc::sockaddr_storage> = Box::new(unsafe { std::mem::zeroed() });
    let place = &raw mut *storage;
    let len = match address {
        SocketAddr::V4(v4) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` has room and alignment for every address.
            unsafe { place.cast::<libc::sockaddr_in>().write(value) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(value) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

/// Who is at the other end, for logs.
pub(crate) fn peer_name(fd: &OwnedFd) -> String {
    let Ok(copy) = fd.try_clone() else { return "an unknown peer".into() };
    match std::net::TcpStream::from(copy).peer_addr() {
        Ok(address) => address.to_string(),
        Err(_) => "a local peer".into(),
    }
}

/// Whether it is a unix socket.
pub(crate) fn is_unix(fd: &OwnedFd) -> bool {
    let Ok(copy) = fd.try_clone() else { return false };
    std::os::unix::net::UnixListener::from(copy).local_addr().is_ok()
}

/// Lets the process have as many files and connections open as the system allows it at all: the
/// usual first limit, 1,024, is that of programs that wait with `select`, and none here does.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` outlives the call. A refusal leaves things as they were.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}
