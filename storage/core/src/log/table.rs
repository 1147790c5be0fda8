//! What becomes of a place in the log when it is opened: a decision table.
//!
//! The observable facts of one place are looked up in [`ROWS`]; exactly one row matches each
//! combination (a test enumerates them all). "Covered" means that a later valid batch carries a
//! durable mark at or above the sequence number expected here: what stood here had been durable, so
//! it may have been acknowledged, and a bad checksum is damage. Only what is not covered can be the
//! torn tail of a power cut.

/// What stands where the next batch's header is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A valid header, chained to its predecessor.
    Good,
    /// A valid header of something else (an earlier use, a dropped tail, another device), or no
    /// header at all.
    Stale,
    /// Zeros.
    Blank,
    /// The beginning of a header whose checksum does not match.
    Damaged,
    /// The device returned an error, repeatedly.
    Unreadable,
}

/// What is known of a batch's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Not read (or there is no batch).
    NotRead,
    /// All checksums match, or there is none.
    Good,
    /// A checksum does not match.
    Bad,
    /// The device returned an error, repeatedly.
    Unreadable,
}

/// The facts about one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Payload,
    /// Whether a later valid batch proves that it had been durable.
    pub covered: bool,
    /// Whether there is any later valid batch.
    pub later: bool,
}

/// What becomes of the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its records count.
    Replay,
    /// Its records count; payload that is bad is found, and repaired, when it is read.
    ReplayDamagedPayload,
    /// The payload decides: read it and ask again.
    ReadPayload,
    /// Never acknowledged: drop it with everything after it.
    TornTail,
    /// Had been durable and is lost: report it, go on with the next valid batch.
    Damage,
    /// The last place can not be read: report it, leave it, go on in the next segment.
    DamagedTail,
    /// The log ends here.
    End,
    /// Can not be observed.
    Impossible,
}

/// One row: the facts it matches (nothing in a two-valued column matches both) and the verdict.
pub struct Row {
    headers: &'static [Header],
    payloads: &'static [Payload],
    covered: Option<bool>,
    later: Option<bool>,
    verdict: Verdict,
}

const fn row(
    headers: &'static [Header],
    payloads: &'static [Payload],
    covered: Option<bool>,
    later: Option<bool>,
    verdict: Verdict,
) -> Row {
    Row { headers, payloads, covered, later, verdict }
}

const ANY_HEADER: &[Header] =
    &[Header::Good, Header::Stale, Header::Blank, Header::Damaged, Header::Unreadable];
const NO_BATCH: &[Header] = &[Header::Stale, Header::Blank, Header::Damaged, Header::Unreadable];
const NO_BATCH_READ: &[Header] = &[Header::Stale, Header::Blank, Header::Damaged];
const ANY_PAYLOAD: &[Payload] =
    &[Payload::NotRead, Payload::Good, Payload::Bad, Payload::Unreadable];
const READ: &[Payload] = &[Payload::Good, Payload::Bad, Payload::Unreadable];
const NOT_BAD: &[Payload] = &[Payload::NotRead, Payload::Good];
const LOST: &[Payload] = &[Payload::Bad, Payload::Unreadable];
const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

/// The table. `docs/on-disk.md` gives the reason of each row.
pub const ROWS: &[Row] = &[
    // The covering mark stands in a later batch, so there is one.
    row(ANY_HEADER, ANY_PAYLOAD, YES, NO, Verdict::Impossible),
    // No batch, so no payload that could have been read.
    row(NO_BATCH, READ, YES, YES, Verdict::Impossible),
    row(NO_BATCH, READ, NO, None, Verdict::Impossible),
    row(&[Header::Good], NOT_BAD, YES, YES, Verdict::Replay),
    row(&[Header::Good], LOST, YES, YES, Verdict::ReplayDamagedPayload),
    row(&[Header::Good], &[Payload::NotRead], NO, None, Verdict::ReadPayload),
    row(&[Header::Good], &[Payload::Good], NO, None, Verdict::Replay),
    row(&[Header::Good], &[Payload::Bad], NO, None, Verdict::TornTail),
    row(&[Header::Good], &[Payload::Unreadable], NO, None, Verdict::ReplayDamagedPayload),
    row(NO_BATCH, &[Payload::NotRead], YES, YES, Verdict::Damage),
    row(NO_BATCH_READ, &[Payload::NotRead], NO, YES, Verdict::TornTail),
    row(&[Header::Damaged], &[Payload::NotRead], NO, NO, Verdict::TornTail),
    row(&[Header::Stale, Header::Blank], &[Payload::NotRead], NO, NO, Verdict::End),
    row(&[Header::Unreadable], &[Payload::NotRead], NO, YES, Verdict::Damage),
    row(&[Header::Unreadable], &[Payload::NotRead], NO, NO, Verdict::DamagedTail),
];

impl Row {
    fn matches(&self, facts: Facts) -> bool {
        self.headers.contains(&facts.header)
            && self.payloads.contains(&facts.payload)
            && self.covered.is_none_or(|c| c == facts.covered)
            && self.later.is_none_or(|l| l == facts.later)
    }
}

/// Looks up what becomes of a place.
pub fn decide(facts: Facts) -> Verdict {
    ROWS.iter().find(|row| row.matches(facts)).map_or(Verdict::Impossible, |row| row.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_facts() -> Vec<Facts> {
        let mut all = Vec::new();
        for header in ANY_HEADER {
            for payload in ANY_PAYLOAD {
                for covered in [false, true] {
                    for later in [false, true] {
                        all.push(Facts { header: *header, payload: *payload, covered, later });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_combination_matches_exactly_one_row() {
        assert_eq!(all_facts().len(), 5 * 4 * 2 * 2);
        for facts in all_facts() {
            let matching = ROWS.iter().filter(|row| row.matches(facts)).count();
            assert_eq!(matching, 1, "{facts:?}");
        }
        for (i, row) in ROWS.iter().enumerate() {
            assert!(all_facts().iter().any(|f| row.matches(*f)), "row {i} matches nothing");
        }
    }

    #[test]
    fn nothing_that_had_been_durable_is_ever_cut() {
        for facts in all_facts().into_iter().filter(|f| f.covered) {
            assert!(!matches!(decide(facts), Verdict::TornTail | Verdict::End), "{facts:?}");
        }
    }
}
