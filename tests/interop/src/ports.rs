//! TCP ports of loopback for programs under test.
//!
//! A port that the kernel names as free (port 0) lies in the range from which it also takes the local
//! ends of outgoing connections, so it may be gone before the program that it was meant for listens. The
//! ports given here lie below that range, and are promised to one process at a time.

use anyhow::{Context, Result};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Below the usual `net.ipv4.ip_local_port_range`, and away from the well-known ports.
const FIRST: u16 = 18_000;
const COUNT: u16 = 14_000;

/// What this process was given, and how far it has come. A promise is a listener in the abstract
/// namespace: the kernel drops it when the process ends, however it ends.
struct Given {
    next: u16,
    promises: Vec<UnixListener>,
}

static GIVEN: Mutex<Given> = Mutex::new(Given { next: 0, promises: Vec::new() });

/// A TCP port of loopback on which nothing listens, and which no other process is given by this
/// function while this one lives.
///
/// # Errors
/// If none is left.
pub fn free_port() -> Result<u16> {
    let mut given = lock();
    // Processes start far apart, so that they seldom ask for the same one.
    let start = std::process::id().wrapping_mul(61);
    while given.next < COUNT {
        let step = start.wrapping_add(u32::from(given.next)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(step).context("a step is below the count of ports")?;
        given.next += 1;
        if given.promise(port)? {
            return Ok(port);
        }
    }
    None.context("loopback has no free port for tests")
}

/// The given TCP port of loopback if it is free and promised to nobody, else any that is, under the same
/// promise as of [`free_port`].
///
/// # Errors
/// If none is left.
pub fn free_port_preferring(port: u16) -> Result<u16> {
    let promised = lock().promise(port)?;
    if promised { Ok(port) } else { free_port() }
}

fn lock() -> MutexGuard<'static, Given> {
    GIVEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TCP ports on which a process listens, as the system says, rising.
///
/// # Errors
/// If the process is gone.
pub fn listening(process: u32) -> Result<Vec<u16>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/fd"))? {
        let Ok(link) = std::fs::read_link(entry?.path()) else { continue };
        let link = link.to_string_lossy().into_owned();
        sockets.extend(
            link.strip_prefix("socket:[").map(|rest| rest.trim_end_matches(']').to_owned()),
        );
    }
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, state, _, _, _, _, _, inode, ..] = words[..] else { continue };
            if state == "0A" && sockets.iter().any(|one| one == inode) {
                let port = local.rsplit(':').next().context("a port")?;
                ports.push(u16::from_str_radix(port, 16)?);
            }
        }
    }
    ports.sort_unstable();
    Ok(ports)
}

impl Given {
    /// Promises a port to this process, unless it is promised or in use.
    fn promise(&mut self, port: u16) -> Result<bool> {
        let name = SocketAddr::from_abstract_name(format!("basalt-test-port-{port}"))?;
        let Ok(promise) = UnixListener::bind_addr(&name) else { return Ok(false) };
        let free = TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free {
            self.promises.push(promise);
        }
        Ok(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_or_while_something_listens_on_it() {
        let first = free_port().expect("a port");
        let listener = TcpListener::bind(("127.0.0.1", first)).expect("it is free");
        let second = free_port().expect("a port");
        assert_ne!(first, second);
        assert!((FIRST..FIRST + COUNT).contains(&second));
        drop(listener);
        // A port that was promised, here or by another process, is not given even if nobody listens yet.
        assert_ne!(free_port_preferring(second).expect("a port"), second);
    }
}
