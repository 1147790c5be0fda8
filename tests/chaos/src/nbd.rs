//! A small NBD client that sends what it is told, when it is told, and waits for nothing by itself.

use anyhow::{Context, Result, bail, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// The magic number with which a server greets.
pub const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION_GO: u32 = 7;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REPLY_ACK: u32 = 1;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// A request of the transmission phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Give back.
    Trim = 4,
}

/// A connection in the transmission phase.
pub struct NbdClient {
    stream: TcpStream,
    next: u64,
    patience: Duration,
}

/// What a server said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's number.
    pub number: u64,
    /// 0, or an error number.
    pub error: u32,
}

impl NbdClient {
    /// Opens an export.
    ///
    /// # Errors
    /// If the server does not serve it.
    pub fn open(port: u16, export: &str, patience: Duration) -> Result<NbdClient> {
        NbdClient::open_at(&format!("127.0.0.1:{port}"), export, patience)
    }

    /// As [`NbdClient::open`], at any address.
    ///
    /// # Errors
    /// If the server does not serve it.
    pub fn open_at(address: &str, export: &str, patience: Duration) -> Result<NbdClient> {
        let mut stream = TcpStream::connect(address).context("can not connect")?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        ensure!(greeting.starts_with(GREETING), "this is no NBD server");
        let name = u32::try_from(export.len())?;
        let mut words = vec![0, 0, 0, 3];
        words.extend(option_header(OPTION_GO, name + 6));
        words.extend(name.to_be_bytes());
        words.extend(export.as_bytes());
        words.extend([0, 0]);
        stream.write_all(&words)?;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            ensure!(number_at::<8>(&head, 0) == OPTION_REPLY, "a bad reply to an option");
            let kind = number_at::<4>(&head, 12) as u32;
            let mut text = vec![0; number_at::<4>(&head, 16) as usize];
            stream.read_exact(&mut text)?;
            match kind {
                REPLY_ACK => return Ok(NbdClient { stream, next: 0, patience }),
                kind if kind >> 31 == 1 => bail!("refused: {}", String::from_utf8_lossy(&text)),
                _ => {}
            }
        }
    }

    /// Sends a write without waiting for its answer, and gives its number.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> Result<u64> {
        let mut bytes = self.header(Kind::Write, offset, u32::try_from(data.len())?);
        bytes.extend(data);
        self.stream.write_all(&bytes)?;
        Ok(self.next)
    }

    /// Whether an answer, or the end of the connection, comes within a time.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn has_answer(&mut self, within: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(within))?;
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_read_timeout(Some(self.patience))?;
        match seen {
            Ok(_) => Ok(true),
            Err(e) if is_closed(&e) => Ok(true),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(e) => Err(e).context("no answer"),
        }
    }

    /// Waits for the next answer to a write; nothing if the connection was closed.
    ///
    /// # Errors
    /// If nothing comes, or something else.
    pub fn answer(&mut self) -> Result<Option<Answer>> {
        let mut head = [0; 16];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(e) if is_closed(&e) => return Ok(None),
            Err(e) => return Err(e).context("no answer"),
        }
        ensure!(number_at::<4>(&head, 0) as u32 == SIMPLE_REPLY, "a bad reply");
        let (error, number) = (number_at::<4>(&head, 4) as u32, number_at::<8>(&head, 8));
        Ok(Some(Answer { number, error }))
    }

    /// Writes and waits.
    ///
    /// # Errors
    /// If it fails.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let number = self.send_write(offset, data)?;
        let answer = self.answer()?.context("the connection was closed")?;
        ensure!(answer == Answer { number, error: 0 }, "the write failed: {answer:?}");
        Ok(())
    }

    /// Reads and waits.
    ///
    /// # Errors
    /// If it fails.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>> {
        let bytes = self.header(Kind::Read, offset, len);
        self.stream.write_all(&bytes)?;
        let answer = self.answer()?.context("the connection was closed")?;
        ensure!(answer == Answer { number: self.next, error: 0 }, "the read failed: {answer:?}");
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Sends a request without data, and waits for its answer.
    ///
    /// # Errors
    /// If none comes.
    pub fn order(&mut self, kind: Kind, offset: u64, len: u32) -> Result<Answer> {
        let bytes = self.header(kind, offset, len);
        self.stream.write_all(&bytes)?;
        let answer = self.answer()?.context("the connection was closed")?;
        ensure!(answer.number == self.next, "an answer to another request: {answer:?}");
        Ok(answer)
    }

    fn header(&mut self, kind: Kind, offset: u64, len: u32) -> Vec<u8> {
        self.next += 1;
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend((kind as u16).to_be_bytes());
        bytes.extend(self.next.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes
    }
}

/// The head of an option with `len` bytes of data.
pub fn option_header(option: u32, len: u32) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn number_at<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn is_closed(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}
