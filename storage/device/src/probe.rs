//! Opening a file or block device and finding out what it is: lock, size, alignment, O_DIRECT, cache,
//! and which parts of a file were never written.

use crate::device::{DeviceInfo, DeviceKind, DeviceSpec};
use crate::error::DeviceError;
use crate::prewrite::Ranges;
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::buffer::{ALIGN, IoBuf};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Extents that a file may have before its unwritten parts are given up on: more than this is a
/// fragmented file whose map would not be worth its memory.
const EXTENTS_MAX: usize = 64 << 10;

/// An opened device.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) info: DeviceInfo,
    /// The parts of a file that were allocated or left out, and never written.
    pub(crate) unwritten: Ranges,
}

pub(crate) fn open(path: &Path, spec: &DeviceSpec) -> Result<Opened, DeviceError> {
    let kind = match (kind_of(path)?, spec.create_bytes) {
        (Some(kind), _) => kind,
        (None, Some(bytes)) => {
            create(path, bytes)?;
            DeviceKind::File
        }
        (None, None) => return Err(DeviceError::NotFound(path.into())),
    };
    let (file, direct) = open_direct(path, kind, spec.allow_buffered)?;
    lock(&file, path)?;
    let size = size_of(&file, path)?;
    let (memory_align, offset_align) = if direct { alignment(&file, path)? } else { (1, 1) };
    if direct {
        read_directly(&file, path)?;
    }
    let cache = device_cache(&file);
    let volatile_cache = spec.volatile_cache.unwrap_or(match kind {
        // A file system keeps what it knows of a file's extents in memory too: even on a device
        // without a cache, a write counts only when it was asked to be durable.
        DeviceKind::File => true,
        _ => cache.unwrap_or(true),
    });
    let unwritten = match kind {
        DeviceKind::File if spec.prewrite_bytes > 0 => unwritten(&file, size).unwrap_or_default(),
        _ => Ranges::default(),
    };
    let description = describe(path, kind, direct, size, cache, &file);
    let info =
        DeviceInfo { size, kind, volatile_cache, direct, memory_align, offset_align, description };
    Ok(Opened { file, info, unwritten })
}

fn system<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> DeviceError + use<'a> {
    move |source| DeviceError::System { path: path.into(), action, source }
}

fn unfit(path: &Path, reason: impl Into<String>) -> DeviceError {
    DeviceError::Unfit { path: path.into(), reason: reason.into() }
}

fn kind_of(path: &Path) -> Result<Option<DeviceKind>, DeviceError> {
    let kind = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(system(path, "can not look at")(e)),
    };
    match () {
        () if kind.is_file() => Ok(Some(DeviceKind::File)),
        () if kind.is_block_device() => Ok(Some(DeviceKind::Block)),
        () if kind.is_dir() => Err(unfit(path, "it is a directory; name a file in it")),
        () => Err(unfit(path, "it is neither a file nor a block device")),
    }
}

/// Makes a file of `bytes` bytes with all its space allocated.
///
/// It is made under another name and renamed when it is whole, so that a crash in between leaves no
/// file that looks like a small device.
fn create(path: &Path, bytes: u64) -> Result<(), DeviceError> {
    let size = bytes - bytes % BLOCK_BYTES as u64;
    if size == 0 {
        return Err(unfit(path, format!("{bytes} bytes are less than a block")));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let draft = PathBuf::from(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&draft)
        .map_err(system(path, "can not create"))?;
    lock(&file, path)?;
    let made = file.set_len(0).and_then(|()| allocate(&file, size)).and_then(|()| file.sync_all());
    if let Err(e) = made {
        // What was allocated is given back; the error to report is the one above.
        let _ = std::fs::remove_file(&draft);
        return Err(system(path, "can not allocate the space of")(e));
    }
    rename_new(&draft, path).map_err(system(path, "can not create"))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(system(path, "can not make the directory entry durable of"))
}

fn allocate(file: &File, size: u64) -> io::Result<()> {
    let len = libc::off64_t::try_from(size).map_err(|_| io::ErrorKind::FileTooLarge)?;
    loop {
        // SAFETY: the descriptor is open for the call; no memory is involved.
        if unsafe { libc::fallocate64(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return write_zeros(file, size),
            _ => return Err(e),
        }
    }
}

/// A file system that can not allocate is made to by writing.
fn write_zeros(file: &File, size: u64) -> io::Result<()> {
    let zeros = vec![0u8; 1 << 20];
    let mut file = file;
    let mut left = size;
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        file.write_all(&zeros[..now as usize])?;
        left -= now;
    }
    Ok(())
}

/// Renames, unless `to` came into being in the meantime.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let name = |path: &Path| CString::new(path.as_os_str().as_bytes());
    let (old, new) = (name(from)?, name(to)?);
    // SAFETY: both are terminated strings that live through the call.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            old.as_ptr(),
            libc::AT_FDCWD,
            new.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        // A file system without the flag: the lock on the draft keeps other creators out.
        Some(libc::EINVAL | libc::ENOSYS) if !to.exists() => std::fs::rename(from, to),
        _ => Err(e),
    }
}

