//! How fast replicas are brought up by pages: as fast as it goes while nobody asks for anything, and else so that
//! those who do hardly notice.
//!
//! Pages are read, sent and written in small pieces that are spread over time: a burst of them would hold up what
//! is written behind it, in sockets, in the log's queue and on the device. While clients are at work the rate
//! follows from how long their writes take here, from the moment in which they are accepted to that in which they
//! are applied: it rises step by step while they take about as long as without pages, and falls when they take
//! longer: a write on the whole by an eighth, since clients that wait for one before they send the next lose in number
//! what each of them takes, or the slowest hundredth twice as much. What is usual is measured while no pages move; now
//! and then none do for a moment, so that it is known although sessions go on for hours.

use basalt_wire::time::Time;
use std::time::Duration;

/// Bytes a second: while nobody asks for anything; else at first, at most, and the least that may be asked for, for
/// a rate of a few bytes would never rise.
const IDLE: u64 = 640 << 20;
const FIRST: u64 = 32 << 20;
const MOST: u64 = 320 << 20;
const LEAST_MIN: u64 = 64 << 10;
/// What may leave at one moment while clients are at work, in bytes: so much is in a piece, too.
pub const BURST: u64 = 256 << 10;
/// Ticks in a period, after which the rate is set anew, and writes that say something about it.
const PERIOD_TICKS: u32 = 4;
const WRITES_MIN: u64 = 8;
/// Periods with pages after which there is one without; one in which writes are slow counts as so many.
const PERIODS_MAX: u32 = 40;
const PERIODS_SLOW: u32 = 4;
/// What writes may take longer than usual: an eighth, and this.
const SLACK: Duration = Duration::from_micros(100);

/// Hundredths of a write by which those that take twice as long as the slowest hundredth may exceed a hundredth of
/// all, by chance, one period after the other.
const EXCESS: u64 = 100;

/// The pace of a shard, which reads pages for others and writes those that it is given.
#[derive(Debug)]
pub struct Pace {
    /// Bytes that may move before it has to wait; below zero if the last piece was larger.
    budget: i64,
    refilled: Time,
    /// Bytes a second.
    rate: u64,
    /// Bytes a second at least.
    least: u64,
    busy: bool,
    /// Somebody waits for the budget.
    waits: bool,
    /// Pages rest for the present period.
    rests: bool,
    /// Ticks of the period that are over, and periods with pages since the last one without.
    ticks: u32,
    periods: u32,
    /// Bytes of pages in this period.
    moved: u64,
    /// Writes of clients in this period, and nanoseconds that they took together.
    writes: u64,
    nanos: u64,
    /// Nanoseconds of a write without pages; 0 if it is not known.
    usual: u64,
    /// Nanoseconds that one write in a hundred exceeds without pages, as of the last period without them and with
    /// the writes of this one; 0 if it is not known.
    tail: u64,
    tail_now: u64,
    /// Writes of this period that took more than twice that, and by how many hundredths of a write there were more
    /// of them than one in a hundred, lately.
    long: u64,
    excess: u64,
}

/// What one in a hundred exceeds, after one more: up by an eighth if that one does, else down by a hundredth of an
/// eighth, which is in balance there.
fn learn(tail: u64, nanos: u64) -> u64 {
    match nanos > tail {
        _ if tail == 0 => nanos,
        true => tail + tail / 8,
        false => tail - tail / 800,
    }
}

impl Pace {
    /// The pace of a shard that moves so many bytes of pages a second at least, within bounds.
    pub fn new(least: u64) -> Pace {
        let least = least.clamp(LEAST_MIN, MOST);
        Pace {
            budget: BURST as i64,
            refilled: Time::ZERO,
            rate: FIRST.max(least),
            least,
            busy: false,
            waits: false,
            rests: false,
            ticks: 0,
            periods: 0,
            moved: 0,
            writes: 0,
            nanos: 0,
            usual: 0,
            tail: 0,
            tail_now: 0,
            long: 0,
            excess: 0,
        }
    }

    /// A client's write took so long.
    pub fn note_write(&mut self, took: Duration) {
        self.writes += 1;
        let nanos = took.as_nanos() as u64;
        self.nanos = self.nanos.saturating_add(nanos);
        self.long += u64::from(self.tail > 0 && nanos > 2 * self.tail);
        self.tail_now = learn(self.tail_now, nanos);
    }

    /// Whether pages may move now. Who must wait is called when they may: see [`Pace::resumes`].
    pub fn may(&mut self) -> bool {
        let may = self.budget > 0 && !(self.rests && self.busy);
        self.waits |= !may;
        may
    }

    /// Whether somebody waits.
    pub fn has_waiting(&self) -> bool {
        self.waits
    }

    /// So many bytes of pages move.
    pub fn take(&mut self, bytes: usize) {
        self.budget -= bytes as i64;
        self.moved += bytes as u64;
    }

    /// Bytes in a piece.
    pub fn piece(&self) -> usize {
        if self.busy { BURST as usize } else { usize::MAX }
    }

