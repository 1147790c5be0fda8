//! One io_uring of one reactor, for its device and its sockets.
//!
//! Invariants:
//!
//! * R1: no more operations are in flight than the completion ring can hold; what is pushed beyond
//!   that waits here, in order, so that no completion ever overflows.
//! * R2: an operation counts as in flight from its push to its last completion, and a ring is closed
//!   only when the count is zero: the kernel then holds no pointer into this process.
//! * R3: the ring is opened disabled, told which operations it will ever see, and then enabled. A
//!   stray submission entry fails with EACCES instead of doing something new.
//!
//! A ring belongs to the thread that opened it (the kernel enforces it), so it is not `Send`.

use crate::error::DeviceError;
use basalt_wire::buffer::Arena;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Completion entries for each submission entry.
const CQ_FACTOR: u32 = 8;
/// Most entries that a ring may have; the kernel's own bound is 32768.
pub const ENTRIES_MAX: u32 = 4096;
/// Slots in the table of registered files, where the limit of open files allows it.
const FILES_MAX: u32 = 1024;
/// Slots in the table of registered buffers.
const BUFFERS_MAX: u32 = 16;
/// How long dropping a ring waits for the kernel to let go of its last operations.
const DROP_WAIT: Duration = Duration::from_secs(30);
/// `user_data` of the ring's own operations; their completions are never shown.
const OWN: u64 = u64::MAX;

/// One completion, as the kernel gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As in the submission. The top byte says whose it is: 0 is the device.
    pub user_data: u64,
    /// Bytes, a descriptor, or a negated errno.
    pub result: i32,
    /// CQE flags (more to come, buffer selected, ...).
    pub flags: u32,
}

impl Completion {
    /// The owner: the top byte of `user_data`.
    pub fn owner(self) -> u8 {
        (self.user_data >> 56) as u8
    }

    /// Whether the same operation will complete again (multishot).
    pub fn more(self) -> bool {
        io_uring::cqueue::more(self.flags)
    }
}

/// A file in the ring's table, to be used as `io_uring::types::Fixed(slot.0)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileSlot(pub u32);

/// How a ring was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSetup {
    /// Completion work runs only when this thread asks for it (SINGLE_ISSUER, DEFER_TASKRUN).
    pub deferred: bool,
    /// Operations are restricted to those that Basalt uses.
    pub restricted: bool,
    /// Slots in the table of registered files.
    pub file_slots: u32,
}

/// One io_uring.
pub struct Ring {
    uring: IoUring,
    setup: RingSetup,
    /// Pushed into the submission ring and not completed for the last time.
    in_kernel: usize,
    limit: usize,
    /// System calls that submitted or waited.
    enters: u64,
    /// Pushed beyond the limit.
    backlog: VecDeque<squeue::Entry>,
    free_files: Vec<u32>,
    free_buffers: Vec<u16>,
    /// Registered memory; after `uring`, so that it is unmapped last.
    arenas: Vec<(u16, Arena)>,
    /// The ring of one thread.
    _not_send: PhantomData<*const ()>,
}

