//! The ring: counting, limits, timeouts, registered files, restrictions, shutdown.

use basalt_device::{Completion, Ring};
use io_uring::{opcode, squeue, types};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn push(ring: &mut Ring, entry: squeue::Entry, user_data: u64) {
    // SAFETY: the entries of these tests point to no memory, or to memory that its test keeps until
    // the operation has ended.
    unsafe { ring.push(entry.user_data(user_data)) };
}

fn reap(ring: &mut Ring, want: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.len() < want {
        ring.submit_and_wait(1, Some(Duration::from_secs(30))).unwrap();
        ring.reap(&mut out);
    }
    out
}

#[test]
fn what_exceeds_the_completion_ring_waits_in_order() {
    let mut ring = Ring::new(8).unwrap();
    let limit = ring.room();
    assert_eq!(limit, 64);
    let count = 10 * limit as u64;
    for n in 0..count {
        push(&mut ring, opcode::Nop::new().build(), n);
    }
    assert_eq!((ring.in_flight(), ring.room()), (count as usize, 0));
    let seen: Vec<u64> = reap(&mut ring, count as usize).iter().map(|c| c.user_data).collect();
    assert!(seen.iter().copied().eq(0..count), "{seen:?}");
    assert_eq!((ring.in_flight(), ring.room()), (0, limit));
}

#[test]
fn waiting_ends_at_the_timeout_and_with_nothing_to_wait_for() {
    let mut ring = Ring::new(8).unwrap();
    let mut out = Vec::new();
    ring.submit_and_wait(0, None).unwrap();
    ring.submit_and_wait(1, Some(Duration::from_millis(2))).unwrap();
    ring.submit_and_wait(1, Some(Duration::ZERO)).unwrap();
    ring.reap(&mut out);
    assert!(out.is_empty() && ring.in_flight() == 0);
}

#[test]
fn a_multishot_operation_is_in_flight_until_its_last_completion() {
    let (mut near, far) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(8).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(far.as_raw_fd()), libc::POLLIN as u32).multi(true);
    push(&mut ring, poll.build(), 7);
    for _ in 0..3 {
        near.write_all(b"x").unwrap();
        let seen = reap(&mut ring, 1);
        assert!(seen.iter().all(|c| c.user_data == 7 && c.more()), "{seen:?}");
        assert_eq!(ring.in_flight(), 1);
    }
    push(&mut ring, opcode::PollRemove::new(7).build(), 8);
    let mut seen = reap(&mut ring, 2);
    seen.retain(|c| !c.more());
    assert_eq!(seen.len(), 2);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn shutdown_cancels_what_would_never_end() {
    let (_near, far) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(8).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(far.as_raw_fd()), libc::POLLIN as u32);
    push(&mut ring, poll.build(), 1);
    ring.submit_and_wait(0, None).unwrap();
    let mut out = Vec::new();
    ring.shutdown(Duration::from_secs(30), &mut out).unwrap();
    let ended: Vec<_> = out.iter().map(|c| (c.user_data, c.result)).collect();
    assert_eq!(ended, [(1, -libc::ECANCELED)]);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_ring_that_is_dropped_takes_its_operations_along() {
    let (_near, far) = UnixStream::pair().unwrap();
    let mut ring = Ring::new(8).unwrap();
    let poll = opcode::PollAdd::new(types::Fd(far.as_raw_fd()), libc::POLLIN as u32);
    push(&mut ring, poll.build(), 1);
    drop(ring);
}

#[test]
fn registered_files_serve_sockets_and_their_slots_are_used_again() {
    let mut ring = Ring::new(8).unwrap();
    let slots = ring.setup().file_slots;
    for _ in 0..slots + 10 {
        let (mut near, far) = UnixStream::pair().unwrap();
        let slot = ring.register_file(&far).expect("a slot is free");
        near.write_all(b"hello").unwrap();
        let mut buf = [0u8; 16];
        let recv = opcode::Recv::new(types::Fixed(slot.0), buf.as_mut_ptr(), buf.len() as u32);
        push(&mut ring, recv.build(), 3);
        let seen = reap(&mut ring, 1);
        assert_eq!((seen[0].user_data, seen[0].result), (3, 5));
        assert_eq!(&buf[..5], b"hello");
        ring.unregister_file(slot);
    }
}

#[test]
fn an_operation_that_basalt_does_not_use_is_refused() {
    let mut ring = Ring::new(8).unwrap();
    if !ring.setup().restricted {
        eprintln!("skipped: this kernel restricts no rings together with deferred work");
        return;
    }
    let name = c"/dev/null";
    push(&mut ring, opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr()).build(), 1);
    assert_eq!(reap(&mut ring, 1)[0].result, -libc::EACCES);
    let quiet = opcode::Nop::new().build().flags(squeue::Flags::SKIP_SUCCESS);
    push(&mut ring, quiet, 2);
    assert_eq!(reap(&mut ring, 1)[0].result, -libc::EACCES);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn this_kernel_gives_the_setup_that_the_figures_were_measured_with() {
    let setup = Ring::new(8).unwrap().setup();
    eprintln!("{setup:?}");
    assert!(setup.file_slots > 0);
}
