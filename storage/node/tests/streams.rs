//! Streams of tenants: TCP, unix and inherited sockets, back-pressure, closing, stopping.

mod common;

use basalt_node::{
    ListenSource, ReactorConfig, ReactorHandle, StreamId, StreamListener, Tenant, TenantCx,
    TenantEvent, start,
};
use basalt_wire::time::Time;
use bytes::Bytes;
use common::*;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the test may look at while the tenant runs.
#[derive(Default, Debug, Clone)]
struct Seen {
    accepted: Vec<usize>,
    closed: usize,
    paused: usize,
    drained: usize,
    most_queued: usize,
    stopping: bool,
    peer: String,
}

/// Gives back what it receives, and holds its streams back while they do not read. A stream that
/// sends "bye" is told "ok" and closed; one that sends "flood" gets more than it can ever read.
struct Echo {
    seen: Arc<Mutex<Seen>>,
    streams: BTreeMap<StreamId, bool>,
    finish: Option<Time>,
}

impl Echo {
    fn received(&mut self, stream: StreamId, bytes: Bytes, cx: &mut TenantCx<'_>) {
        if &bytes[..] == b"bye" {
            cx.send_copy(stream, b"ok");
            return cx.close(stream);
        }
        if &bytes[..] == b"flood" {
            let piece = Bytes::from(vec![0; 1 << 20]);
            (0..300).for_each(|_| cx.send(stream, piece.clone()));
            return;
        }
        cx.send(stream, bytes);
        let mut seen = self.seen.lock().unwrap();
        seen.most_queued = seen.most_queued.max(cx.queued(stream));
        if cx.queued(stream) > 4 << 20 {
            cx.pause(stream, true);
            self.streams.insert(stream, true);
            seen.paused += 1;
        }
    }
}

impl Tenant for Echo {
    fn event(&mut self, now: Time, event: TenantEvent, cx: &mut TenantCx<'_>) {
        match event {
            TenantEvent::Accepted { stream, listener } => {
                self.streams.insert(stream, false);
                let mut seen = self.seen.lock().unwrap();
                seen.accepted.push(listener);
                seen.peer = cx.peer(stream);
            }
            TenantEvent::Received { stream, bytes } => self.received(stream, bytes, cx),
            TenantEvent::Drained { stream } => {
                self.seen.lock().unwrap().drained += 1;
                if self.streams.insert(stream, false) == Some(true) {
                    cx.pause(stream, false);
                }
            }
            TenantEvent::Closed { stream } => {
                assert!(self.streams.remove(&stream).is_some(), "closed twice");
                self.seen.lock().unwrap().closed += 1;
            }
            TenantEvent::Stopping => {
                self.seen.lock().unwrap().stopping = true;
                self.finish = Some(now + Duration::from_millis(20));
            }
            _ => {}
        }
    }

    fn end_turn(&mut self, now: Time, _: &mut TenantCx<'_>) {
        if self.finish.is_some_and(|at| at <= now) {
            self.finish = None;
        }
    }

    fn next_deadline(&self) -> Option<Time> {
        self.finish
    }

    fn may_stop(&self) -> bool {
        self.finish.is_none()
    }
}

fn echo(sources: Vec<ListenSource>) -> (ReactorHandle, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let shared = seen.clone();
    let mut config = ReactorConfig::new("echo", CLUSTER);
    config.tenants.push(Box::new(move || {
        Box::new(Echo { seen: shared, streams: BTreeMap::new(), finish: None })
    }));
    let listener = |source| StreamListener { tenant: 0, source };
    config.stream_listeners = sources.into_iter().map(listener).collect();
    (start(config).unwrap(), seen)
}

fn connect(reactor: &ReactorHandle) -> TcpStream {
    let stream = TcpStream::connect(reactor.stream_addrs()[0].unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn read(stream: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 56) as u8
    };
    (0..len).map(|_| step(&mut state)).collect()
}