/// The operations that a ring will accept, with their names for the error message.
const OPS: &[(u8, &str)] = &[
    (opcode::Nop::CODE, "NOP"),
    (opcode::Readv::CODE, "READV"),
    (opcode::Writev::CODE, "WRITEV"),
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::ReadFixed::CODE, "READ_FIXED"),
    (opcode::WriteFixed::CODE, "WRITE_FIXED"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::Send::CODE, "SEND"),
    (opcode::Recv::CODE, "RECV"),
    (opcode::SendMsg::CODE, "SENDMSG"),
    (opcode::RecvMsg::CODE, "RECVMSG"),
    (opcode::Accept::CODE, "ACCEPT"),
    (opcode::Connect::CODE, "CONNECT"),
    (opcode::Socket::CODE, "SOCKET"),
    (opcode::Shutdown::CODE, "SHUTDOWN"),
    (opcode::Close::CODE, "CLOSE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
    (opcode::PollRemove::CODE, "POLL_REMOVE"),
    (opcode::Timeout::CODE, "TIMEOUT"),
    (opcode::TimeoutRemove::CODE, "TIMEOUT_REMOVE"),
    (opcode::LinkTimeout::CODE, "LINK_TIMEOUT"),
    (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
];

/// Accepted where the kernel has them; nothing depends on them.
const OPS_OPTIONAL: &[u8] = &[
    opcode::MsgRingData::CODE,
    opcode::SendZc::CODE,
    opcode::SendMsgZc::CODE,
    opcode::ReadvFixed::CODE,
    opcode::WritevFixed::CODE,
    opcode::ProvideBuffers::CODE,
    opcode::RemoveBuffers::CODE,
];

/// `io_uring_register` operations used after the ring is enabled (numbers of the kernel's ABI):
/// updates of the file and buffer tables, and provided-buffer rings.
const REGISTER_OPS: &[u8] = &[6, 14, 16, 22, 23, 24];

impl Ring {
    /// Opens a ring with room for `entries` submissions at a time and eight times as many in
    /// flight. Fails with the names of what the kernel lacks.
    pub fn new(entries: u32) -> Result<Ring, DeviceError> {
        let entries = entries.clamp(8, ENTRIES_MAX).next_power_of_two();
        let (uring, deferred) = build(entries)?;
        let probe = probe(&uring)?;
        let restricted = restrict(&uring, &probe);
        let file_slots = register_tables(&uring)?;
        let buffers = uring.submitter().register_buffers_sparse(BUFFERS_MAX).is_ok();
        uring
            .submitter()
            .register_enable_rings()
            .map_err(|source| DeviceError::Ring { action: "enable the ring", source })?;
        let limit = uring.params().cq_entries() as usize;
        assert!(limit >= entries as usize, "{limit} completions for {entries} submissions");
        Ok(Ring {
            uring,
            setup: RingSetup { deferred, restricted, file_slots },
            in_kernel: 0,
            limit,
            enters: 0,
            backlog: VecDeque::new(),
            free_files: (0..file_slots).rev().collect(),
            free_buffers: if buffers { (0..BUFFERS_MAX as u16).rev().collect() } else { vec![] },
            arenas: Vec::new(),
            _not_send: PhantomData,
        })
    }

    /// How the ring was set up.
    pub fn setup(&self) -> RingSetup {
        self.setup
    }

    /// Queues an operation; it reaches the kernel with the next [`Ring::submit_and_wait`], or
    /// earlier when the submission ring is full. Beyond the ring's limit it waits here until others
    /// complete. The flag CQE_SKIP_SUCCESS may not be set: every operation must complete visibly.
    ///
    /// # Safety
    ///
    /// All memory that the entry points to must stay valid, and be left alone, until the
    /// operation's last completion was reaped.
    pub unsafe fn push(&mut self, entry: squeue::Entry) {
        if self.in_kernel >= self.limit || !self.backlog.is_empty() {
            self.backlog.push_back(entry);
        } else {
            self.push_to_kernel(entry);
        }
    }

    /// System calls that submitted or waited, since the ring was opened.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// How many more operations would be started at once.
    pub fn room(&self) -> usize {
        self.limit - self.in_kernel.min(self.limit)
    }

    /// Operations pushed and not yet completed for the last time.
    pub fn in_flight(&self) -> usize {
        self.in_kernel + self.backlog.len()
    }

    /// Submits everything pushed and waits for `want` completions (at most until `timeout`, for
    /// ever without one). With `want` 0 it only submits and lets finished work complete. Returns
    /// early, without an error, on a signal or when completions must be reaped first.
    pub fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        let (queued, pending) = {
            let queue = self.uring.submission();
            (queue.len(), queue.taskrun() || queue.cq_overflow())
        };
        let ready = self.uring.completion().len();
        let want = if ready >= want as usize { 0 } else { want as usize };
        if want == 0 && queued == 0 && !pending {
            return Ok(());
        }
        self.enters += 1;
        let submitter = self.uring.submitter();
        let result = match timeout.filter(|_| want > 0) {
            Some(timeout) => {
                let time = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&time))
            }
            None => submitter.submit_and_wait(want),
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error() {
                // Timed out, interrupted, or completions must be reaped before more is submitted.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// Appends all completions that have arrived to `out`.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut ended = 0;
        for entry in self.uring.completion() {
            let completion = Completion {
                user_data: entry.user_data(),
                result: entry.result(),
                flags: entry.flags(),
            };
            ended += usize::from(!completion.more());
            if completion.user_data != OWN {
                out.push(completion);
            }
        }
        assert!(ended <= self.in_kernel, "{ended} operations ended of {}", self.in_kernel);
        self.in_kernel -= ended;
        while self.in_kernel < self.limit
            && let Some(entry) = self.backlog.pop_front()
        {
            self.push_to_kernel(entry);
        }
    }

    /// Puts a file into the ring's table, which saves the kernel two atomic operations an
    /// operation. Nothing when the table is full or the kernel has none: use the descriptor then.
    pub fn register_file(&mut self, fd: &impl AsFd) -> Option<FileSlot> {
        let slot = self.free_files.pop()?;
        let raw = fd.as_fd().as_raw_fd();
        match self.uring.submitter().register_files_update(slot, &[raw]) {
            Ok(_) => Some(FileSlot(slot)),
            Err(_) => {
                self.free_files.push(slot);
                None
            }
        }
    }

    /// Takes a file out of the table. Operations on it that are in flight go on.
    pub fn unregister_file(&mut self, slot: FileSlot) {
        assert!(slot.0 < self.setup.file_slots, "no such file slot: {slot:?}");
        assert!(!self.free_files.contains(&slot.0), "{slot:?} is not registered");
        const NONE: RawFd = -1;
        // Without room to fail: the slot exists and clearing one allocates nothing. A slot that
        // could not be cleared is not used again.
        if self.uring.submitter().register_files_update(slot.0, &[NONE]).is_ok() {
            self.free_files.push(slot.0);
        }
    }

    /// Registers an arena, so that the kernel need not find and pin the pages of each transfer from
    /// it. False when the kernel refuses, as where the limit of locked memory (RLIMIT_MEMLOCK) is
    /// lower; everything works without it too. All of the arena becomes resident.
    ///
    /// Measured on a virtio disk: that an arena stands on huge pages saves 15 % of a read's CPU time
    /// at depth 128 and 25 to 30 % of an append's of 128 KiB and more; registering it saves another
    /// 0 to 5 %, on ordinary pages 8 to 12 %.
    pub fn use_arena(&mut self, arena: &Arena) -> bool {
        let Some(slot) = self.free_buffers.pop() else { return false };
        let memory = libc::iovec { iov_base: arena.start().cast(), iov_len: arena.bytes() };
        // SAFETY: the arena is kept with the ring, so it stays mapped for as long as the kernel has
        // it registered.
        let result = unsafe {
            self.uring.submitter().register_buffers_update(u32::from(slot), &[memory], None)
        };
        match result {
            Ok(_) => self.arenas.push((slot, arena.clone())),
            Err(_) => self.free_buffers.push(slot),
        }
        result.is_ok()
    }

    /// The table entry of a registered arena that holds all of this memory, for fixed transfers.
    pub fn registered(&self, memory: *const u8, len: usize) -> Option<u16> {
        self.arenas.iter().find_map(|(slot, arena)| {
            let offset = memory.addr().checked_sub(arena.start().addr())?;
            (offset.checked_add(len)? <= arena.bytes()).then_some(*slot)
        })
    }

    /// Asks the kernel to cancel everything in flight. Each operation still completes, cancelled or
    /// not: go on waiting and reaping until [`Ring::in_flight`] is zero.
    pub fn cancel_all(&mut self) {
        let any = io_uring::types::CancelBuilder::any();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(opcode::AsyncCancel2::new(any).build().user_data(OWN)) };
    }

    /// Cancels what is in flight, waits for its end and closes the ring; completions go to `out`,
    /// for their owners to let go of their memory. An error leaves operations in flight.
    pub fn shutdown(&mut self, timeout: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        self.reap(out);
        if self.in_flight() > 0 {
            self.cancel_all();
        }
        while self.in_flight() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} operations are still in flight", self.in_flight()),
                ));
            }
            self.submit_and_wait(1, Some(left.min(Duration::from_millis(100))))?;
            self.reap(out);
        }
        assert_eq!(self.in_flight(), 0, "the kernel still works for a ring that is shut down");
        Ok(())
    }

    fn push_to_kernel(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: whoever pushed the entry promised that its memory outlives the operation.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                self.in_kernel += 1;
                return;
            }
            // The submission ring is full. EBUSY and EAGAIN pass: the kernel takes entries again
            // as soon as it has memory for them.
            self.enters += 1;
            if let Err(e) = self.uring.submit() {
                let code = e.raw_os_error();
                let passes = matches!(code, Some(libc::EBUSY | libc::EAGAIN | libc::EINTR));
                assert!(passes, "submitting to an open ring failed: {e}");
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight() == 0 {
            return;
        }
        let mut ended = Vec::new();
        if let Err(e) = self.shutdown(DROP_WAIT, &mut ended) {
            // Freeing memory under the kernel's hands would corrupt whatever is put there next.
            eprintln!("closing an io_uring: {e}; the process can not go on");
            std::process::abort();
        }
    }
}

