//! Connections of the gRPC API, bounded against clients that connect and say nothing.
//!
//! The HTTP/2 library asks a connection that has begun whether it lives, and ends one that does not
//! answer. Before it has begun nothing watches it: here it must speak within a time, and of too many
//! that have not spoken yet the oldest goes, so that they keep nobody out. Over TLS it has spoken when the handshake
//! is over and what it says inside has begun.

use crate::access::transport::{Shown, Transport};
use basalt_security::Keyring;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::{Sleep, sleep};
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Connections at a time; one more is closed at once.
const OPEN_MAX: usize = 4096;
/// Those of them that have not spoken yet; for one more the oldest is closed.
const SILENT_MAX: usize = 512;
/// Time in which a connection must speak.
const SPEAK: Duration = Duration::from_secs(10);
/// What counts as having spoken: the connection preface of HTTP/2.
const PREFACE: usize = 24;

/// Accepts connections.
pub struct Incoming {
    listener: TcpListener,
    keyring: Option<Arc<Keyring>>,
    places: Arc<Places>,
}

impl Incoming {
    /// Of a socket that listens; with a keyring connections are made over TLS.
    pub fn new(listener: TcpListener, keyring: Option<Arc<Keyring>>) -> Incoming {
        Incoming { listener, keyring, places: Arc::default() }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Guarded>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Guarded>>> {
        loop {
            let (stream, _) = match self.listener.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(accepted)) => accepted,
            };
            // A connection without it is only slower.
            let _ = stream.set_nodelay(true);
            let transport = Transport::new(stream, self.keyring.as_ref());
            if let Some(guarded) = Places::admit(&self.places, transport) {
                return Poll::Ready(Some(Ok(guarded)));
            }
        }
    }
}

#[derive(Default)]
struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    open: usize,
    /// Numbers of those that have not spoken, oldest first, and how to tell them that they must go.
    silent: VecDeque<(u64, Option<Waker>)>,
    last: u64,
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(places: &Arc<Places>, stream: Transport) -> Option<Guarded> {
        let mut taken = places.taken();
        if taken.open >= OPEN_MAX {
            return None;
        }
        taken.open += 1;
        taken.last += 1;
        let number = taken.last;
        taken.silent.push_back((number, None));
        if taken.silent.len() > SILENT_MAX
            && let Some((_, Some(waker))) = taken.silent.pop_front()
        {
            waker.wake();
        }
        let silence = Some(Silence { number, heard: 0, deadline: Box::pin(sleep(SPEAK)) });
        Some(Guarded { stream, silence, places: places.clone() })
    }
}

/// A connection that has not spoken yet.
struct Silence {
    number: u64,
    heard: usize,
    deadline: Pin<Box<Sleep>>,
}

/// A connection that counts.
pub struct Guarded {
    stream: Transport,
    silence: Option<Silence>,
    places: Arc<Places>,
}

impl Guarded {
    /// Whether it must go because it has not spoken.
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(silence) = &mut self.silence else { return false };
        let mut taken = self.places.taken();
        let place = taken.silent.iter_mut().find(|(number, _)| *number == silence.number);
        match place {
            Some((_, waker)) => *waker = Some(cx.waker().clone()),
            None => return true,
        }
        drop(taken);
        silence.deadline.as_mut().poll(cx).is_ready()
    }

    fn heard(&mut self, count: usize) {
        let Some(silence) = &mut self.silence else { return };
        silence.heard += count;
        if silence.heard >= PREFACE {
            self.spoken();
        }
    }

    fn spoken(&mut self) {
        if let Some(silence) = self.silence.take() {
            self.places.taken().silent.retain(|(number, _)| *number != silence.number);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.spoken();
        self.places.taken().open -= 1;
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard(buf.filled().len() - before);
        read
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Guarded {
    type ConnectInfo = Shown;

    fn connect_info(&self) -> Shown {
        self.stream.shown()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn the_silent_make_room_and_the_others_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut incoming = Incoming::new(listener, None);
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        for number in 0..SILENT_MAX + 2 {
            let mut client = TcpStream::connect(address).await.expect("it listens");
            let next = poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)).await;
            let mut server = next.expect("more").expect("accepted");
            if number == 0 {
                client.write_all(&[7; PREFACE]).await.expect("sent");
                server.read_exact(&mut [0; PREFACE]).await.expect("it is in time");
            }
            clients.push(client);
            accepted.push(server);
        }
        let mut byte = [0];
        let error = accepted[1].read(&mut byte).await.expect_err("the oldest that was silent");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        for at in [0, 2] {
            clients[at].write_all(&[8]).await.expect("sent");
            assert_eq!(accepted[at].read(&mut byte).await.expect("it stays"), 1);
        }
        accepted.clear();
        let taken = incoming.places.taken();
        assert_eq!((taken.open, taken.silent.len()), (0, 0));
    }
}
