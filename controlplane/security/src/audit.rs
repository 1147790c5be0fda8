//! Records of who changed what, chained by their hashes.
//!
//! A node appends a record for every call that changes something, or was to, to a file of lines. Each record holds the
//! SHA-256 of the one before, so that none can be changed, taken out or put in between without the chain showing
//! where. What a chain can not show is that its end is missing: whoever needs that keeps the last hash elsewhere.

use crate::text::{hex, sha256};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that has this size is followed by a new one.
pub const FILE_BYTES: u64 = 16 << 20;
/// Files that are kept; the oldest go first.
pub const FILES: usize = 16;
/// The longest line that is read.
const LINE_MAX: u64 = 64 << 10;
const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";

/// What is recorded of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// When it ended, in milliseconds since 1970.
    pub time_ms: u64,
    /// Who called.
    pub principal: String,
    /// In which role.
    pub role: String,
    /// What was called.
    pub method: String,
    /// On what, as the request says.
    pub resource: String,
    /// The request's id, if it has one.
    pub request_id: String,
    /// What it came to.
    pub code: String,
    /// Calls by unknown callers since the record before that were denied and not recorded, as they were too many.
    pub suppressed: u64,
}

/// A record, as a line holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Counts the records of a node, from 1.
    pub sequence: u64,
    /// See [`Call`], as all that follow up to `suppressed`.
    pub time_ms: u64,
    /// Who.
    pub principal: String,
    /// In which role.
    pub role: String,
    /// What.
    pub method: String,
    /// On what.
    pub resource: String,
    /// Under which id.
    pub request_id: String,
    /// To what end.
    pub code: String,
    /// Not recorded before it.
    pub suppressed: u64,
    /// The hash of the record before.
    pub previous: String,
    /// SHA-256 of all of the above.
    pub hash: String,
}

impl Record {
    /// The record of a call behind another one.
    pub fn new(call: Call, sequence: u64, previous: &str) -> Record {
        let Call { time_ms, principal, role, method, resource, request_id, code, suppressed } =
            call;
        let previous = previous.to_owned();
        let mut record = Record {
            sequence,
            time_ms,
            principal,
            role,
            method,
            resource,
            request_id,
            code,
            suppressed,
            previous,
            hash: String::new(),
        };
        record.hash = record.digest();
        record
    }

    /// What its hash has to be.
    pub fn digest(&self) -> String {
        let mut bytes = b"basalt audit record v1".to_vec();
        for number in [self.sequence, self.time_ms, self.suppressed] {
            bytes.extend(number.to_be_bytes());
        }
        let texts = [
            &self.principal,
            &self.role,
            &self.method,
            &self.resource,
            &self.request_id,
            &self.code,
            &self.previous,
        ];
        for text in texts {
            // With its length, so that nothing can be moved from one field to the next.
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        hex(&sha256(&bytes))
    }

    /// Its line, without an end.
    pub fn line(&self) -> String {
        let text = serde_json::to_string(self);
        assert!(text.is_ok(), "numbers and texts can be written as JSON");
        text.unwrap_or_default()
    }

    /// Reads a line. It must be what [`Record::line`] gives, byte by byte.
    pub fn parse(line: &str) -> Option<Record> {
        let record: Record = serde_json::from_str(line).ok()?;
        (record.line() == line).then_some(record)
    }
}

/// The hash before the first record.
pub fn origin() -> String {
    "0".repeat(64)
}

/// Follows a chain.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    last: Option<(u64, String)>,
}

impl Chain {
    /// Nothing of it was seen yet.
    pub fn new() -> Chain {
        Chain::default()
    }

    /// Sequence and hash of the record seen last.
    pub fn last(&self) -> Option<&(u64, String)> {
        self.last.as_ref()
    }

    /// Takes the next record, or a line that is none.
    ///
    /// # Errors
    /// Says which record is broken, and how.
    pub fn take(&mut self, record: Option<&Record>) -> Result<(), String> {
        let expected = self.last.as_ref().map(|(sequence, _)| sequence + 1);
        let named =
            expected.map_or_else(|| "the first record".to_owned(), |n| format!("record {n}"));
        let Some(record) = record else { return Err(format!("{named} can not be read")) };
        if record.digest() != record.hash {
            return Err(format!("{named} was changed: its hash is not that of its content"));
        }
        match (&self.last, expected) {
            (Some((_, hash)), Some(expected)) => {
                if record.sequence != expected {
                    return Err(format!("{named} is missing: {} follows", record.sequence));
                }
                if record.previous != *hash {
                    return Err(format!("{named} does not follow the one before it"));
                }
            }
            _ if record.sequence == 1 && record.previous != origin() => {
                return Err("the first record does not begin the chain".to_owned());
            }
            _ => {}
        }
        self.last = Some((record.sequence, record.hash.clone()));
        Ok(())
    }
}

