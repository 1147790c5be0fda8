//! What a Raft entry of a volume group says.
//!
//! A leader packs everything that arrived in one turn into one entry: a list of [`Command`]s. Their
//! block data travels beside the entry, in the order of the commands.
//!
//! The packed form of a list, in order of bytes (little endian): version (1 byte), three zero bytes,
//! number of commands (4 bytes); then each command: a tag; for a write or unmap volume, epoch and
//! generation (unless the tag says that they are those of the write or unmap before), first block (8),
//! count (2), and a write's checksums (4 each); for a fence or a revert volume, epoch and generation;
//! for a delete the volume; for a freeze or the drop of a snapshot volume and generation; for a clone or
//! a detach the volume, and volume and generation of its parent; for a fill the same, first block (8), count (2),
//! a bit for each block whether it is filled, and the checksums of these (4 each).
//! It has no checksum of its own: the frame and the log record that carry it do.

use crate::block::{CHUNK_BLOCKS, COMMAND_BLOCKS_MAX};
use crate::blockset::BlockSet;
use crate::codec::CodecError;
use crate::codec::body::{Reader, bounded, check_range, numbers};
use crate::ids::{Epoch, Generation, SnapshotId, VolumeId};
use bytes::{BufMut, Bytes, BytesMut};

/// A run of blocks of one volume: what a command or a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// The first block, counted from the start of the volume.
    pub block: u64,
    /// Blocks; 1 or more. A range never crosses a chunk.
    pub count: u32,
}

/// One command of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Replace blocks. The entry's payload holds `range.count` blocks for it.
    Write {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch; refused when applied if a higher one was fenced in.
        epoch: Epoch,
        /// The generation in which the write was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
        /// CRC-32C of each block.
        checksums: Vec<u32>,
    },
    /// Make blocks read as zeros and give back their space (discard, write-zeroes).
    Unmap {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch.
        epoch: Epoch,
        /// The generation in which it was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
    },
    /// From here on, refuse every lower epoch of the volume (invariant I3).
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The new epoch.
        epoch: Epoch,
        /// The generation that the session writes to: lower ones are frozen.
        generation: Generation,
    },
    /// Give back every block of the volume and refuse all its epochs for good.
    Delete {
        /// The volume.
        volume: VolumeId,
    },
    /// Keep the volume as it is as the snapshot of a generation; writes go to the next one.
    Freeze {
        /// The volume.
        volume: VolumeId,
        /// The generation to freeze.
        generation: Generation,
    },
    /// Give back what only the snapshot of a generation holds. A generation that was not frozen yet
    /// will have no snapshot.
    DropSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// Make the volume what it was when a generation was frozen, and drop every later snapshot.
    Revert {
        /// The volume.
        volume: VolumeId,
        /// The session's epoch.
        epoch: Epoch,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// Begin the volume as a clone: it reads as a snapshot of another volume wherever it was not written
    /// or unmapped itself. That snapshot stays as long as the clone needs it.
    Clone {
        /// The volume, of which no other command has spoken yet.
        volume: VolumeId,
        /// The snapshot.
        parent: SnapshotId,
    },
    /// Give a clone blocks of its own where it reads as its parent does; what it was given, written or
    /// unmapped before stays. The entry's payload holds `blocks.len()` blocks for it, all of them what the
    /// snapshot holds.
    Fill {
        /// The clone.
        volume: VolumeId,
        /// The snapshot; of a volume that does not hang on it nothing is changed.
        parent: SnapshotId,
        /// Where.
        range: BlockRange,
        /// Which of these blocks.
        blocks: BlockSet,
        /// CRC-32C of each of them.
        checksums: Vec<u32>,
    },
    /// Make a clone a volume like any other, that reads as zeros where it has nothing of its own.
    Detach {
        /// The clone.
        volume: VolumeId,
        /// The snapshot that it hangs on; it changes nothing if it does not.
        parent: SnapshotId,
    },
}

impl Command {
    /// Blocks of payload that belong to the command.
    pub fn payload_blocks(&self) -> u32 {
        match self {
            Command::Write { range, .. } => range.count,
            Command::Fill { blocks, .. } => blocks.len(),
            _ => 0,
        }
    }

    /// The volume that it is about.
    pub fn volume(&self) -> VolumeId {
        match self {
            Command::Write { volume, .. }
            | Command::Unmap { volume, .. }
            | Command::Fence { volume, .. }
            | Command::Delete { volume }
            | Command::Freeze { volume, .. }
            | Command::DropSnapshot { volume, .. }
            | Command::Revert { volume, .. }
            | Command::Clone { volume, .. }
            | Command::Fill { volume, .. }
            | Command::Detach { volume, .. } => *volume,
        }
    }
}