fn open_direct(
    path: &Path,
    kind: DeviceKind,
    allow_buffered: bool,
) -> Result<(File, bool), DeviceError> {
    let open = |direct: bool| {
        // O_EXCL on a block device refuses one that is mounted or claimed by another driver.
        let exclusive = if kind == DeviceKind::Block { libc::O_EXCL } else { 0 };
        let direct = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(true).custom_flags(exclusive | direct).open(path)
    };
    let refused = match open(true) {
        Ok(file) => match kind == DeviceKind::File && pretends(&file) {
            false => return Ok((file, true)),
            true => "it accepts the flag and keeps the data in memory all the same".to_owned(),
        },
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => e.to_string(),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
            return Err(DeviceError::InUse(path.into()));
        }
        Err(e) => return Err(system(path, "can not open")(e)),
    };
    let file = open(false).map_err(system(path, "can not open"))?;
    match allow_buffered {
        true => Ok((file, false)),
        false => Err(no_direct(path, &file, refused)),
    }
}

fn no_direct(path: &Path, file: &File, reason: impl Into<String>) -> DeviceError {
    DeviceError::NoDirect {
        path: path.into(),
        file_system: file_system(file),
        reason: reason.into(),
    }
}

/// Whether the file lives in memory, where O_DIRECT is accepted (since Linux 6.6) and means nothing.
/// Not to be asked of a block device: its node lives in a tmpfs, its data does not.
fn pretends(file: &File) -> bool {
    const RAMFS_MAGIC: u32 = 0x8584_58f6;
    matches!(file_system_type(file), Some(magic)
        if magic == libc::TMPFS_MAGIC as u32 || magic == RAMFS_MAGIC)
}

fn file_system_type(file: &File) -> Option<u32> {
    // SAFETY: an all-zero statfs is a valid value of this plain structure.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `stat` is a valid place for the result.
    let ok = unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) } == 0;
    // The magic numbers are 32 bits wide, whatever the width of the field.
    ok.then_some(stat.f_type as u32)
}

fn file_system(file: &File) -> String {
    if file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return "none: it is a block device".to_owned();
    }
    const NAMES: &[(u32, &str)] = &[
        (0x0102_1994, "tmpfs"),
        (0x8584_58f6, "ramfs"),
        (0xef53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x794c_7630, "overlayfs"),
        (0x2fc1_2fc1, "zfs"),
        (0xf2f5_2010, "f2fs"),
        (0x6969, "nfs"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "fuse"),
        (0xca45_1a4e, "bcachefs"),
        (0x6462_6720, "debugfs"),
    ];
    match file_system_type(file) {
        None => "unknown".to_owned(),
        Some(magic) => match NAMES.iter().find(|(m, _)| *m == magic) {
            Some((_, name)) => (*name).to_owned(),
            None => format!("type {magic:#x}"),
        },
    }
}

/// Takes the lock that keeps every other opener out, this process included.
fn lock(file: &File, path: &Path) -> Result<(), DeviceError> {
    // SAFETY: the descriptor is open for the call; no memory is involved.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        Some(libc::EWOULDBLOCK) => Err(DeviceError::InUse(path.into())),
        _ => Err(system(path, "can not lock")(e)),
    }
}

fn size_of(mut file: &File, path: &Path) -> Result<u64, DeviceError> {
    let bytes = file.seek(SeekFrom::End(0)).map_err(system(path, "can not find the size of"))?;
    let size = bytes - bytes % BLOCK_BYTES as u64;
    if size == 0 {
        return Err(unfit(path, format!("it has {bytes} bytes, less than a block")));
    }
    Ok(size)
}

/// Alignment of memory and of offsets, as the file system states it.
fn alignment(file: &File, path: &Path) -> Result<(usize, usize), DeviceError> {
    // SAFETY: an all-zero statx is a valid value of this plain structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the name is an empty terminated string (AT_EMPTY_PATH: the
    // descriptor itself), and `stat` is a valid place for the result.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &mut stat,
        )
    };
    if result != 0 || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        // Not stated (before Linux 6.1, or by this file system): blocks on aligned memory are what
        // every device takes, and the read that follows proves it.
        return Ok((ALIGN, BLOCK_BYTES));
    }
    let (memory, offset) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
    if memory == 0 || offset == 0 {
        return Err(no_direct(path, file, "it says that this file can not be read directly"));
    }
    if !ALIGN.is_multiple_of(memory) || !BLOCK_BYTES.is_multiple_of(offset) {
        let reason =
            format!("direct I/O on it must be aligned to {offset} bytes (memory {memory})");
        return Err(unfit(path, reason));
    }
    Ok((memory, offset))
}

