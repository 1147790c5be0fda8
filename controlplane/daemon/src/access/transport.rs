//! What a connection of the gRPC API runs over, and what its other end showed.

use basalt_api::stream::Stream;
use basalt_security::Keyring;
use basalt_security::principal::Holder;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// What the other end of a connection showed. Every request on it carries this.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// What its certificate says, as soon as the handshake is over.
    holder: Arc<OnceLock<Holder>>,
}

impl Shown {
    /// What its certificate says, if it has one. The cluster's authority issued it.
    pub fn holder(&self) -> Option<&Holder> {
        self.holder.get()
    }
}

/// A connection, in the clear or over TLS. The handshake takes place when the connection is first used, so that
/// one that is slow holds up nobody.
pub struct Transport {
    stage: Stage,
    shown: Shown,
}

enum Stage {
    Shaking(Box<Accept<TcpStream>>),
    Open(Stream),
}

impl Transport {
    /// A connection that came; with a keyring over TLS.
    pub fn new(stream: TcpStream, keyring: Option<&Arc<Keyring>>) -> Transport {
        let config = keyring.and_then(|keyring| keyring.server());
        assert_eq!(
            config.is_some(),
            keyring.is_some(),
            "a node that has certificates holds the secret"
        );
        let stage = match config {
            Some(config) => Stage::Shaking(Box::new(TlsAcceptor::from(config).accept(stream))),
            None => Stage::Open(Stream::Plain(stream)),
        };
        Transport { stage, shown: Shown::default() }
    }

    /// What the other end shows, now or later.
    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Goes on with the handshake.
    fn poll_shaken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Stage::Shaking(accept) = &mut self.stage {
            let stream = ready!(Pin::new(accept.as_mut()).poll(cx)).inspect_err(|error| {
                tracing::debug!("a handshake failed: {error}");
            })?;
            let certificates = stream.get_ref().1.peer_certificates();
            if let Some(certificate) = certificates.and_then(|chain| chain.first()) {
                let holder = Holder::of(certificate).map_err(io::Error::other)?;
                let first = self.shown.holder.set(holder).is_ok();
                assert!(first, "a connection has one handshake");
            }
            self.stage = Stage::Open(Stream::tls(stream));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_shaken(cx))?;
        match &mut self.stage {
            Stage::Open(stream) => Pin::new(stream).poll_read(cx, buf),
            Stage::Shaking(_) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_shaken(cx))?;
        match &mut self.stage {
            Stage::Open(stream) => Pin::new(stream).poll_write(cx, buf),
            Stage::Shaking(_) => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Open(stream) => Pin::new(stream).poll_flush(cx),
            // Nothing was written yet.
            Stage::Shaking(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Open(stream) => Pin::new(stream).poll_shutdown(cx),
            // It ends when it is dropped.
            Stage::Shaking(_) => Poll::Ready(Ok(())),
        }
    }
}
