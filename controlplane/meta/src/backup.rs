//! A backup of the state, as a file.
//!
//! | bytes | field |
//! | --- | --- |
//! | 8 | `BSLTMETA` |
//! | 4 | version, 1 |
//! | then, for the header and for each piece of the state: 4 | its length |
//! | so many | an encoded `BackupHeader`, or `StateChunk` |
//!
//! Numbers are little endian. The last piece has the digest over the pieces before it; nothing comes behind it.

use crate::chunks::{BadState, CHUNK_BYTES_MAX, StateReader};
use crate::state::MetaState;
use basalt_api::meta::v1::BackupHeader;
use prost::Message;

/// With what a backup begins.
const MAGIC: &[u8; 8] = b"BSLTMETA";
/// Version of the format.
const VERSION: u32 = 1;

/// A backup that was read and is whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// Of which cluster it is, and when it was taken.
    pub header: BackupHeader,
    /// The state.
    pub state: MetaState,
    /// SHA-256 over the pieces of the state.
    pub digest: Vec<u8>,
}

/// Why a file is no backup that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBackup {
    /// It is something else.
    #[error("it is no backup of a cluster's metadata")]
    Other,
    /// It is of another version.
    #[error(
        "it is a backup of version {0}, not {VERSION}: another version of the program wrote it"
    )]
    Version(u32),
    /// It ends too early, or goes on behind its end.
    #[error("it is cut off, or has something behind its end")]
    Length,
    /// What it says of itself can not be read, or is not what the state says.
    #[error("what it says of itself is wrong: {0}")]
    Header(String),
    /// It does not hold a whole state.
    #[error("{0}")]
    State(#[from] BadState),
}

/// The beginning of a backup's file.
pub fn begin(header: &BackupHeader) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &framed(&header.encode_to_vec())].concat()
}

/// A piece of the state as it stands in the file.
pub fn framed(piece: &[u8]) -> Vec<u8> {
    [&(piece.len() as u32).to_le_bytes()[..], piece].concat()
}

/// Reads a backup from the bytes of its file.
///
/// # Errors
/// If it is not whole, or contradicts itself.
pub fn read(bytes: &[u8]) -> Result<Backup, BadBackup> {
    let (magic, rest) = bytes.split_at_checked(MAGIC.len()).ok_or(BadBackup::Other)?;
    if magic != MAGIC {
        return Err(BadBackup::Other);
    }
    let (version, mut rest) = rest.split_at_checked(4).ok_or(BadBackup::Length)?;
    let version = u32::from_le_bytes(version.try_into().expect("four bytes"));
    if version != VERSION {
        return Err(BadBackup::Version(version));
    }
    let header = BackupHeader::decode(next(&mut rest)?);
    let header = header.map_err(|e| BadBackup::Header(e.to_string()))?;
    let mut reader = StateReader::default();
    while !reader.is_ended() {
        reader.add(next(&mut rest)?)?;
    }
    if !rest.is_empty() {
        return Err(BadBackup::Length);
    }
    let digest = reader.digest().to_vec();
    let state = reader.finish()?;
    let cluster = state.cluster().map_or(0, |spec| spec.id);
    if cluster != header.cluster {
        let named = header.cluster;
        return Err(BadBackup::Header(format!(
            "it names cluster {named:016x}, its state is of {cluster:016x}"
        )));
    }
    Ok(Backup { header, state, digest })
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], BadBackup> {
    let (length, behind) = rest.split_at_checked(4).ok_or(BadBackup::Length)?;
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if length > CHUNK_BYTES_MAX {
        return Err(BadBackup::Length);
    }
    let (piece, behind) = behind.split_at_checked(length).ok_or(BadBackup::Length)?;
    *rest = behind;
    Ok(piece)
}