#[test]
fn tcp_unix_and_inherited_sockets_all_serve() {
    let path = std::env::temp_dir().join(format!("basalt-streams-{}", std::process::id()));
    let inherited = TcpListener::bind(loopback()).unwrap();
    inherited.set_nonblocking(true).unwrap();
    let (reactor, seen) = echo(vec![
        ListenSource::Tcp(loopback()),
        ListenSource::Unix { path: path.clone(), unlink_stale: true },
        ListenSource::Inherited(inherited.into()),
    ]);
    assert!(reactor.stream_addrs()[1].is_none());
    let mut tcp = connect(&reactor);
    tcp.write_all(b"over tcp").unwrap();
    assert_eq!(read(&mut tcp, 8), b"over tcp");
    assert_eq!(seen.lock().unwrap().peer, tcp.local_addr().unwrap().to_string());
    let mut unix = UnixStream::connect(&path).unwrap();
    unix.write_all(b"over unix").unwrap();
    assert_eq!(read(&mut unix, 9), b"over unix");
    let mut third = TcpStream::connect(reactor.stream_addrs()[2].unwrap()).unwrap();
    third.write_all(b"inherited").unwrap();
    assert_eq!(read(&mut third, 9), b"inherited");
    assert_eq!(seen.lock().unwrap().accepted, [0, 1, 2]);
    drop((tcp, unix, third));
    wait_for("all are closed", || seen.lock().unwrap().closed == 3);
    assert_eq!(status(&reactor).streams, 0);
    reactor.stop().unwrap();
    assert!(seen.lock().unwrap().stopping);
    assert!(!path.exists());
}

#[test]
fn much_data_comes_back_unchanged_on_many_streams() {
    let (reactor, _seen) = echo(vec![ListenSource::Tcp(loopback())]);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let mut stream = connect(&reactor);
            scope.spawn(move || {
                let sent = pattern(3 << 20, seed);
                let mut writer = stream.try_clone().unwrap();
                let expected = sent.clone();
                let thread = std::thread::spawn(move || {
                    // In pieces of many sizes.
                    let mut rest = &sent[..];
                    let mut size = 1;
                    while !rest.is_empty() {
                        let len = size.min(rest.len());
                        writer.write_all(&rest[..len]).unwrap();
                        rest = &rest[len..];
                        size = (size * 3 + 1) % 100_000 + 1;
                    }
                });
                assert!(read(&mut stream, expected.len()) == expected, "bytes were changed");
                thread.join().unwrap();
            });
        }
    });
    let counters = status(&reactor).counters;
    assert_eq!((counters.bytes_in, counters.bytes_out), (24 << 20, 24 << 20));
}

#[test]
fn a_stream_that_does_not_read_is_held_back() {
    let (reactor, seen) = echo(vec![ListenSource::Tcp(loopback())]);
    let mut stream = connect(&reactor);
    let sent = pattern(32 << 20, 3);
    let expected = sent.clone();
    let mut writer = stream.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    wait_for("the stream is paused", || seen.lock().unwrap().paused > 0);
    assert!(read(&mut stream, expected.len()) == expected, "bytes were changed");
    thread.join().unwrap();
    wait_for("the queue is drained", || seen.lock().unwrap().drained > 0);
    // One more receive may have been under way when the stream was paused.
    assert!(seen.lock().unwrap().most_queued < 6 << 20, "{:?}", seen.lock().unwrap());
}

#[test]
fn a_stream_that_never_reads_is_closed_at_its_bound() {
    let (reactor, seen) = echo(vec![ListenSource::Tcp(loopback())]);
    let mut stream = connect(&reactor);
    stream.write_all(b"flood").unwrap();
    wait_for("the stream is closed", || seen.lock().unwrap().closed == 1);
    wait_for_reason(&reactor, "it does not read");
}

#[test]
fn a_close_comes_after_what_was_queued() {
    let (reactor, seen) = echo(vec![ListenSource::Tcp(loopback())]);
    for _ in 0..20 {
        let mut stream = connect(&reactor);
        stream.write_all(b"bye").unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"ok");
    }
    wait_for("all are closed", || seen.lock().unwrap().closed == 20);
}

#[test]
fn idle_streams_cost_no_turns_and_hold_no_memory() {
    let (reactor, seen) = echo(vec![ListenSource::Tcp(loopback())]);
    let mut held: Vec<_> = (0..300).map(|_| connect(&reactor)).collect();
    wait_for("all are accepted", || seen.lock().unwrap().accepted.len() == 300);
    for stream in &mut held {
        stream.write_all(b"x").unwrap();
        assert_eq!(read(stream, 1), b"x");
    }
    // Housekeeping takes the memory away and then ends; from there on every turn is one of ours.
    wait_for("no turn but those that ask for the status", || {
        let before = status(&reactor).counters.turns;
        std::thread::sleep(Duration::from_millis(600));
        status(&reactor).counters.turns == before + 1
    });
    for stream in &mut held {
        stream.write_all(b"y").unwrap();
        assert_eq!(read(stream, 1), b"y");
    }
}
