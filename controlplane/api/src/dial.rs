//! Calling a cluster by the addresses of some of its nodes, with a deadline on everything.
//!
//! A process shows the same credentials in all its calls: [`present`] says which.

use crate::connect::{Bearer, Connector, Fresh};
use crate::traced::Kind;
use crate::v1::admin_client::AdminClient;
use crate::v1::peer_client::PeerClient;
use crate::v1::security_client::SecurityClient;
use basalt_security::Credentials;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::runtime;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

/// What calls go through.
pub type Channel = InterceptedService<Fresh, Bearer>;

static CREDENTIALS: RwLock<Credentials> = RwLock::new(Credentials { keyring: None, token: None });

/// Connections to other nodes, for whoever calls them next: to make one takes both sides a millisecond, most of it for
/// certificates. They belong to the runtime in which they were made, and are told apart by how long a call may take.
static KEPT: LazyLock<Mutex<HashMap<Peer, Kept>>> = LazyLock::new(Mutex::default);

type Peer = (runtime::Id, String, Duration);

struct Kept {
    channel: Channel,
    used: Instant,
}

/// How long one is kept that nobody uses.
const KEEP: Duration = Duration::from_secs(60);

/// From now on the process shows these credentials: what was dialled before goes on with the former ones.
pub fn present(credentials: Credentials) {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.clear();
    *CREDENTIALS.write().unwrap_or_else(PoisonError::into_inner) = credentials;
}

