//! Traces: what a reply says of its request's time, and what leader and follower say of an entry's.

use super::STAGES_TOLD_MAX;
use super::body::{Reader, Result, bounded};
use crate::ids::NodeId;
use crate::trace::{Stage, Trace, Watch, Watched};
use bytes::{BufMut, BytesMut};

/// Bytes of a stage: its number, nanoseconds.
const STAGE_BYTES: u64 = 1 + 8;

pub(super) fn put(out: &mut BytesMut, trace: &Trace) {
    assert!(trace.stages.len() <= STAGES_TOLD_MAX, "each stage stands once in a trace");
    out.put_u32_le(trace.follower.map_or(0, |node| node.0));
    out.put_u8(trace.stages.len() as u8);
    for (stage, nanos) in &trace.stages {
        out.put_u8(*stage as u8);
        out.put_u64_le(*nanos);
    }
}

pub(super) fn parse(r: &mut Reader<'_>) -> Result<Trace> {
    let follower = r.u32("follower")?;
    let count = r.u8("number of stages")?;
    bounded("number of stages", u64::from(count), 0, STAGES_TOLD_MAX as u64)?;
    r.need("stages", u64::from(count) * STAGE_BYTES)?;
    let mut stages = Vec::with_capacity(usize::from(count));
    let mut least = Stage::Admission as u8;
    for _ in 0..count {
        let number = r.u8("stage")?;
        bounded("stage", u64::from(number), u64::from(least), Stage::Other as u64)?;
        let stage = Stage::of(number).expect("its number is within bounds");
        least = number + 1;
        stages.push((stage, r.u64("nanoseconds of a stage")?));
    }
    Ok(Trace { stages, follower: (follower != 0).then_some(NodeId(follower)) })
}

pub(super) fn put_watch(out: &mut BytesMut, watch: &Watch) {
    out.put_u32_le(watch.group.0);
    out.put_u64_le(watch.term.0);
    out.put_u64_le(watch.index.0);
}

pub(super) fn watch(r: &mut Reader<'_>) -> Result<Watch> {
    Ok(Watch { group: r.group()?, term: r.term()?, index: r.index("index")? })
}

pub(super) fn put_watched(out: &mut BytesMut, watched: &Watched) {
    put_watch(out, &watched.watch);
    out.put_u64_le(watched.queue_nanos);
    out.put_u64_le(watched.write_nanos);
}

pub(super) fn watched(r: &mut Reader<'_>) -> Result<Watched> {
    Ok(Watched {
        watch: watch(r)?,
        queue_nanos: r.u64("nanoseconds until the write")?,
        write_nanos: r.u64("nanoseconds of the write")?,
    })
}