    /// Fills the budget up. Whether those who wait may go on.
    pub fn resumes(&mut self, now: Time) -> bool {
        let nanos = now.since(self.refilled).as_nanos().min(1_000_000_000) as u64;
        let gained = (u128::from(self.speed()) * u128::from(nanos) / 1_000_000_000) as i64;
        if gained > 0 {
            self.refilled = now;
            self.budget = (self.budget + gained).min(self.burst());
        }
        let goes_on = self.waits && self.budget > 0 && !(self.rests && self.busy);
        self.waits &= !goes_on;
        goes_on
    }

    /// When those who wait may go on; nothing if nobody waits, or not before the next tick.
    pub fn deadline(&self) -> Option<Time> {
        if !self.waits || (self.rests && self.busy) {
            return None;
        }
        let missing = u64::try_from(1 - self.budget).unwrap_or(0);
        let nanos = u128::from(missing) * 1_000_000_000 / u128::from(self.speed());
        Some(self.refilled + Duration::from_nanos(nanos as u64 + 1))
    }

    fn speed(&self) -> u64 {
        if self.busy { self.rate } else { IDLE }
    }

    fn burst(&self) -> i64 {
        let most = if self.busy { BURST } else { IDLE / 20 };
        most as i64
    }

    /// A tick is over, in which clients were at work or not.
    pub fn tick(&mut self, busy: bool) {
        self.busy = busy;
        self.budget = self.budget.min(self.burst());
        self.ticks += 1;
        if self.ticks < PERIOD_TICKS {
            return;
        }
        self.ticks = 0;
        let took = (self.writes >= WRITES_MIN).then(|| self.nanos / self.writes);
        match self.moved {
            0 => self.note_usual(took),
            _ => self.set_rate(took),
        }
        self.rests = self.periods >= PERIODS_MAX;
        if self.rests || self.moved == 0 {
            self.periods = 0;
        }
        self.tail_now = self.tail;
        (self.moved, self.writes, self.nanos, self.long) = (0, 0, 0, 0);
    }

    /// A period without pages: what a write took is usual.
    fn note_usual(&mut self, took: Option<u64>) {
        // Others may go on with their pages while this shard's rest.
        let most = |usual: u64| if self.rests { usual + usual / 16 } else { u64::MAX };
        self.tail = match self.tail {
            0 => self.tail_now,
            tail => self.tail_now.min(most(tail)),
        };
        let Some(took) = took else { return };
        self.usual = match self.usual {
            0 => took,
            usual => ((usual * 3 + took) / 4).min(most(usual)),
        };
    }