/// Version of the packed form of commands.
pub const COMMANDS_VERSION: u8 = 2;

/// The packed form starts with the version (one byte), three zero bytes and the number of commands.
const HEADER_BYTES: usize = 8;
/// The shortest command: a tag and a volume.
const COMMAND_BYTES_MIN: u64 = 9;

const WRITE: u8 = 1;
const UNMAP: u8 = 2;
const FENCE: u8 = 3;
const DELETE: u8 = 4;
const FREEZE: u8 = 5;
const DROP_SNAPSHOT: u8 = 6;
const REVERT: u8 = 7;
const CLONE: u8 = 8;
const FILL: u8 = 9;
const DETACH: u8 = 10;
/// Set in the tag of a write or unmap whose volume, epoch and generation are those of the write or
/// unmap before it. Nearly all of an entry's commands come from one session, and 15 bytes instead
/// of 35 for a single block are room in the log's headers.
const SAME_SESSION: u8 = 0x80;

/// Packs commands one by one into an entry's data.
#[derive(Debug)]
pub struct CommandPacker {
    out: BytesMut,
    count: u32,
    session: Option<(VolumeId, Epoch, Generation)>,
}

impl Default for CommandPacker {
    fn default() -> CommandPacker {
        CommandPacker::new()
    }
}

impl CommandPacker {
    /// An empty list.
    pub fn new() -> CommandPacker {
        let mut out = BytesMut::with_capacity(256);
        out.put_bytes(0, HEADER_BYTES);
        CommandPacker { out, count: 0, session: None }
    }

    /// Appends a command. Its range must be valid and a write's checksums as many as its blocks.
    pub fn push(&mut self, command: &Command) {
        self.count += 1;
        match command {
            Command::Write { volume, epoch, generation, range, checksums } => {
                let session = (*volume, *epoch, *generation);
                assert_eq!(checksums.len(), range.count as usize, "one checksum a block");
                self.put_range(WRITE, session, *range, COMMAND_BLOCKS_MAX);
                self.out.reserve(checksums.len() * 4);
                checksums.iter().for_each(|checksum| self.out.put_u32_le(*checksum));
            }
            Command::Unmap { volume, epoch, generation, range } => {
                let session = (*volume, *epoch, *generation);
                self.put_range(UNMAP, session, *range, CHUNK_BLOCKS as u32);
            }
            Command::Fence { volume, epoch, generation } => {
                self.put_control(FENCE, *volume, *epoch, *generation);
            }
            Command::Revert { volume, epoch, generation } => {
                self.put_control(REVERT, *volume, *epoch, *generation);
            }
            Command::Delete { volume } => {
                self.out.put_u8(DELETE);
                self.out.put_u64_le(volume.0);
            }
            Command::Freeze { volume, generation } => {
                self.put_snapshot(FREEZE, *volume, *generation);
            }
            Command::DropSnapshot { volume, generation } => {
                self.put_snapshot(DROP_SNAPSHOT, *volume, *generation);
            }
            Command::Clone { volume, parent } => self.put_clone(CLONE, *volume, *parent),
            Command::Detach { volume, parent } => self.put_clone(DETACH, *volume, *parent),
            Command::Fill { volume, parent, range, blocks, checksums } => {
                assert!(
                    (1..=COMMAND_BLOCKS_MAX).contains(&range.count)
                        && checksums.len() == blocks.len() as usize,
                    "one checksum a block"
                );
                self.put_clone(FILL, *volume, *parent);
                self.out.put_u64_le(range.block);
                self.out.put_u16_le(range.count as u16);
                blocks.bytes(range.count).for_each(|byte| self.out.put_u8(byte));
                checksums.iter().for_each(|checksum| self.out.put_u32_le(*checksum));
            }
        }
    }

    /// Commands so far.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether there is no command yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The packed form.
    pub fn finish(mut self) -> Bytes {
        self.out[0] = COMMANDS_VERSION;
        self.out[4..8].copy_from_slice(&self.count.to_le_bytes());
        self.out.freeze()
    }

    fn put_snapshot(&mut self, tag: u8, volume: VolumeId, generation: Generation) {
        self.out.put_u8(tag);
        self.out.put_u64_le(volume.0);
        self.out.put_u32_le(generation.0);
    }