/// A node's records.
#[derive(Debug)]
pub struct Log {
    folder: PathBuf,
    file: File,
    bytes: u64,
    last: (u64, String),
    limits: (u64, usize),
    unsynced: bool,
}

impl Log {
    /// Opens the records in a folder, which is made if it is missing. A line that a power cut left incomplete
    /// is taken off.
    ///
    /// # Errors
    /// If the folder or its files can not be used.
    pub fn open(folder: &Path) -> io::Result<Log> {
        Log::open_with(folder, FILE_BYTES, FILES)
    }

    /// As [`Log::open`], with other limits.
    ///
    /// # Errors
    /// If the folder or its files can not be used.
    pub fn open_with(folder: &Path, file_bytes: u64, files: usize) -> io::Result<Log> {
        std::fs::create_dir_all(folder)?;
        let limits = (file_bytes, files);
        let Some(path) = files_of(folder)?.pop() else {
            let last = (0, origin());
            let file = begin(folder, 1)?;
            return Ok(Log {
                folder: folder.into(),
                file,
                bytes: 0,
                last,
                limits,
                unsynced: false,
            });
        };
        let whole = whole_bytes(&path)?;
        let file = OpenOptions::new().append(true).open(&path)?;
        if file.metadata()?.len() > whole {
            file.set_len(whole)?;
        }
        let last = last_of(folder)?;
        Ok(Log { folder: folder.into(), file, bytes: whole, last, limits, unsynced: false })
    }

    /// Appends a record of a call. It is with the system when this returns, and on the disk after
    /// [`Log::sync`].
    ///
    /// # Errors
    /// If it can not be written.
    pub fn append(&mut self, call: Call) -> io::Result<()> {
        let (sequence, previous) = (self.last.0 + 1, &self.last.1);
        let record = Record::new(call, sequence, previous);
        if self.bytes >= self.limits.0 {
            self.sync()?;
            self.file = begin(&self.folder, sequence)?;
            self.bytes = 0;
            self.drop_oldest()?;
        }
        let line = record.line() + "\n";
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // Half a line must not come before the next.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        self.last = (sequence, record.hash);
        self.unsynced = true;
        Ok(())
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let all = files_of(&self.folder)?;
        let over = all.len().saturating_sub(self.limits.1);
        all.iter().take(over).try_for_each(std::fs::remove_file)
    }

    /// Writes what was appended to the disk.
    ///
    /// # Errors
    /// If that fails.
    pub fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsynced) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

/// Where to go on reading: a file by its first sequence, and bytes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The first sequence of the file.
    pub file: u64,
    /// Bytes of it that were read.
    pub offset: u64,
}

/// Reads lines of the records in a folder, oldest first, from a place on. A line that is no record comes as
/// nothing. Gives the place to go on from, if there may be more.
///
/// # Errors
/// If the files can not be read.
pub fn read(
    folder: &Path,
    from: Place,
    count: usize,
) -> io::Result<(Vec<Option<Record>>, Option<Place>)> {
    let mut found = Vec::new();
    for path in files_of(folder)? {
        let number = number_of(&path).unwrap_or_default();
        if number < from.file {
            continue;
        }
        let mut offset = if number == from.file { from.offset } else { 0 };
        let mut reader = BufReader::new(File::open(&path)?);
        reader.seek(SeekFrom::Start(offset))?;
        loop {
            if found.len() >= count {
                return Ok((found, Some(Place { file: number, offset })));
            }
            let mut line = Vec::new();
            let bytes = io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line)?;
            // What has no end yet is being written.
            let whole = line.last() == Some(&b'\n') || bytes as u64 == LINE_MAX;
            if !whole {
                break;
            }
            offset += bytes as u64;
            line.pop();
            found.push(std::str::from_utf8(&line).ok().and_then(Record::parse));
        }
    }
    Ok((found, None))
}

/// The files in a folder, oldest first.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if number_of(&path).is_some() {
            all.push(path);
        }
    }
    // The numbers have equally many digits.
    all.sort();
    Ok(all)
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok()
}

fn begin(folder: &Path, first: u64) -> io::Result<File> {
    let path = folder.join(format!("{PREFIX}{first:020}{SUFFIX}"));
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
    File::open(folder)?.sync_all()?;
    Ok(file)
}

/// Bytes of a file up to the end of its last whole line.
fn whole_bytes(path: &Path) -> io::Result<u64> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1))
}

