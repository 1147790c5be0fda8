//! What lies behind a place where the expected batch is missing.
//!
//! The rest of the segment is searched block by block. If it does not prove that the missing batch had
//! been durable, the heads of all segments are read that are not known to be in use, for the log may go
//! on in any of them, and whole segments whose head is damaged or holds a batch of the log, and the one that
//! is next in line. Valid headers of earlier uses are stale: their sequences are lower. Batches of copies are no
//! part of the log.

use super::place::{Geometry, Tail};
use super::segments::Segments;
use super::window::{View, Window};
use basalt_wire::block::BLOCK_BYTES;
use basalt_wire::disk::DiskFormatError;
use basalt_wire::disk::batch::{BatchHeader, FLAG_PREDECESSOR_LOST, bytes_needed, claimed_place};
use basalt_wire::disk::blocks_of;
use basalt_wire::io::DiskOp;
use std::collections::{BTreeMap, VecDeque};

/// Segments that are searched as a whole because their heads are damaged, next ones first. Only if the
/// heads of more segments were lost together would a later batch stay unseen. It bounds the search of
/// a device that held other data before it was formatted.
const DAMAGED_HEADS_MAX: usize = 64;
/// Segments with heads that are nothing of the log which are searched because they are next in line: the
/// first one, and behind such that begin with copies, which the log may have left out, one more.
const IN_LINE_MAX: usize = 3;
/// Heads that are read at a time.
const HEADS_IN_FLIGHT: usize = 32;

/// A header at a place, as far as it is known.
pub enum HeaderView {
    /// A valid header that says that it stands here.
    Good(BatchHeader),
    /// No valid header.
    Bad(DiskFormatError),
    /// The device does not give it.
    Unreadable,
    /// A read was started.
    Pending,
}

/// Reads and validates the header at a place.
pub fn read_header(
    window: &mut Window,
    geometry: &Geometry,
    segment: u32,
    block: u32,
    out: &mut Vec<DiskOp>,
) -> HeaderView {
    let room = geometry.segment_blocks - block;
    let needed = match window.view(geometry, (segment, block, 1), out) {
        View::Pending => return HeaderView::Pending,
        View::Unreadable => return HeaderView::Unreadable,
        View::Have(first) => match bytes_needed(first) {
            // Old block data may look like a long header: it is not read for nothing.
            Ok(_) if claimed_place(first) != Some((geometry.device, segment, block)) => {
                return HeaderView::Bad(DiskFormatError::Foreign);
            }
            Ok(bytes) => bytes,
            Err(error) => return HeaderView::Bad(error),
        },
    };
    let blocks = blocks_of(needed);
    if blocks > room {
        return HeaderView::Bad(DiskFormatError::Length(needed as u32));
    }
    let bytes = match window.view(geometry, (segment, block, blocks), out) {
        View::Pending => return HeaderView::Pending,
        View::Unreadable => return HeaderView::Unreadable,
        View::Have(bytes) => bytes,
    };
    debug_assert_eq!(bytes.len(), blocks as usize * BLOCK_BYTES);
    match BatchHeader::decode(bytes) {
        Err(error) => HeaderView::Bad(error),
        Ok(header) if !stands_at(&header, geometry, segment, block) => {
            HeaderView::Bad(DiskFormatError::Foreign)
        }
        Ok(header) => HeaderView::Good(header),
    }
}

/// Whether a valid header is of this device, says that it stands here, and fits here.
pub fn stands_at(header: &BatchHeader, geometry: &Geometry, segment: u32, block: u32) -> bool {
    let f = &header.fields;
    f.device == geometry.device
        && f.segment == segment
        && f.block == block
        && header.blocks() <= geometry.segment_blocks - block
        && (!header.is_closing() || f.next_segment < geometry.segments)
}

/// A valid batch behind the missing one.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Segment and block.
    pub place: (u32, u32),
    /// The use of the segment.
    pub segment_seq: u64,
    /// Its number.
    pub seq: u64,
    boot: u64,
    mark: u64,
}

/// A search under way.
pub struct Scan {
    /// The missing batch.
    seq: u64,
    boot: u64,
    /// The segment in which it is missing, and its use.
    here: (u32, u64),
    stage: Stage,
    /// Segments whose heads are to be read, next ones first.
    heads: VecDeque<u32>,
    /// Segments to be searched as a whole, from a block on.
    whole: VecDeque<(u32, u32)>,
    /// Those of them whose heads are damaged or can not be read.
    damaged: Vec<u32>,
    /// Those that begin with a batch of copies, and those with nothing of the log or of copies.
    copies: Vec<u32>,
    quiet: Vec<u32>,
    /// Where later closing batches say that the log goes on: searched too, whatever their heads are.
    named: Vec<u32>,
    found: Vec<Candidate>,
    /// The highest use of a segment in any valid header of this device.
    highest_use: u64,
    /// The segments in use.
    in_use: Segments,
    /// One of them whose head is of a later use than the one that counts, and that one.
    reused: Option<(u32, u64)>,
}

enum Stage {
    /// The segment in which the batch is missing, from a block on.
    Rest(u32),
    Heads,
    Whole,
}