fn build(entries: u32) -> Result<(IoUring, bool), DeviceError> {
    let common = |builder: &mut io_uring::Builder| {
        builder.setup_r_disabled().setup_clamp().setup_submit_all();
        builder.setup_cqsize(entries * CQ_FACTOR).setup_coop_taskrun().setup_taskrun_flag();
    };
    let mut builder = IoUring::builder();
    common(&mut builder);
    builder.setup_single_issuer().setup_defer_taskrun().dontfork();
    let (uring, deferred) = match builder.build(entries) {
        Ok(uring) => (uring, true),
        // An older kernel: interrupts into this thread instead of deferred work.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let mut builder = IoUring::builder();
            common(&mut builder);
            builder.dontfork();
            (builder.build(entries).map_err(DeviceError::NoRing)?, false)
        }
        Err(e) => return Err(DeviceError::NoRing(e)),
    };
    let params = uring.params();
    let features = [
        (params.is_feature_ext_arg(), "EXT_ARG"),
        (params.is_feature_nodrop(), "NODROP"),
        (params.is_feature_submit_stable(), "SUBMIT_STABLE"),
        (params.is_feature_fast_poll(), "FAST_POLL"),
        (params.is_feature_native_workers(), "NATIVE_WORKERS"),
    ];
    let lacks: Vec<_> = features.iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
    if lacks.is_empty() { Ok((uring, deferred)) } else { Err(DeviceError::RingLacks(lacks)) }
}