    fn put_clone(&mut self, tag: u8, volume: VolumeId, parent: SnapshotId) {
        self.out.put_u8(tag);
        self.out.put_u64_le(volume.0);
        self.out.put_u64_le(parent.volume.0);
        self.out.put_u32_le(parent.generation.0);
    }

    fn put_control(&mut self, tag: u8, volume: VolumeId, epoch: Epoch, generation: Generation) {
        self.out.put_u8(tag);
        self.out.put_u64_le(volume.0);
        self.out.put_u64_le(epoch.0);
        self.out.put_u32_le(generation.0);
    }

    fn put_range(
        &mut self,
        tag: u8,
        session: (VolumeId, Epoch, Generation),
        range: BlockRange,
        count_max: u32,
    ) {
        assert!((1..=count_max).contains(&range.count), "a command of {} blocks", range.count);
        if self.session == Some(session) {
            self.out.put_u8(tag | SAME_SESSION);
        } else {
            self.out.put_u8(tag);
            self.out.put_u64_le(session.0.0);
            self.out.put_u64_le(session.1.0);
            self.out.put_u32_le(session.2.0);
            self.session = Some(session);
        }
        self.out.put_u64_le(range.block);
        self.out.put_u16_le(range.count as u16);
    }
}

/// The packed form of `commands`: the data of an entry.
pub fn encode_commands(commands: &[Command]) -> Bytes {
    let mut packer = CommandPacker::new();
    commands.iter().for_each(|command| packer.push(command));
    packer.finish()
}

/// The commands of an entry's data. No data at all is no command: so a leader starts its term.
pub fn decode_commands(data: &Bytes) -> Result<Vec<Command>, CodecError> {
    let reader = CommandReader::new(data)?;
    let mut commands = Vec::with_capacity(reader.left());
    for command in reader {
        commands.push(command?.to_command());
    }
    Ok(commands)
}

/// A command as it stands in an entry's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandView<'a> {
    /// As [`Command::Write`].
    Write {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch.
        epoch: Epoch,
        /// The generation in which it was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
        /// CRC-32C of each block.
        checksums: Checksums<'a>,
    },
    /// As [`Command::Unmap`].
    Unmap {
        /// The volume.
        volume: VolumeId,
        /// The writer's epoch.
        epoch: Epoch,
        /// The generation in which it was submitted.
        generation: Generation,
        /// Where.
        range: BlockRange,
    },
    /// As [`Command::Fence`].
    Fence {
        /// The volume.
        volume: VolumeId,
        /// The new epoch.
        epoch: Epoch,
        /// The generation that the session writes to.
        generation: Generation,
    },
    /// As [`Command::Delete`].
    Delete {
        /// The volume.
        volume: VolumeId,
    },
    /// As [`Command::Freeze`].
    Freeze {
        /// The volume.
        volume: VolumeId,
        /// The generation to freeze.
        generation: Generation,
    },
    /// As [`Command::DropSnapshot`].
    DropSnapshot {
        /// The volume.
        volume: VolumeId,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// As [`Command::Revert`].
    Revert {
        /// The volume.
        volume: VolumeId,
        /// The session's epoch.
        epoch: Epoch,
        /// The snapshot's generation.
        generation: Generation,
    },
    /// As [`Command::Clone`].
    Clone {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        parent: SnapshotId,
    },
    /// As [`Command::Fill`].
    Fill {
        /// The clone.
        volume: VolumeId,
        /// The snapshot.
        parent: SnapshotId,
        /// Where.
        range: BlockRange,
        /// Which of these blocks.
        blocks: BlockSet,
        /// CRC-32C of each of them.
        checksums: Checksums<'a>,
    },
    /// As [`Command::Detach`].
    Detach {
        /// The clone.
        volume: VolumeId,
        /// The snapshot.
        parent: SnapshotId,
    },
}