impl Scan {
    /// Searches for batches behind the one missing at `tail`, written in generation `boot` or later, in
    /// the rest of its segment and in all segments but those in use. The heads of those are read too if
    /// `doubted`: a checkpoint lists them, which may be older than the log, and what shows that a segment
    /// was used again may be missing.
    pub fn behind(tail: &Tail, boot: u64, in_use: &Segments, doubted: bool) -> Scan {
        let others = in_use.iter().filter(|s| s.id.0 != tail.segment && (doubted || s.seq == 0));
        let (before, behind): (Vec<u32>, Vec<u32>) =
            others.map(|s| s.id.0).partition(|id| *id < tail.segment);
        Scan {
            seq: tail.seq,
            boot,
            here: (tail.segment, tail.segment_seq),
            stage: Stage::Rest(tail.block.saturating_add(1)),
            heads: behind.into_iter().chain(before).collect(),
            whole: VecDeque::new(),
            damaged: Vec::new(),
            copies: Vec::new(),
            quiet: Vec::new(),
            named: Vec::new(),
            found: Vec::new(),
            highest_use: 0,
            in_use: in_use.clone(),
            reused: None,
        }
    }

    /// Goes on; true when the search is over.
    pub fn advance(
        &mut self,
        window: &mut Window,
        geometry: &Geometry,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        loop {
            let over = match self.stage {
                Stage::Rest(block) => self.search_rest(block, window, geometry, out),
                Stage::Heads => self.read_heads(window, geometry, out),
                Stage::Whole => return self.search_whole(window, geometry, out),
            };
            if !over {
                return false;
            }
            self.stage = match self.stage {
                // A batch in the same segment is nearer than any other.
                Stage::Rest(_) if self.is_proven() => return true,
                Stage::Rest(_) => Stage::Heads,
                _ => Stage::Whole,
            };
        }
    }

    fn search_rest(
        &mut self,
        mut block: u32,
        window: &mut Window,
        geometry: &Geometry,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        while block < geometry.segment_blocks && !self.is_proven() {
            match read_header(window, geometry, self.here.0, block, out) {
                HeaderView::Pending => {
                    self.stage = Stage::Rest(block);
                    return false;
                }
                HeaderView::Good(header) => drop(self.note(&header)),
                HeaderView::Bad(_) | HeaderView::Unreadable => {}
            }
            block += 1;
        }
        true
    }

    /// Reads heads, many at a time. A head of the log, or a damaged one, makes its segment be searched.
    fn read_heads(
        &mut self,
        window: &mut Window,
        geometry: &Geometry,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        while let Some((segment, bytes)) = window.take_probed() {
            let used = self.in_use.use_of(segment);
            match bytes.as_deref().map(|bytes| head_of(bytes, geometry, segment)) {
                Some(Head::Blank | Head::Stale) if used.is_none() => self.quiet.push(segment),
                Some(Head::Blank | Head::Stale) => {}
                Some(Head::Longer(blocks)) => window.probe(geometry, segment, blocks, out),
                Some(Head::Good(header)) if used.is_some() => {
                    let used = used.filter(|seq| header.fields.segment_seq > *seq);
                    self.reused = self.reused.or(used.map(|seq| (segment, seq)));
                }
                Some(Head::Damaged) | None if used.is_some() => {}
                Some(Head::Good(header)) if header.holds_copies() => self.copies.push(segment),
                Some(Head::Good(header)) => {
                    if self.note(&header) {
                        self.whole.push_back((segment, 1));
                    }
                }
                Some(Head::Damaged) | None => {
                    self.damaged.push(segment);
                    self.whole.push_back((segment, 0));
                }
            }
        }
        while window.probes() < HEADS_IN_FLIGHT
            && let Some(segment) = self.heads.pop_front()
        {
            window.probe(geometry, segment, 1, out);
        }
        if window.probes() > 0 {
            return false;
        }
        self.order_whole(geometry);
        true
    }

    /// Next segments first, and not too many with damaged heads. One write that went astray may take both the
    /// batch that names the next segment and that segment's first one, which then looks as if nothing of the
    /// log had been written there: so those next in line are searched too.
    fn order_whole(&mut self, geometry: &Geometry) {
        let here = self.here.0;
        for segment in self.in_use.free_from(here).take(IN_LINE_MAX) {
            let copies = self.copies.contains(&segment);
            if copies || self.quiet.contains(&segment) {
                self.whole.push_back((segment, 0));
            }
            if !copies {
                break;
            }
        }
        let distance = |segment: u32| match segment > here {
            true => segment - here,
            false => segment + (geometry.segments - here),
        };
        self.whole.make_contiguous().sort_by_key(|(segment, _)| distance(*segment));
        self.damaged.sort_by_key(|segment| distance(*segment));
        let mut damaged = 0;
        self.whole.retain(|(_, from)| {
            damaged += usize::from(*from == 0);
            *from > 0 || damaged <= DAMAGED_HEADS_MAX
        });
    }