/// Proves with a real transfer that O_DIRECT works.
fn read_directly(file: &File, path: &Path) -> Result<(), DeviceError> {
    let mut buf = IoBuf::zeroed(BLOCK_BYTES);
    loop {
        match file.read_at(&mut buf, 0) {
            Ok(n) if n == BLOCK_BYTES => return Ok(()),
            Ok(n) => return Err(unfit(path, format!("reading its first block gave {n} bytes"))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                return Err(no_direct(path, file, format!("an aligned read failed: {e}")));
            }
            // A sector that can not be read is for the log to repair, not a reason to stay shut.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(()),
            Err(e) => return Err(system(path, "can not read")(e)),
        }
    }
}

/// Whether the block device (of a file: the one under its file system) has a volatile cache; nothing
/// if that can not be found out.
fn device_cache(file: &File) -> Option<bool> {
    let metadata = file.metadata().ok()?;
    let number =
        if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let (major, minor) = (libc::major(number), libc::minor(number));
    let base = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition's queue is its disk's.
    let queue = ["queue/write_cache", "../queue/write_cache"];
    let text = queue.iter().find_map(|q| std::fs::read_to_string(base.join(q)).ok())?;
    match text.trim() {
        "write back" => Some(true),
        "write through" => Some(false),
        _ => None,
    }
}

fn describe(
    path: &Path,
    kind: DeviceKind,
    direct: bool,
    size: u64,
    cache: Option<bool>,
    file: &File,
) -> String {
    let kind = match kind {
        DeviceKind::File => format!("file on {}", file_system(file)),
        _ => "block device".to_owned(),
    };
    let cache = match cache {
        Some(true) => "the device has a volatile cache",
        Some(false) => "the device has no volatile cache",
        None => "the device may have a volatile cache",
    };
    let direct = if direct { "O_DIRECT" } else { "through the page cache" };
    format!("{}: {kind}, {} MiB, {direct}; {cache}", path.display(), size >> 20)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// Extents asked for in one call.
const FIEMAP_BATCH: usize = 128;

#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_BATCH],
}

/// The parts of a file within `size` that hold no data, or nothing if the file system can not tell.
///
/// Asked under the device's lock with the file system's own dirty data written out first, so no data
/// is on its way into what is called unwritten here.
fn unwritten(file: &File, size: u64) -> Option<Ranges> {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const FLAG_SYNC: u32 = 1;
    const EXTENT_LAST: u32 = 1;
    const EXTENT_UNWRITTEN: u32 = 0x800;
    let mut ranges = Ranges::default();
    // Everything before this is known.
    let mut at = 0;
    let mut extents = 0;
    while at < size {
        // SAFETY: all-zero is a valid value of this plain structure of integers.
        let mut map: Box<Fiemap> = Box::new(unsafe { std::mem::zeroed() });
        (map.start, map.length, map.flags) = (at, size - at, FLAG_SYNC);
        map.extent_count = FIEMAP_BATCH as u32;
        // SAFETY: the structure has the layout of the kernel's ABI, with room for as many extents
        // as it says.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *map) } != 0 {
            return None;
        }
        let found = map.extents.get(..map.mapped_extents as usize)?;
        extents += found.len();
        if extents > EXTENTS_MAX {
            return None;
        }
        let (before, mut last) = (at, found.is_empty());
        for extent in found {
            let end = extent.logical.checked_add(extent.length)?.min(size);
            if extent.logical > at {
                ranges.add(at, extent.logical.min(size));
                at = extent.logical;
            }
            if extent.flags & EXTENT_UNWRITTEN != 0 && at < end {
                ranges.add(at, end);
            }
            at = at.max(end);
            last |= extent.flags & EXTENT_LAST != 0;
        }
        if last && at < size {
            ranges.add(at, size);
            at = size;
        }
        if at == before {
            return None;
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_written_is_known() {
        // A unit test has no directory of its own from cargo; the file has no name for long.
        let path = std::env::temp_dir().join(format!("basalt-extents-{}", std::process::id()));
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let Ok(file) = made else {
            eprintln!("skipped: {} can not be written", path.display());
            return;
        };
        std::fs::remove_file(&path).expect("it was just created");
        let (mib, size) = (1 << 20, 8 << 20);
        allocate(&file, size).expect("there is room for 8 MiB");
        let mut expected = Ranges::default();
        expected.add(0, size);
        let Some(found) = unwritten(&file, size) else {
            eprintln!("skipped: the file system maps no extents");
            return;
        };
        assert_eq!(found, expected);
        for at in [0, 3 * mib, size - 4096] {
            file.write_all_at(&[1; 4096], at).expect("there is room");
            expected.remove(at, at + 4096);
        }
        // The kernel may turn a little more than was written into written space, never less.
        let found = unwritten(&file, size).expect("as before");
        assert!(found.bytes() <= expected.bytes() && found.bytes() > size / 2);
        for at in [0, 3 * mib, size - 4096] {
            assert_eq!(found.first_within(at, at + 4096), None, "data at {at} counts as unwritten");
        }
        // A hole counts as unwritten too.
        file.set_len(size + 4 * mib).expect("a sparse end");
        let found = unwritten(&file, size + 4 * mib).expect("as before");
        assert_eq!(found.first_within(size, size + 4 * mib), Some((size, size + 4 * mib)));
    }
}