impl CommandView<'_> {
    /// The command with memory of its own.
    pub fn to_command(&self) -> Command {
        match *self {
            CommandView::Write { volume, epoch, generation, range, checksums } => {
                let checksums = checksums.iter().collect();
                Command::Write { volume, epoch, generation, range, checksums }
            }
            CommandView::Unmap { volume, epoch, generation, range } => {
                Command::Unmap { volume, epoch, generation, range }
            }
            CommandView::Fence { volume, epoch, generation } => {
                Command::Fence { volume, epoch, generation }
            }
            CommandView::Delete { volume } => Command::Delete { volume },
            CommandView::Freeze { volume, generation } => Command::Freeze { volume, generation },
            CommandView::DropSnapshot { volume, generation } => {
                Command::DropSnapshot { volume, generation }
            }
            CommandView::Revert { volume, epoch, generation } => {
                Command::Revert { volume, epoch, generation }
            }
            CommandView::Clone { volume, parent } => Command::Clone { volume, parent },
            CommandView::Fill { volume, parent, range, blocks, checksums } => {
                let checksums = checksums.iter().collect();
                Command::Fill { volume, parent, range, blocks, checksums }
            }
            CommandView::Detach { volume, parent } => Command::Detach { volume, parent },
        }
    }

    /// Blocks of payload that belong to the command.
    pub fn payload_blocks(&self) -> u32 {
        match self {
            CommandView::Write { range, .. } => range.count,
            CommandView::Fill { blocks, .. } => blocks.len(),
            _ => 0,
        }
    }
}

impl<'a> CommandView<'a> {
    /// The checksums of its payload blocks in order; nothing for a command without payload.
    pub fn checksums(&self) -> Option<Checksums<'a>> {
        match self {
            CommandView::Write { checksums, .. } | CommandView::Fill { checksums, .. } => {
                Some(*checksums)
            }
            _ => None,
        }
    }

    /// Where its payload belongs: volume, block and checksum of each block in order.
    pub fn payload(&self) -> impl Iterator<Item = (VolumeId, u64, u32)> + use<'a> {
        let (volume, first, blocks, checksums) = match *self {
            CommandView::Write { volume, range, checksums, .. } => {
                (volume, range.block, BlockSet::first(range.count), checksums)
            }
            CommandView::Fill { volume, range, blocks, checksums, .. } => {
                (volume, range.block, blocks, checksums)
            }
            _ => (VolumeId(0), 0, BlockSet::default(), Checksums(&[])),
        };
        let blocks = blocks.iter().map(move |block| first + u64::from(block));
        blocks.zip(checksums.iter()).map(move |(block, checksum)| (volume, block, checksum))
    }
}

/// The checksums of a write, as they stand in an entry's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksums<'a>(&'a [u8]);

impl<'a> Checksums<'a> {
    /// The checksums in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + Clone + use<'a> {
        numbers(self.0)
    }
}

/// Reads an entry's commands one by one without taking memory; the form for the path that every
/// write takes. Each command is validated when it is read, and after an error nothing follows.
pub struct CommandReader<'a> {
    reader: Reader<'a>,
    left: u32,
    session: Option<(VolumeId, Epoch, Generation)>,
}

impl<'a> CommandReader<'a> {
    /// Checks the version and the number of commands.
    pub fn new(data: &'a Bytes) -> Result<CommandReader<'a>, CodecError> {
        let mut reader = Reader::new(data);
        if data.is_empty() {
            return Ok(CommandReader { reader, left: 0, session: None });
        }
        let version = reader.u8("version of the commands")?;
        if version != COMMANDS_VERSION {
            let (what, known) = ("commands", u16::from(COMMANDS_VERSION));
            return Err(CodecError::Version { what, found: u16::from(version), known });
        }
        let reserved = reader.slice("reserved bytes of the commands", 3)?;
        let reserved = u64::from(reserved[0] | reserved[1] | reserved[2]);
        bounded("reserved bytes of the commands", reserved, 0, 0)?;
        let left = reader.u32("command count")?;
        reader.need("commands", u64::from(left) * COMMAND_BYTES_MIN)?;
        if left == 0 && reader.left() > 0 {
            return Err(CodecError::Trailing { what: "commands", left: reader.left() as u64 });
        }
        Ok(CommandReader { reader, left, session: None })
    }

    /// Commands not read yet. Their bytes are there.
    pub fn left(&self) -> usize {
        self.left as usize
    }

    fn read(&mut self) -> Result<CommandView<'a>, CodecError> {
        let tag = self.reader.u8("command")?;
        match tag & !SAME_SESSION {
            WRITE => {
                let ((volume, epoch, generation), range) =
                    self.session_and_range(tag, "write's range", u64::from(COMMAND_BLOCKS_MAX))?;
                let bytes = self.reader.slice("checksums", range.count as usize * 4)?;
                let checksums = Checksums(bytes);
                Ok(CommandView::Write { volume, epoch, generation, range, checksums })
            }
            UNMAP => {
                let ((volume, epoch, generation), range) =
                    self.session_and_range(tag, "unmap's range", CHUNK_BLOCKS)?;
                Ok(CommandView::Unmap { volume, epoch, generation, range })
            }
            _ => self.read_control(tag),
        }
    }