    fn search_whole(
        &mut self,
        window: &mut Window,
        geometry: &Geometry,
        out: &mut Vec<DiskOp>,
    ) -> bool {
        let mut searched = 0;
        while let Some((segment, block)) = self.whole.get(searched).copied() {
            if block >= geometry.segment_blocks {
                searched += 1;
                self.search_named(searched);
                continue;
            }
            match read_header(window, geometry, segment, block, out) {
                HeaderView::Pending => return false,
                HeaderView::Good(header) => drop(self.note(&header)),
                HeaderView::Bad(_) | HeaderView::Unreadable => {}
            }
            self.whole[searched].1 += 1;
        }
        true
    }

    /// Once all others are searched: segments that later batches name and whose heads are none of theirs.
    fn search_named(&mut self, searched: usize) {
        if searched == self.whole.len() {
            let known =
                |whole: &VecDeque<(u32, u32)>, n| whole.iter().any(|(known, _)| *known == n);
            for segment in std::mem::take(&mut self.named) {
                if segment != self.here.0 && !known(&self.whole, segment) {
                    self.whole.push_back((segment, 0));
                }
            }
        }
    }

    /// Notes a valid header of this device; says whether it can stand behind the missing one.
    fn note(&mut self, header: &BatchHeader) -> bool {
        if header.holds_copies() {
            return false;
        }
        let f = &header.fields;
        self.highest_use = self.highest_use.max(f.segment_seq);
        let predecessor_lost = f.flags & FLAG_PREDECESSOR_LOST != 0;
        let (segment, segment_seq) = self.here;
        let is_behind = f.seq > self.seq || (f.seq == self.seq && predecessor_lost);
        let is_later_use = match f.segment == segment {
            true => f.segment_seq == segment_seq,
            false => f.segment_seq > segment_seq,
        };
        if !is_behind || !is_later_use || f.boot < self.boot {
            return false;
        }
        if header.is_closing() {
            self.named.push(f.next_segment);
        }
        self.found.push(Candidate {
            place: (f.segment, f.block),
            segment_seq: f.segment_seq,
            seq: f.seq,
            boot: f.boot,
            mark: f.durable,
        });
        true
    }

    /// The highest durable mark found, and the boot generation that wrote it. It says nothing of the
    /// numbers that a later generation used anew.
    pub fn highest_mark(&self) -> (u64, u64) {
        let void = self.void_from();
        self.found.iter().map(|c| (c.mark.min(void[&c.boot] - 1), c.boot)).max().unwrap_or((0, 0))
    }

    fn is_proven(&self) -> bool {
        self.highest_mark().0 >= self.seq
    }

    /// For each boot generation found, from which number on later ones wrote anew.
    fn void_from(&self) -> BTreeMap<u64, u64> {
        let mut lowest = BTreeMap::new();
        for c in &self.found {
            let seq = lowest.entry(c.boot).or_insert(c.seq);
            *seq = c.seq.min(*seq);
        }
        let mut later = u64::MAX;
        let voids = lowest.into_iter().rev().map(|(boot, seq)| {
            let void = later;
            later = later.min(seq);
            (boot, void)
        });
        voids.collect()
    }

    /// The highest boot generation found.
    pub fn highest_boot(&self) -> u64 {
        self.found.iter().map(|c| c.boot).max().unwrap_or(0)
    }

    /// The highest use of a segment found, stale ones included.
    pub fn highest_use(&self) -> u64 {
        self.highest_use
    }

    /// Whether segments that are not in use begin with copies.
    pub fn saw_copies(&self) -> bool {
        !self.copies.is_empty()
    }

    /// A segment in use that was used again since, and the use that was taken to count.
    pub fn reused(&self) -> Option<(u32, u64)> {
        self.reused
    }

    /// Segments whose heads are damaged, next ones first.
    pub fn damaged(&self) -> &[u32] {
        &self.damaged
    }

    /// The nearest batch found that no batch of a later boot generation supersedes: those belong to
    /// a tail that was dropped and written anew.
    pub fn next(&self) -> Option<Candidate> {
        let void = self.void_from();
        self.found.iter().copied().filter(|c| c.seq < void[&c.boot]).min_by_key(|c| c.seq)
    }
}

/// What the first block of a segment tells of it.
enum Head {
    Good(BatchHeader),
    /// So many blocks must be read to know.
    Longer(u32),
    Blank,
    /// A valid header of an earlier life of the device.
    Stale,
    Damaged,
}

fn head_of(bytes: &[u8], geometry: &Geometry, segment: u32) -> Head {
    match BatchHeader::decode(bytes) {
        Ok(header) if stands_at(&header, geometry, segment, 0) => Head::Good(header),
        Ok(header) if header.fields.device != geometry.device => Head::Stale,
        Err(DiskFormatError::Blank) => Head::Blank,
        Err(DiskFormatError::Short(needed))
            if claimed_place(bytes).is_some_and(|(_, at, block)| (at, block) == (segment, 0))
                && blocks_of(needed as usize) <= geometry.segment_blocks =>
        {
            Head::Longer(blocks_of(needed as usize))
        }
        Ok(_) | Err(_) => Head::Damaged,
    }
}
