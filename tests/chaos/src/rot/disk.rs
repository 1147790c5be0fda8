//! A node's device past the page cache: what is read is what the daemon will read, and what is written is
//! what it will find, whether it runs or not. Through the cache it would not do: the kernel answers a sync with EIO
//! once a direct write of the daemon has met a page that is dirty there.

use anyhow::{Context, Result};
use basalt_interop::cluster::Node;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::IoBuf;
use basalt_wire::disk::SUPERBLOCK_OFFSETS;
use basalt_wire::disk::superblock::{Superblock, choose};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Where a node's device stands.
pub fn path_of(node: &Node) -> PathBuf {
    node.folder.join("device")
}

/// A device's file, open with `O_DIRECT`.
pub struct Disk {
    file: File,
    /// The superblock that counts.
    pub(super) superblock: Superblock,
}

impl Disk {
    /// Opens a device and reads its superblocks.
    ///
    /// # Errors
    /// If there is no such file, or none of its superblocks is whole.
    pub fn open(path: &Path) -> Result<Disk> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.with_context(|| path.display().to_string())?;
        let read = |offset| read_at(&file, offset, BLOCK_BYTES);
        let [first, second] = SUPERBLOCK_OFFSETS.map(read);
        let copies = [Superblock::decode(&first?), Superblock::decode(&second?)];
        let superblock = choose(&copies).map_err(anyhow::Error::msg)?;
        Ok(Disk { file, superblock })
    }

    /// Reads whole blocks.
    ///
    /// # Errors
    /// If the file can not be read, or ends before.
    pub fn read(&self, offset: u64, len: usize) -> Result<IoBuf> {
        read_at(&self.file, offset, len)
    }

    /// Writes whole blocks.
    ///
    /// # Errors
    /// If the file can not be written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.file.write_all_at(&IoBuf::copy_from(data), offset).context("a write past the cache")
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// If the disk refuses to.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().context("a device's file")
    }

    /// Bytes of the device.
    pub fn bytes(&self) -> u64 {
        self.superblock.device_bytes
    }

    /// Copies it to a file, which is made anew and takes no room for zeros.
    pub(super) fn copy_to(&self, path: &Path) -> Result<()> {
        let copy = File::create(path).with_context(|| path.display().to_string())?;
        copy.set_len(self.bytes())?;
        for at in (0..self.bytes()).step_by(PIECE_BYTES as usize) {
            let piece = self.read(at, PIECE_BYTES.min(self.bytes() - at) as usize)?;
            if piece.iter().any(|byte| *byte != 0) {
                copy.write_all_at(&piece, at)?;
            }
        }
        copy.sync_all().with_context(|| path.display().to_string())
    }

    /// Makes all of it what an image holds, zeros included.
    pub(super) fn restore(&self, image: &Path) -> Result<()> {
        let image = File::open(image).with_context(|| image.display().to_string())?;
        for at in (0..self.bytes()).step_by(PIECE_BYTES as usize) {
            let piece = read_at(&image, at, PIECE_BYTES.min(self.bytes() - at) as usize)?;
            self.write(at, &piece)?;
        }
        self.sync()
    }
}

fn read_at(file: &File, offset: u64, len: usize) -> Result<IoBuf> {
    let mut data = IoBuf::alloc(len);
    file.read_exact_at(&mut data, offset).with_context(|| format!("{len} bytes at {offset}"))?;
    Ok(data)
}