    fn read_control(&mut self, tag: u8) -> Result<CommandView<'a>, CodecError> {
        bounded("command", u64::from(tag), u64::from(WRITE), u64::from(DETACH))?;
        let r = &mut self.reader;
        let volume = VolumeId(r.u64("volume")?);
        if tag == DELETE {
            return Ok(CommandView::Delete { volume });
        }
        if matches!(tag, CLONE | FILL | DETACH) {
            let (of, generation) = (VolumeId(r.u64("parent")?), Generation(r.u32("generation")?));
            let parent = SnapshotId { volume: of, generation };
            return match tag {
                CLONE => Ok(CommandView::Clone { volume, parent }),
                DETACH => Ok(CommandView::Detach { volume, parent }),
                _ => self.read_fill(volume, parent),
            };
        }
        if tag == FREEZE || tag == DROP_SNAPSHOT {
            let generation = Generation(r.u32("generation")?);
            return Ok(match tag {
                FREEZE => CommandView::Freeze { volume, generation },
                _ => CommandView::DropSnapshot { volume, generation },
            });
        }
        let (epoch, generation) = (Epoch(r.u64("epoch")?), Generation(r.u32("generation")?));
        Ok(match tag {
            FENCE => CommandView::Fence { volume, epoch, generation },
            _ => CommandView::Revert { volume, epoch, generation },
        })
    }

    fn read_fill(
        &mut self,
        volume: VolumeId,
        parent: SnapshotId,
    ) -> Result<CommandView<'a>, CodecError> {
        const FIELD: &str = "fill's range";
        let r = &mut self.reader;
        let (block, count) = (r.u64(FIELD)?, u32::from(r.u16(FIELD)?));
        check_range(FIELD, block, count, u64::from(COMMAND_BLOCKS_MAX))?;
        let set = r.slice("blocks of a fill", count.div_ceil(8) as usize)?;
        let blocks = BlockSet::from_bytes(count, set).ok_or(CodecError::OutOfBounds {
            field: "blocks of a fill",
            value: set.iter().map(|byte| u64::from(byte.count_ones())).sum(),
            min: 1,
            max: u64::from(count),
        })?;
        let checksums = Checksums(r.slice("checksums", blocks.len() as usize * 4)?);
        let range = BlockRange { block, count };
        Ok(CommandView::Fill { volume, parent, range, blocks, checksums })
    }

    fn session_and_range(
        &mut self,
        tag: u8,
        field: &'static str,
        count_max: u64,
    ) -> Result<((VolumeId, Epoch, Generation), BlockRange), CodecError> {
        let r = &mut self.reader;
        let session = match (tag & SAME_SESSION != 0, self.session) {
            (true, Some(session)) => session,
            (true, None) => {
                let (value, min, max) = (u64::from(tag), u64::from(WRITE), u64::from(DETACH));
                return Err(CodecError::OutOfBounds { field: "first command", value, min, max });
            }
            (false, _) => (
                VolumeId(r.u64("volume")?),
                Epoch(r.u64("epoch")?),
                Generation(r.u32("generation")?),
            ),
        };
        self.session = Some(session);
        let (block, count) = (r.u64(field)?, u32::from(r.u16(field)?));
        check_range(field, block, count, count_max)?;
        Ok((session, BlockRange { block, count }))
    }
}

