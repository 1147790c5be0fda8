//! Connections to nodes: TCP, and TLS over it if the caller has certificates.

use crate::stream::Stream;
use crate::traced::{self, Kind, Traced};
use basalt_security::Keyring;
use basalt_security::credentials::Token;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::channel::ResponseFuture;
use tonic::transport::{Channel, Endpoint};
use tower::Service;

/// Puts the token into every call, as it is then.
#[derive(Clone)]
pub struct Bearer {
    token: Option<Arc<Token>>,
}

impl Bearer {
    pub(crate) fn new(token: Option<Arc<Token>>) -> Bearer {
        Bearer { token }
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.token {
            let value = format!("Bearer {}", token.text());
            let mut value: MetadataValue<Ascii> = value
                .parse()
                .map_err(|_| Status::invalid_argument("the token has characters that none has"))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// What a connection is as of: the generation of the certificates, and how many calls before it went wrong so that
/// nothing is known of what they went over.
type AsOf = (u64, u64);

/// Calls to one address that go over a connection with the certificates of now: when these were
/// exchanged, or a call got no answer, the next call makes a new one. Calls that are under way end on the connection
/// that they began on.
#[derive(Clone)]
pub struct Fresh {
    endpoint: Endpoint,
    connector: Connector,
    kind: Kind,
    /// What all clones share, and what this one uses.
    shared: Arc<Mutex<(AsOf, Channel)>>,
    own: (AsOf, Channel),
    failures: Arc<AtomicU64>,
}

impl Fresh {
    pub(crate) fn new(endpoint: Endpoint, connector: Connector, kind: Kind) -> Fresh {
        let as_of = (connector.generation(), 0);
        let own = (as_of, endpoint.connect_with_connector_lazy(connector.clone()));
        let (shared, failures) = (Arc::new(Mutex::new(own.clone())), Arc::default());
        Fresh { endpoint, connector, kind, shared, own, failures }
    }

    fn as_of_now(&self) -> AsOf {
        (self.connector.generation(), self.failures.load(Ordering::Relaxed))
    }
}

impl Service<http::Request<Body>> for Fresh {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Watched;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let now = self.as_of_now();
        if self.own.0 != now {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.0 != now {
                let channel = self.endpoint.connect_with_connector_lazy(self.connector.clone());
                *shared = (now, channel);
            }
            self.own = shared.clone();
        }
        self.own.1.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Watched {
        let span = traced::begin(self.kind, &self.connector.address, &mut request);
        let answer = Traced::new(self.own.1.call(request), span);
        let (failures, before) = (self.failures.clone(), self.own.0.1);
        Watched { answer, failures, before, answered: false }
    }
}

/// The answer to a call. If there is none, its connection is not used again: the other side may be gone without a word.
pub struct Watched {
    answer: Traced<ResponseFuture>,
    failures: Arc<AtomicU64>,
    /// The failures before its connection was made: it fails once for all calls that are on it.
    before: u64,
    answered: bool,
}

impl Drop for Watched {
    /// Who does not wait any longer has heard nothing either.
    fn drop(&mut self) {
        if !self.answered {
            let order = Ordering::Relaxed;
            let _ = self.failures.compare_exchange(self.before, self.before + 1, order, order);
        }
    }
}

impl Future for Watched {
    type Output = Result<http::Response<Body>, tonic::transport::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        self.answered = answer.is_ok();
        Poll::Ready(answer)
    }
}

/// Connects to one address, with the certificates that the keyring has at that moment.
#[derive(Clone)]
pub(crate) struct Connector {
    address: String,
    keyring: Option<Arc<Keyring>>,
}

impl Connector {
    pub(crate) fn new(address: &str, keyring: Option<Arc<Keyring>>) -> Connector {
        Connector { address: address.to_owned(), keyring }
    }

    fn generation(&self) -> u64 {
        self.keyring.as_ref().map_or(0, |keyring| keyring.generation())
    }

    async fn connect(self) -> io::Result<TokioIo<Stream>> {
        let stream = TcpStream::connect(&self.address).await?;
        // A connection without it is only slower.
        let _ = stream.set_nodelay(true);
        let Some(keyring) = self.keyring else { return Ok(TokioIo::new(Stream::Plain(stream))) };
        // It is not looked at: nodes are known by their certificates, not by names.
        let name = ServerName::try_from("node").map_err(io::Error::other)?;
        let connector = TlsConnector::from(keyring.client());
        Ok(TokioIo::new(Stream::tls(connector.connect(name, stream).await?)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}