/// Sequence and hash that the next record follows: those of the last record that can be read, counting the
/// lines behind it that can not.
fn last_of(folder: &Path) -> io::Result<(u64, String)> {
    let mut last = (0, origin());
    for path in files_of(folder)?.iter().rev() {
        let first = number_of(path).unwrap_or_default();
        let (lines, _) = read(folder, Place { file: first, offset: 0 }, usize::MAX)?;
        let good = lines.iter().rposition(Option::is_some);
        if let Some((at, record)) = good.and_then(|at| Some((at, lines[at].as_ref()?))) {
            let broken = (lines.len() - 1 - at) as u64;
            last = (record.sequence + broken, record.hash.clone());
            break;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path =
                std::env::temp_dir().join(format!("basalt-audit-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn call(n: u64) -> Call {
        Call {
            time_ms: n,
            principal: "certificate:me".to_owned(),
            role: "admin".to_owned(),
            method: "basalt.v1.Admin/CreateVolume".to_owned(),
            resource: format!("volume_id=\"v{n}\"\n"),
            request_id: format!("r{n}"),
            code: "OK".to_owned(),
            suppressed: 0,
        }
    }

    fn verify(folder: &Path) -> Result<Option<(u64, String)>, String> {
        let mut chain = Chain::new();
        let (lines, more) = read(folder, Place::default(), usize::MAX).expect("readable");
        assert!(more.is_none());
        lines.iter().try_for_each(|line| chain.take(line.as_ref()))?;
        Ok(chain.last().cloned())
    }

    #[test]
    fn a_chain_goes_on_through_restarts_and_files() {
        let folder = Folder::new("rotation");
        for n in 1..=60 {
            let mut log = Log::open_with(&folder.0, 2000, 3).expect("opened");
            log.append(call(n)).expect("appended");
            log.sync().expect("synced");
        }
        assert_eq!(files_of(&folder.0).expect("listed").len(), 3);
        assert_eq!(verify(&folder.0).expect("whole").expect("some").0, 60);
        // In pages it is the same.
        let (mut place, mut chain, mut seen) = (Place::default(), Chain::new(), 0);
        loop {
            let (lines, more) = read(&folder.0, place, 7).expect("readable");
            seen += lines.len();
            lines.iter().for_each(|line| chain.take(line.as_ref()).expect("whole"));
            match more {
                Some(next) => place = next,
                None => break,
            }
        }
        assert_eq!(chain.last().expect("some").0, 60);
        assert!(seen < 60, "the oldest are gone");
    }

    #[test]
    fn every_changed_byte_is_seen() {
        let folder = Folder::new("bytes");
        let mut log = Log::open(&folder.0).expect("opened");
        (1..=3).for_each(|n| log.append(call(n)).expect("appended"));
        drop(log);
        let path = files_of(&folder.0).expect("listed").pop().expect("one");
        let good = std::fs::read(&path).expect("read");
        for at in 0..good.len() {
            for bit in [0, 5] {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                std::fs::write(&path, &bad).expect("written");
                let why = verify(&folder.0);
                // The end of the last line may be taken for one that is being written.
                if at + 1 == good.len() {
                    assert!(why.is_err() || why == Ok(verify_of(&good, 2)), "byte {at}");
                    continue;
                }
                let line = 1 + good[..at].iter().filter(|byte| **byte == b'\n').count();
                let named = if line == 1 {
                    "the first record".to_owned()
                } else {
                    format!("record {line}")
                };
                let why = why.expect_err("seen");
                assert!(why.starts_with(&named), "byte {at} of line {line}: {why}");
            }
        }
    }

    fn verify_of(bytes: &[u8], count: usize) -> Option<(u64, String)> {
        let text = std::str::from_utf8(bytes).expect("text");
        let record = Record::parse(text.lines().nth(count - 1)?)?;
        Some((record.sequence, record.hash))
    }

    #[test]
    fn what_is_taken_out_or_cut_off_by_a_power_cut() {
        let folder = Folder::new("missing");
        let mut log = Log::open(&folder.0).expect("opened");
        (1..=4).for_each(|n| log.append(call(n)).expect("appended"));
        drop(log);
        let path = files_of(&folder.0).expect("listed").pop().expect("one");
        let good = std::fs::read_to_string(&path).expect("read");
        let lines: Vec<&str> = good.lines().collect();
        std::fs::write(&path, [lines[0], lines[2], lines[3], ""].join("\n")).expect("written");
        assert!(verify(&folder.0).expect_err("seen").contains("record 2 is missing"));
        std::fs::write(&path, format!("{good}{}", &lines[3][..20])).expect("written");
        let mut log = Log::open(&folder.0).expect("opened");
        log.append(call(5)).expect("appended");
        assert_eq!(verify(&folder.0).expect("whole").expect("some").0, 5);
        // A line that was broken at the end is left as it is, and what follows goes on behind it.
        let broken = std::fs::read_to_string(&path).expect("read").replace("r5", "r6");
        std::fs::write(&path, broken).expect("written");
        let mut log = Log::open(&folder.0).expect("opened");
        log.append(call(6)).expect("appended");
        assert!(verify(&folder.0).expect_err("seen").contains("record 5 was changed"));
    }
}