    /// A period with pages: they go on faster unless writes took longer than usual.
    fn set_rate(&mut self, took: Option<u64>) {
        let most = self.usual * 9 / 8 + SLACK.as_nanos() as u64;
        self.excess = (self.excess + self.long * 100).saturating_sub(self.writes);
        let long = self.excess > EXCESS;
        if long {
            self.excess = 0;
        }
        let slow = self.usual > 0 && took.is_some_and(|took| took > most || long);
        let unknown = self.usual == 0 && took.is_some();
        self.periods += match () {
            () if unknown => PERIODS_MAX,
            () if slow => PERIODS_SLOW,
            () => 1,
        };
        if !unknown {
            let rate = if slow { self.rate / 4 * 3 } else { self.rate + self.rate / 8 };
            self.rate = rate.clamp(self.least, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(50);
    const LEAST: u64 = 8 << 20;

    /// Ticks in which clients write, of which each write takes what `takes` says of the bytes of pages a second
    /// that moved; whoever brings replicas up takes what it gets. Gives the bytes that moved.
    fn run(pace: &mut Pace, now: &mut Time, ticks: u32, takes: impl Fn(u64) -> Option<u64>) -> u64 {
        let mut all = 0;
        for _ in 0..ticks {
            let (end, mut moved) = (*now + TICK, 0);
            while *now < end {
                pace.resumes(*now);
                while pace.may() {
                    let piece = pace.piece().min(1 << 20);
                    pace.take(piece);
                    moved += piece as u64;
                }
                let next = pace.deadline().unwrap_or(end).max(*now + Duration::from_micros(1));
                *now = next.min(end);
            }
            let took = takes(moved * 20);
            for _ in 0..if took.is_some() { 10 } else { 0 } {
                pace.note_write(Duration::from_micros(took.expect("seen above")));
            }
            pace.tick(took.is_some());
            all += moved;
        }
        all
    }

    fn mib_a_second(bytes: u64, ticks: u32) -> u64 {
        (bytes >> 20) * 20 / u64::from(ticks)
    }

    #[test]
    fn nobody_waits_while_nobody_asks() {
        let (mut pace, mut now) = (Pace::new(LEAST), Time(0));
        run(&mut pace, &mut now, 4, |_| None);
        let moved = run(&mut pace, &mut now, 40, |_| None);
        assert!(mib_a_second(moved, 40) > 600, "{moved}");
    }

    #[test]
    fn pages_yield_to_those_who_write_and_take_what_costs_nothing() {
        let (mut pace, mut now) = (Pace::new(LEAST), Time(0));
        // Up to 60 MiB a second nobody notices.
        let takes = |rate: u64| Some(if rate > 60 << 20 { 3_000 } else { 500 });
        run(&mut pace, &mut now, 200, takes);
        let moved = mib_a_second(run(&mut pace, &mut now, 400, takes), 400);
        assert!((40..=72).contains(&moved), "{moved} MiB a second");
        // Then everything takes longer, pages or not: that is no reason to go slower for long.
        let takes = |rate: u64| Some(if rate > 60 << 20 { 9_000 } else { 2_000 });
        run(&mut pace, &mut now, 1600, takes);
        let moved = mib_a_second(run(&mut pace, &mut now, 400, takes), 400);
        assert!((35..=72).contains(&moved), "{moved} MiB a second");
        // However long it takes, there is some progress.
        run(&mut pace, &mut now, 400, |rate| Some(if rate > 0 { 9_000 } else { 500 }));
        let moved = run(&mut pace, &mut now, 400, |rate| Some(if rate > 0 { 9_000 } else { 500 }));
        assert!((6..=9).contains(&mib_a_second(moved, 400)), "{moved}");
    }

    #[test]
    fn the_least_is_what_it_was_told() {
        let takes = |rate: u64| Some(if rate > 0 { 9_000 } else { 500 });
        for (least, expected) in [(1 << 20, 0..=2), (32 << 20, 24..=36), (u64::MAX, 240..=340)] {
            let (mut pace, mut now) = (Pace::new(least), Time(0));
            run(&mut pace, &mut now, 400, takes);
            let moved = mib_a_second(run(&mut pace, &mut now, 400, takes), 400);
            assert!(expected.contains(&moved), "{least}: {moved} MiB a second");
        }
    }

    #[test]
    fn the_slowest_pace_of_all_rises_again() {
        let (mut pace, mut now) = (Pace::new(0), Time(0));
        run(&mut pace, &mut now, 4_000, |rate| Some(if rate > 0 { 9_000 } else { 500 }));
        let moved = run(&mut pace, &mut now, 1_000, |_| Some(500));
        assert!(mib_a_second(moved, 1_000) > 20, "{moved}");
    }

    #[test]
    fn the_slowest_writes_count_too() {
        let (mut pace, mut now) = (Pace::new(LEAST), Time(0));
        // Two writes in a hundred take ten times as long where pages move fast: the mean hardly tells.
        let mut ticks = |pace: &mut Pace, count: u32, calm: bool| {
            let mut all = 0;
            for _ in 0..count {
                let moved = run(pace, &mut now, 1, |_| Some(500));
                let fast = moved * 20 > 60 << 20 && !calm;
                for i in 0..300 {
                    let long = if fast { i % 50 == 0 } else { i % 150 == 0 };
                    pace.note_write(Duration::from_micros(if long { 5_000 } else { 500 }));
                }
                all += moved;
            }
            mib_a_second(all, count)
        };
        for _ in 0..2_000 {
            pace.note_write(Duration::from_micros(500));
        }
        pace.tick(true);
        ticks(&mut pace, 400, false);
        let held = ticks(&mut pace, 400, false);
        assert!((40..=75).contains(&held), "{held} MiB a second");
        let free = ticks(&mut pace, 400, true);
        assert!(free > 200, "{free} MiB a second");
    }

    #[test]
    fn clients_that_wait_for_their_writes_keep_most_of_them() {
        let (mut pace, mut now) = (Pace::new(LEAST), Time(0));
        // 32 writes are under way, and each takes a tenth longer for every 40 MiB of pages a second.
        let mut ticks = |pace: &mut Pace, count: u32| {
            let (mut all, mut done) = (0, 0);
            for _ in 0..count {
                let moved = run(pace, &mut now, 1, |_| Some(1_600));
                let took = 1_600 + 160 * (moved * 20) / (40 << 20);
                let writes = 32 * TICK.as_micros() as u64 / took;
                (0..writes).for_each(|_| pace.note_write(Duration::from_micros(took)));
                (all, done) = (all + moved, done + writes);
            }
            (mib_a_second(all, count), done / u64::from(count))
        };
        for _ in 0..4_000 {
            pace.note_write(Duration::from_micros(1_600));
        }
        pace.tick(true);
        ticks(&mut pace, 200);
        let (moved, writes) = ticks(&mut pace, 400);
        assert!(writes > 700, "{writes} of 1000 are left");
        assert!(moved > 10, "{moved} MiB a second");
    }

    #[test]
    fn pieces_are_spread_over_time() {
        let (mut pace, mut now) = (Pace::new(LEAST), Time(0));
        run(&mut pace, &mut now, 40, |_| Some(500));
        let mut last = now;
        for _ in 0..50 {
            pace.resumes(now);
            while pace.may() {
                pace.take(BURST as usize);
            }
            let next = pace.deadline().expect("it waits");
            assert!(next > last, "it never stands still");
            assert!(next.since(last) < Duration::from_millis(40));
            (last, now) = (next, next);
        }
    }
}
