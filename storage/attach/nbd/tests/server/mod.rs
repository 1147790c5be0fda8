//! A small server around [`Connection`], with a volume in memory: threads and blocking sockets, made
//! to let foreign clients speak to the very sessions that the reactor drives.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use basalt_client::{BlockError, BlockOp, BlockResult};
use basalt_nbd::{Catalog, Connection, ExportInfo, SessionConfig, Submission, TlsServer};
use basalt_wire::buffer::{IoBuf, Payload};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const BLOCK: u64 = 4096;

/// A sparse volume in memory.
#[derive(Default)]
pub struct Memory {
    blocks: BTreeMap<u64, Box<[u8; BLOCK as usize]>>,
}

impl Memory {
    fn read(&self, offset: u64, len: usize) -> Payload {
        let mut buf = IoBuf::zeroed(len);
        for (block, from, at, count) in cut(offset, len as u64) {
            if let Some(data) = self.blocks.get(&block) {
                buf[at..at + count].copy_from_slice(&data[from..from + count]);
            }
        }
        Payload::from(buf.freeze())
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (block, from, at, count) in cut(offset, data.len() as u64) {
            let target = self.blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK as usize]));
            target[from..from + count].copy_from_slice(&data[at..at + count]);
        }
    }

    fn extents(&self, offset: u64, len: u64) -> Vec<(u64, bool)> {
        let mut runs: Vec<(u64, bool)> = Vec::new();
        for (block, _, _, count) in cut(offset, len) {
            let mapped = self.blocks.contains_key(&block);
            match runs.last_mut() {
                Some(last) if last.1 == mapped => last.0 += count as u64,
                _ => runs.push((count as u64, mapped)),
            }
        }
        runs
    }

    /// Carries out one operation.
    pub fn execute(&mut self, op: BlockOp) -> Result<BlockResult, BlockError> {
        Ok(match op {
            BlockOp::Read { offset, len } => BlockResult::Data(self.read(offset, len as usize)),
            BlockOp::Write { offset, data, .. } => {
                self.write(offset, &data.contiguous());
                BlockResult::Done
            }
            BlockOp::Unmap { offset, len } => {
                assert!(offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK));
                let blocks = offset / BLOCK..(offset + len) / BLOCK;
                let gone: Vec<u64> = self.blocks.range(blocks).map(|(block, _)| *block).collect();
                for block in gone {
                    self.blocks.remove(&block);
                }
                BlockResult::Done
            }
            BlockOp::Extents { offset, len } => BlockResult::Extents(self.extents(offset, len)),
            BlockOp::Flush => BlockResult::Done,
            _ => return Err(BlockError::Invalid),
        })
    }
}

/// Cuts a range into blocks: block, offset in it, offset in the range, bytes.
fn cut(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let (block, from) = ((offset + at) / BLOCK, (offset + at) % BLOCK);
        let count = (BLOCK - from).min(len - at);
        let piece = (block, from as usize, at as usize, count as usize);
        at += count;
        Some(piece)
    })
}

/// The exports and their volumes.
pub struct Server {
    pub config: Arc<SessionConfig>,
    pub tls: Option<Arc<TlsServer>>,
    pub exports: Vec<(ExportInfo, Mutex<Memory>)>,
}

impl Server {
    /// A server with exports given as (name, size, read only).
    pub fn new(
        config: SessionConfig,
        tls: Option<TlsServer>,
        exports: &[(&str, u64, bool)],
    ) -> Server {
        let make = |(id, &(name, size, read_only)): (usize, &(&str, u64, bool))| {
            let info = ExportInfo {
                id: id as u64,
                name: name.into(),
                description: format!("the volume {name}").into(),
                size,
                read_only,
                tls_only: name.starts_with("secret"),
                full: false,
            };
            (info, Mutex::new(Memory::default()))
        };
        Server {
            config: Arc::new(config),
            tls: tls.map(Arc::new),
            exports: exports.iter().enumerate().map(make).collect(),
        }
    }

    /// Serves on a free port of the loopback interface until the process ends.
    pub fn serve_tcp(self: &Arc<Server>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let server = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                stream.set_nodelay(true).expect("a TCP socket");
                let server = server.clone();
                std::thread::spawn(move || server.converse(stream, |s: &TcpStream| drain_tcp(s)));
            }
        });
        addr
    }

    /// Serves on a unix socket until the process ends.
    pub fn serve_unix(self: &Arc<Server>, path: &Path) {
        let listener = UnixListener::bind(path).expect("a free path");
        let server = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.converse(stream, |_: &UnixStream| {}));
            }
        });
    }

    fn converse<S: Read + Write>(&self, mut stream: S, ending: impl Fn(&S)) {
        let mut connection = Connection::new(self.config.clone(), self.tls.clone());
        let mut submitted = Vec::new();
        let mut buf = vec![0; 256 << 10];
        loop {
            let mut output = Vec::new();
            connection.take_output(&mut output);
            // STARTTLS is answered in clear text; what TLS itself has to say comes after.
            connection.take_output(&mut output);
            for piece in output {
                if stream.write_all(&piece).is_err() {
                    return;
                }
            }
            if connection.closed() {
                return ending(&stream);
            }
            let count = match stream.read(&mut buf) {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let bytes = Bytes::copy_from_slice(&buf[..count]);
            connection.receive(bytes, self, &mut submitted);
            while !submitted.is_empty() {
                for Submission { slot, op } in std::mem::take(&mut submitted) {
                    let export = connection.session().export().expect("operations have an export");
                    let mut volume =
                        self.exports[export as usize].1.lock().expect("no thread panics");
                    let result = volume.execute(op);
                    drop(volume);
                    connection.complete(slot, result, &mut submitted);
                }
            }
        }
    }
}

/// Says that nothing more follows and waits until the client has read it, so that unread bytes of
/// the client's do not turn the end into a reset.
fn drain_tcp(stream: &TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(1)));
    let mut sink = [0; 4096];
    let mut stream = stream;
    while matches!(stream.read(&mut sink), Ok(1..)) {}
}

impl Catalog for Server {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        if name.is_empty() {
            return self.exports.first().map(|(info, _)| info.clone());
        }
        self.exports.iter().find(|(info, _)| &*info.name == name).map(|(info, _)| info.clone())
    }

    fn each(&self, visit: &mut dyn FnMut(&ExportInfo)) {
        self.exports.iter().for_each(|(info, _)| visit(info));
    }
}
