//! Where NBD is served, as the command line says it.

use basalt_node::ListenSource;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A TCP address or a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdListen {
    /// `127.0.0.1:10809`.
    Tcp(SocketAddr),
    /// `unix:/run/demo.sock`.
    Unix(PathBuf),
}

impl NbdListen {
    /// The socket for a reactor. A socket that a dead process left behind is replaced.
    pub fn source(&self) -> ListenSource {
        match self {
            NbdListen::Tcp(address) => ListenSource::Tcp(*address),
            NbdListen::Unix(path) => ListenSource::Unix { path: path.clone(), unlink_stale: true },
        }
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            NbdListen::Tcp(address) => address.ip().is_loopback(),
            NbdListen::Unix(_) => true,
        }
    }

    /// The address under which a client opens an export; `tls` if it must use TLS over TCP.
    pub fn uri(&self, export: &str, tls: bool) -> String {
        match self {
            NbdListen::Tcp(address) if tls => format!("nbds://{address}/{export}"),
            NbdListen::Tcp(address) => format!("nbd://{address}/{export}"),
            NbdListen::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
        }
    }
}

/// Why NBD is not served beyond this machine to whoever comes, and what to do; `option` is what asked for it.
pub fn open_nbd(listen: &NbdListen, option: &str) -> String {
    format!(
        "{option} {listen} can be reached from other machines, and whoever reaches it could read and write the \
         volumes: let clients show certificates (--tls-cert, --tls-key, --tls-client-ca), listen on 127.0.0.1 or a \
         unix socket, or say --insecure-nbd if the network is your own"
    )
}

impl FromStr for NbdListen {
    type Err = String;

    fn from_str(text: &str) -> Result<NbdListen, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!(
                    "'{path}' is not an absolute path; write unix:/path/to/socket"
                ));
            }
            return Ok(NbdListen::Unix(PathBuf::from(path)));
        }
        text.parse().map(NbdListen::Tcp).map_err(|_| {
            format!("'{text}' is neither address:port (127.0.0.1:10809) nor unix:/path/to/socket")
        })
    }
}

impl fmt::Display for NbdListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NbdListen::Tcp(address) => write!(f, "{address}"),
            NbdListen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_are_read() {
        let tcp: NbdListen = "127.0.0.1:10809".parse().expect("an address");
        assert_eq!(tcp.uri("demo", false), "nbd://127.0.0.1:10809/demo");
        assert_eq!(tcp.uri("demo", true), "nbds://127.0.0.1:10809/demo");
        let unix: NbdListen = "unix:/run/b.sock".parse().expect("a path");
        assert_eq!(unix.uri("demo", true), "nbd+unix:///demo?socket=/run/b.sock");
        assert!("localhost".parse::<NbdListen>().unwrap_err().contains("'localhost'"));
        assert!("unix:here".parse::<NbdListen>().is_err());
    }
}
