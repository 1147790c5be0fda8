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
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
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

/// Calls to one address that go over a connection with the certificates of now: when these were
/// exchanged, the next call makes a new one. Calls that are under way end on the connection that they
/// began on.
#[derive(Clone)]
pub struct Fresh {
    endpoint: Endpoint,
    connector: Connector,
    kind: Kind,
    /// What all clones share, and what this one uses, by the generation of the certificates.
    shared: Arc<Mutex<(u64, Channel)>>,
    own: (u64, Channel),
}

impl Fresh {
    pub(crate) fn new(endpoint: Endpoint, connector: Connector, kind: Kind) -> Fresh {
        let generation = connector.generation();
        let own = (generation, endpoint.connect_with_connector_lazy(connector.clone()));
        Fresh { endpoint, connector, kind, shared: Arc::new(Mutex::new(own.clone())), own }
    }
}

impl Service<http::Request<Body>> for Fresh {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Traced<ResponseFuture>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let generation = self.connector.generation();
        if self.own.0 != generation {
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.0 != generation {
                let channel = self.endpoint.connect_with_connector_lazy(self.connector.clone());
                *shared = (generation, channel);
            }
            self.own = shared.clone();
        }
        self.own.1.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Traced<ResponseFuture> {
        let span = traced::begin(self.kind, &self.connector.address, &mut request);
        Traced::new(self.own.1.call(request), span)
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