/// The credentials that the process shows.
pub fn credentials() -> Credentials {
    CREDENTIALS.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How long a connection may take to stand.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a node that has not answered yet is asked whether it lives, and how long it may take to
/// say so. A call may take long; a node that hangs is passed over soon.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Addresses of some nodes of one cluster, asked in turn until one answers.
#[derive(Clone, Debug)]
pub struct Cluster {
    addresses: Vec<String>,
    timeout: Duration,
    kind: Kind,
}

impl Cluster {
    /// The nodes at `addresses` ("host:port"); each call gets `timeout` at each of them.
    pub fn new(addresses: Vec<String>, timeout: Duration) -> Cluster {
        Cluster { addresses, timeout, kind: Kind::Usual }
    }

    /// The same nodes, asked every now and then: such calls are in no trace.
    pub fn polled(self) -> Cluster {
        Cluster { kind: Kind::Poll, ..self }
    }

    /// The addresses.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// How long each call may take at each of them.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Makes a call of the administrative API at the first node that answers. A node that can not be
    /// reached, or has no quorum, is passed over; any other error is the answer.
    pub async fn call<T, F>(&self, call: impl Fn(AdminClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        self.call_through(|channel| call(AdminClient::new(channel))).await
    }

    /// As [`Cluster::call`], of any service.
    ///
    /// # Errors
    /// As [`Cluster::call`].
    pub async fn call_through<T, F>(&self, call: impl Fn(Channel) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut problems: Vec<String> = Vec::new();
        let mut last: Option<Status> = None;
        for address in &self.addresses {
            let channel = channel_of(address, self.timeout, &credentials(), self.kind);
            let outcome = match channel {
                Ok(channel) => call(channel).await,
                Err(status) => Err(status),
            };
            match outcome {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_passed_over(status.code()) => {
                    problems.push(format!("{address}: {}", plain(&status)));
                    last = Some(status);
                }
                Err(status) => return Err(status),
            }
        }
        match (last, problems.as_slice()) {
            (None, _) => Err(Status::invalid_argument("no address of the cluster was given")),
            (Some(status), [_]) if crate::error::reason_of(&status).is_some() => Err(status),
            (Some(status), _) => Err(Status::new(
                status.code(),
                format!("no node of the cluster could answer ({})", problems.join("; ")),
            )),
        }
    }
}

/// A client of the administrative API of the node at `address`; it connects when it is first used.
pub fn admin(address: &str, timeout: Duration) -> Result<AdminClient<Channel>, Status> {
    Ok(AdminClient::new(channel(address, timeout)?))
}

/// A client of the node-to-node API at `address`, over a connection that is kept from one call to the next; it connects
/// when it is first used.
///
/// # Errors
/// If the address is none.
pub fn peer(address: &str, timeout: Duration) -> Result<PeerClient<Channel>, Status> {
    let Ok(runtime) = runtime::Handle::try_current() else {
        return Ok(PeerClient::new(channel(address, timeout)?));
    };
    let now = Instant::now();
    // Held from before the credentials are read: nothing is kept of former ones.
    let mut all = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let peer = (runtime.id(), address.to_owned(), timeout);
    if let Some(kept) = all.get_mut(&peer) {
        kept.used = now;
        return Ok(PeerClient::new(kept.channel.clone()));
    }
    let channel = channel(address, timeout)?;
    all.retain(|_, kept| now.duration_since(kept.used) < KEEP);
    all.insert(peer, Kept { channel: channel.clone(), used: now });
    Ok(PeerClient::new(channel))
}

/// A client of the service of tokens and records at `address`; it connects when it is first used.
pub fn security(address: &str, timeout: Duration) -> Result<SecurityClient<Channel>, Status> {
    Ok(SecurityClient::new(channel(address, timeout)?))
}

/// What a status says, without the library's wrapping. A failed connection names its cause.
pub fn plain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    if text.is_empty() { format!("{:?}", status.code()) } else { text }
}

fn is_passed_over(code: Code) -> bool {
    // A broken connection comes as one of several codes; an error of the API never as these.
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// What calls of any service at `address` go through; it connects when it is first used.
///
/// # Errors
/// If the address is none.
pub fn channel(address: &str, timeout: Duration) -> Result<Channel, Status> {
    channel_as(address, timeout, &credentials())
}

/// As [`channel`], with other credentials than the process shows.
///
/// # Errors
/// If the address is none, or the token can not be sent.
pub fn channel_as(
    address: &str,
    timeout: Duration,
    credentials: &Credentials,
) -> Result<Channel, Status> {
    channel_of(address, timeout, credentials, Kind::Usual)
}

fn channel_of(
    address: &str,
    timeout: Duration,
    credentials: &Credentials,
    kind: Kind,
) -> Result<Channel, Status> {
    let scheme = if credentials.keyring.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| {
        crate::error::invalid(
            "address",
            format!("'{address}' is not an address; give host:port, such as 127.0.0.1:7101"),
        )
    })?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .timeout(timeout)
        .http2_keep_alive_interval(ALIVE_EVERY)
        .keep_alive_timeout(ALIVE_TIMEOUT);
    let connector = Connector::new(address, credentials.keyring.clone());
    let channel = Fresh::new(endpoint, connector, kind);
    Ok(InterceptedService::new(channel, Bearer::new(credentials.token.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::GetReportRequest;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::TcpListener;
    use tonic::codegen::tokio_stream::StreamExt;
    use tonic::codegen::tokio_stream::wrappers::TcpListenerStream;
    use tonic::service::Routes;
    use tonic::transport::Server;

    #[test]
    fn a_bad_address_is_named() {
        let status = admin("not an address", Duration::from_secs(1)).err().expect("it is not one");
        assert!(status.message().contains("'not an address'"), "{status}");
    }

    /// A node that knows no call but says so, and connections to it so far.
    async fn node() -> (String, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let incoming = TcpListenerStream::new(listener).map(move |stream| {
            counted.fetch_add(1, Ordering::SeqCst);
            stream
        });
        let server = Server::builder().add_routes(Routes::default());
        let served = tokio::spawn(async move {
            server.serve_with_incoming(incoming).await.expect("it serves");
        });
        (address, count, served)
    }

    async fn call(address: &str) -> Code {
        let mut client = peer(address, Duration::from_secs(5)).expect("an address");
        let answer = client.get_report(GetReportRequest {}).await;
        answer.err().map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn a_connection_to_a_node_serves_one_call_after_the_other() {
        let (address, count, served) = node().await;
        for _ in 0..3 {
            assert_eq!(call(&address).await, Code::Unimplemented);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        served.abort();
    }

    #[tokio::test]
    async fn a_connection_on_which_a_call_got_no_answer_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound").to_string();
        // It takes connections and never says a word.
        let mut taken = Vec::new();
        for connections in 1..=2 {
            let mut client = peer(&address, Duration::from_secs(60)).expect("an address");
            let asked = tokio::spawn(async move { client.get_report(GetReportRequest {}).await });
            taken.push(listener.accept().await.expect("it connects"));
            // Nobody waits any longer.
            asked.abort();
            assert!(asked.await.is_err_and(|error| error.is_cancelled()));
            assert_eq!(taken.len(), connections);
        }
    }
}