impl<'a> Iterator for CommandReader<'a> {
    type Item = Result<CommandView<'a>, CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut result = self.read();
        if self.left == 0 && result.is_ok() && self.reader.left() > 0 {
            let left = self.reader.left() as u64;
            result = Err(CodecError::Trailing { what: "commands", left });
        }
        if result.is_err() {
            self.left = 0;
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(max: u32) -> impl Strategy<Value = BlockRange> {
        (0..1u64 << 40, 0..CHUNK_BLOCKS as u32, 1..=max).prop_map(|(chunk, start, count)| {
            let start = start.min(CHUNK_BLOCKS as u32 - count);
            BlockRange { block: chunk * CHUNK_BLOCKS + u64::from(start), count }
        })
    }

    fn command() -> impl Strategy<Value = Command> {
        let session = || (1..3u64, 1..3u64, 0..2u32);
        prop_oneof![
            4 => (session(), range(COMMAND_BLOCKS_MAX), any::<u32>()).prop_map(|(s, range, seed)| {
                Command::Write {
                    volume: VolumeId(s.0),
                    epoch: Epoch(s.1),
                    generation: Generation(s.2),
                    range,
                    checksums: (0..range.count).map(|i| seed.wrapping_mul(i + 1)).collect(),
                }
            }),
            2 => (session(), range(CHUNK_BLOCKS as u32)).prop_map(|(s, range)| Command::Unmap {
                volume: VolumeId(s.0),
                epoch: Epoch(s.1),
                generation: Generation(s.2),
                range,
            }),
            1 => (any::<(u64, u64, u32)>(), 0..4).prop_map(|((v, e, g), which)| {
                let (volume, epoch, generation) = (VolumeId(v), Epoch(e), Generation(g));
                match which {
                    0 => Command::Fence { volume, epoch, generation },
                    1 => Command::Freeze { volume, generation },
                    2 => Command::Revert { volume, epoch, generation },
                    _ => Command::DropSnapshot { volume, generation },
                }
            }),
            1 => any::<u64>().prop_map(|v| Command::Delete { volume: VolumeId(v) }),
            1 => any::<(u64, u64, u32)>().prop_map(|(v, of, g)| {
                let parent = SnapshotId { volume: VolumeId(of), generation: Generation(g) };
                Command::Clone { volume: VolumeId(v), parent }
            }),
            1 => any::<(u64, u64, u32)>().prop_map(|(v, of, g)| {
                let parent = SnapshotId { volume: VolumeId(of), generation: Generation(g) };
                Command::Detach { volume: VolumeId(v), parent }
            }),
            2 => (any::<(u64, u64, u32)>(), range(COMMAND_BLOCKS_MAX), any::<u64>()).prop_map(
                |((v, of, g), range, bits)| {
                    let parent = SnapshotId { volume: VolumeId(of), generation: Generation(g) };
                    let mut blocks = BlockSet::first(1);
                    let inside = (1..range.count).filter(|n| bits >> (n % 64) & 1 == 1);
                    inside.for_each(|block| blocks.insert(block));
                    let checksums = (0..blocks.len()).map(|n| n ^ g).collect();
                    Command::Fill { volume: VolumeId(v), parent, range, blocks, checksums }
                }
            ),
        ]
    }

    #[test]
    fn a_single_block_of_a_known_session_takes_15_bytes() {
        let write = Command::Write {
            volume: VolumeId(1),
            epoch: Epoch(2),
            generation: Generation(3),
            range: BlockRange { block: 9, count: 1 },
            checksums: vec![7],
        };
        let one = encode_commands(std::slice::from_ref(&write)).len();
        assert_eq!(one, 8 + 35);
        assert_eq!(encode_commands(&[write.clone(), write]).len(), one + 15);
    }

    #[test]
    fn no_data_is_no_command() {
        assert_eq!(decode_commands(&Bytes::new()), Ok(Vec::new()));
        assert_eq!(decode_commands(&encode_commands(&[])), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let text = |bytes: &'static [u8]| {
            decode_commands(&Bytes::from_static(bytes)).unwrap_err().to_string()
        };
        assert_eq!(
            text(&[9, 0, 0, 0, 0, 0, 0, 0]),
            "unknown version 9 of the commands, known is 2"
        );
        assert_eq!(
            text(&[2, 0, 0, 0, 255, 255, 255, 255]),
            "commands needs 38654705655 bytes, 0 are left"
        );
        assert_eq!(text(&[2, 0, 0, 0, 0, 0, 0, 0, 5]), "1 bytes follow the end of the commands");
        assert_eq!(
            text(&[2, 0, 0, 0, 1, 0, 0, 0, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]),
            "first command is 129, allowed is 1 to 10"
        );
    }

    proptest! {
        #[test]
        fn commands_come_back(commands in prop::collection::vec(command(), 0..12)) {
            let data = encode_commands(&commands);
            prop_assert_eq!(decode_commands(&data).unwrap(), commands);
        }

        #[test]
        fn a_shortened_list_is_refused(commands in prop::collection::vec(command(), 1..6), at: prop::sample::Index) {
            let data = encode_commands(&commands);
            let len = 1 + at.index(data.len() - 1);
            prop_assert!(decode_commands(&data.slice(..len)).is_err());
        }

        #[test]
        fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200), list: bool) {
            if list {
                bytes.splice(..bytes.len().min(8), [2, 0, 0, 0, bytes.len() as u8 / 16, 0, 0, 0]);
            }
            let _ = decode_commands(&bytes.into());
        }
    }
}
