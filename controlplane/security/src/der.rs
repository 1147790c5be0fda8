//! Reading what we need of a certificate: its names and its end. The chain of signatures was verified before by
//! others, and everything else that stands in it with it.

/// Tags of DER.
const INTEGER: u8 = 0x02;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

/// Object identifiers of the parts of a name, encoded.
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
const ORGANIZATIONAL_UNIT: [u8; 3] = [0x55, 4, 11];

/// The parts of a name that we use; each at most once in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    pub common: Option<String>,
    pub unit: Option<String>,
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub issuer: Name,
    pub subject: Name,
    /// Seconds since 1970.
    pub not_after: u64,
}

/// Values one after the other.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next value and its tag.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.bytes.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.bytes = rest;
        Some((tag, value))
    }

    /// The next value, which must have this tag.
    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, value)| value)
    }

    fn inside(&mut self, wanted: u8) -> Option<Reader<'a>> {
        self.take(wanted).map(|bytes| Reader { bytes })
    }
}

/// Reads a certificate; nothing if it is none, or has something twice.
pub(crate) fn certificate(bytes: &[u8]) -> Option<Parts> {
    let mut all = Reader { bytes };
    let mut signed = all.inside(SEQUENCE)?;
    if !all.bytes.is_empty() {
        return None;
    }
    let mut body = signed.inside(SEQUENCE)?;
    body.take(VERSION)?;
    body.take(INTEGER)?;
    body.take(SEQUENCE)?;
    let issuer = name(body.inside(SEQUENCE)?)?;
    let mut validity = body.inside(SEQUENCE)?;
    validity.next()?;
    let (tag, text) = validity.next()?;
    let not_after = time(tag, text)?;
    let subject = name(body.inside(SEQUENCE)?)?;
    Some(Parts { issuer, subject, not_after })
}

fn name(mut parts: Reader<'_>) -> Option<Name> {
    let mut name = Name::default();
    while !parts.bytes.is_empty() {
        let mut set = parts.inside(SET)?;
        while !set.bytes.is_empty() {
            let mut pair = set.inside(SEQUENCE)?;
            let kind = pair.take(OBJECT_ID)?;
            let (tag, value) = pair.next()?;
            let place = match kind {
                _ if kind == COMMON_NAME => &mut name.common,
                _ if kind == ORGANIZATIONAL_UNIT => &mut name.unit,
                _ => continue,
            };
            if place.is_some() || !matches!(tag, UTF8_STRING | PRINTABLE_STRING) {
                return None;
            }
            *place = Some(std::str::from_utf8(value).ok()?.to_owned());
        }
    }
    Some(name)
}

/// Seconds since 1970 of `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |at: usize, count: usize| -> Option<i64> {
        let part = digits.get(at..at + count)?;
        part.iter().try_fold(0, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0'))
        })
    };
    let (year, at) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(0, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        (GENERALIZED_TIME, 14) => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at, 2)?, number(at + 2, 2)?);
    let (hour, minute, second) = (number(at + 4, 2)?, number(at + 6, 2)?, number(at + 8, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the civil calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
    let shifted = year - i64::from(month <= 2);
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    u64::try_from(days * 86_400 + hour * 3600 + minute * 60 + second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "261118110640Z", Some(1_795_000_000)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20000229000000Z", Some(951_782_400)),
            (GENERALIZED_TIME, "21200101000000Z", Some(4_733_510_400)),
            (UTC_TIME, "20000229000000Z", None),
            (GENERALIZED_TIME, "20001329000000Z", None),
            (UTC_TIME, "7001010000x0Z", None),
            (UTC_TIME, "", None),
        ] {
            assert_eq!(time(tag, text.as_bytes()), seconds, "{text}");
        }
    }

    #[test]
    fn lengths_that_lie_are_survived() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 0x84, 1, 2, 3, 4],
            &[0x30, 0x83, 0xff, 0xff, 0xff],
            &[0x30, 0x80, 0, 0],
            &[0x30, 2, 0x30, 5],
            b"nonsense",
        ] {
            assert_eq!(certificate(bytes), None, "{bytes:?}");
        }
    }
}
