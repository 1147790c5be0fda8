//! Socket activation: listening sockets inherited from the process that started this one.
//!
//! The convention is systemd's: `LISTEN_PID` names the process that is meant, `LISTEN_FDS` counts
//! the descriptors, the first of which is 3, and `LISTEN_FDNAMES` may name them.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

const FIRST: RawFd = 3;
/// More descriptors than any sensible parent passes.
const COUNT_MAX: i32 = 1024;

/// A socket from the parent.
#[derive(Debug)]
pub struct InheritedSocket {
    /// The descriptor.
    pub fd: OwnedFd,
    /// Its name in `LISTEN_FDNAMES`, empty if it has none.
    pub name: String,
}

/// Why the environment's word on sockets is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ActivationError {
    /// `LISTEN_FDS` is not a number in bounds.
    #[error("LISTEN_FDS is '{0}', not a number between 0 and {COUNT_MAX}")]
    Count(String),
    /// `LISTEN_PID` is not a number.
    #[error("LISTEN_PID is '{0}', not a number")]
    Pid(String),
    /// A descriptor that was announced is not open.
    #[error("LISTEN_FDS announces descriptor {0}, which is not open")]
    NotOpen(RawFd),
}

/// Which descriptors the environment announces for the process `pid`, with their names.
pub fn announced(
    variable: impl Fn(&str) -> Option<String>,
    pid: u32,
) -> Result<Vec<(RawFd, String)>, ActivationError> {
    let (Some(count), Some(meant)) = (variable("LISTEN_FDS"), variable("LISTEN_PID")) else {
        return Ok(Vec::new());
    };
    match meant.parse::<u32>() {
        Ok(meant) if meant == pid => {}
        // Left over from a parent that was meant itself.
        Ok(_) => return Ok(Vec::new()),
        Err(_) => return Err(ActivationError::Pid(meant)),
    }
    let number = count.parse().ok().filter(|n| (0..=COUNT_MAX).contains(n));
    let number = number.ok_or(ActivationError::Count(count))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    Ok((FIRST..FIRST + number).map(|fd| (fd, names.next().unwrap_or("").to_owned())).collect())
}

/// Takes the sockets that this process inherited, none if it was started in another way. Children
/// will not inherit them in turn.
///
/// # Safety
///
/// To be called at most once in a process, before anything else may have opened or closed
/// descriptors 3 and above: the descriptors become the caller's.
pub unsafe fn inherited_sockets() -> Result<Vec<InheritedSocket>, ActivationError> {
    let announced = announced(|name| std::env::var(name).ok(), std::process::id())?;
    for (fd, _) in &announced {
        // SAFETY: asks and sets a flag of a descriptor number; a closed one is reported.
        let flags = unsafe { libc::fcntl(*fd, libc::F_GETFD) };
        // SAFETY: as above.
        if flags < 0 || unsafe { libc::fcntl(*fd, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
            return Err(ActivationError::NotOpen(*fd));
        }
    }
    let own = |(fd, name)| {
        // SAFETY: the descriptor is open, as was just seen, and the caller promises that nothing
        // else in this process owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        InheritedSocket { fd, name }
    };
    Ok(announced.into_iter().map(own).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(vars: &[(&str, &str)], pid: u32) -> Result<Vec<(RawFd, String)>, ActivationError> {
        let find = |name: &str| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        announced(find, pid)
    }

    #[test]
    fn sockets_are_counted_from_three_and_named() {
        let vars = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "nbd")];
        assert_eq!(ask(&vars, 7), Ok(vec![(3, "nbd".to_owned()), (4, String::new())]));
    }

    #[test]
    fn sockets_of_another_process_are_not_ours() {
        assert_eq!(ask(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")], 7), Ok(vec![]));
        assert_eq!(ask(&[], 7), Ok(vec![]));
    }

    #[test]
    fn nonsense_is_named() {
        for count in ["x", "-1", "100000"] {
            let vars = [("LISTEN_PID", "7"), ("LISTEN_FDS", count)];
            assert_eq!(ask(&vars, 7), Err(ActivationError::Count(count.to_owned())));
        }
        let vars = [("LISTEN_PID", "me"), ("LISTEN_FDS", "1")];
        assert_eq!(ask(&vars, 7), Err(ActivationError::Pid("me".to_owned())));
    }
}