fn probe(uring: &IoUring) -> Result<Probe, DeviceError> {
    let mut probe = Probe::new();
    uring
        .submitter()
        .register_probe(&mut probe)
        .map_err(|source| DeviceError::Ring { action: "probe the ring's operations", source })?;
    let lacks: Vec<_> =
        OPS.iter().filter(|(code, _)| !probe.is_supported(*code)).map(|(_, name)| *name).collect();
    if lacks.is_empty() { Ok(probe) } else { Err(DeviceError::RingLacks(lacks)) }
}

/// Whether the kernel took the restrictions; it works without them too.
fn restrict(uring: &IoUring, probe: &Probe) -> bool {
    const CQE_SKIP_SUCCESS: u8 = 1 << 6;
    let needed = OPS.iter().map(|(code, _)| *code);
    let optional = OPS_OPTIONAL.iter().copied().filter(|code| probe.is_supported(*code));
    let mut list: Vec<Restriction> = needed.chain(optional).map(Restriction::sqe_op).collect();
    list.extend(REGISTER_OPS.iter().map(|op| Restriction::register_op(*op)));
    list.push(Restriction::sqe_flags_allowed(!CQE_SKIP_SUCCESS & 0x7f));
    uring.submitter().register_restrictions(&mut list).is_ok()
}

/// Makes the table of files; the kernel bounds it by the limit of open files.
fn register_tables(uring: &IoUring) -> Result<u32, DeviceError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the result.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    let open_files = if known { u32::try_from(limit.rlim_cur).unwrap_or(u32::MAX) } else { 256 };
    let slots = FILES_MAX.min(open_files);
    uring
        .submitter()
        .register_files_sparse(slots)
        .map_err(|source| DeviceError::Ring { action: "register a table of files", source })?;
    Ok(slots)
}
