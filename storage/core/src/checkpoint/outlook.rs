//! Where replay behind the next checkpoint would begin, and what that checkpoint would give back.

use crate::consensus::{Group, Retention};
use crate::log::{Log, Segments};
use basalt_wire::disk::checkpoint::ChainPlace;
use basalt_wire::ids::SegmentId;

/// The order of places in the log.
pub fn position(place: &ChainPlace) -> (u64, u32) {
    (place.segment_seq, place.block)
}

/// The last place, no later than `place`, where replay may begin: no entry before it waits to be applied.
/// That is `place` itself if nothing waits. Else the start of the segment where the first entry that
/// waits stands, or where replay behind the `last` checkpoint begins. Nothing if neither is known.
pub fn replay_from(
    groups: &[Group],
    log: &Log,
    last: Option<ChainPlace>,
    place: ChainPlace,
) -> Option<ChainPlace> {
    let segments = log.segments()?;
    let waiting = groups.iter().filter(|group| !group.will_restore());
    let first = waiting.filter_map(|group| unapplied(group, segments)).min();
    let Some((seq, block, segment)) =
        first.filter(|(seq, block, _)| (*seq, *block) < position(&place))
    else {
        return Some(place);
    };
    let known = [segments.start_of(segment.0), last].into_iter().flatten();
    known.filter(|known| position(known) <= (seq, block)).max_by_key(position)
}

/// Whether an entry of the group that stands before a place is not applied.
pub fn waits_before(group: &Group, place: &ChainPlace, log: &Log) -> bool {
    let at = log.segments().and_then(|segments| unapplied(group, segments));
    at.is_some_and(|(seq, block, _)| (seq, block) < position(place))
}

fn unapplied(group: &Group, segments: &Segments) -> Option<(u64, u32, SegmentId)> {
    let at = group.unapplied_at()?;
    Some((segments.use_of(at.segment.0)?, at.block, at.segment))
}

/// The sequence of the first use of a segment that some group's Raft log needs: those before it hold
/// only what the index needs.
pub fn pinned_from(groups: &[Group], log: &Log) -> u64 {
    pinned(groups, log, Group::pins)
}

/// The same once a checkpoint of this instant, were it taken, is durable.
pub fn would_be_pinned_from(groups: &[Group], log: &Log, retention: &Retention<'_>) -> u64 {
    pinned(groups, log, |group| group.would_pin(retention))
}

fn pinned(groups: &[Group], log: &Log, pin: impl Fn(&Group) -> Option<SegmentId>) -> u64 {
    let Some(segments) = log.segments() else { return 0 };
    let pins = groups.iter().filter_map(pin);
    pins.filter_map(|segment| segments.use_of(segment.0)).min().unwrap_or(u64::MAX)
}
