//! What a fault is, and how it is written as text; see [`crate::fault`].

use crate::fault::micros;
use basalt_wire::io::{DiskError, DiskOpKind};
use std::str::FromStr;
use std::time::Duration;

/// What is to go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub action: Action,
    /// To which operations.
    pub operation: Operation,
    /// When: before the operation takes place, or after.
    pub stage: Stage,
    /// How often; without it, until disarmed.
    pub count: Option<u64>,
    /// Matching operations that pass first.
    pub after: u64,
    /// Only each n-th matching operation; 1 for each.
    pub every: u64,
    /// First byte of the part of the device that is concerned.
    pub from: u64,
    /// End of it.
    pub to: u64,
    /// Whether an error of a flush or durable write makes the device suspect.
    pub sticky: bool,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails.
    Error(DiskError),
    /// It ends later.
    Delay(Duration),
    /// It does not end until the fault is disarmed.
    Hang,
    /// It is acknowledged and does not take place (a write, flush or discard).
    Lose,
    /// It takes place elsewhere.
    Misdirect {
        /// Bytes further on.
        by: u64,
    },
    /// A bit is flipped: on the device by a write, on the way by a read.
    Corrupt {
        /// The byte of the transfer; its middle if not given.
        at: Option<u64>,
    },
}

/// Operations that a fault concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// All of them.
    Any,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the operation: it does not take place.
    Submit,
    /// After the operation took place.
    Complete,
}

/// What is wrong with the text of a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fault \"{text}\": {reason}")]
pub struct FaultError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Fault {
    /// Whether the fault concerns this operation.
    pub fn matches(&self, kind: &DiskOpKind) -> bool {
        let (operation, offset, len) = match kind {
            DiskOpKind::Read { offset, buf } => (Operation::Read, *offset, buf.len() as u64),
            DiskOpKind::Write { offset, data, .. } => {
                (Operation::Write, *offset, data.len() as u64)
            }
            DiskOpKind::Discard { offset, len } => (Operation::Discard, *offset, *len),
            // A flush concerns the whole device.
            DiskOpKind::Flush => (Operation::Flush, self.from, 1),
        };
        let named = self.operation == Operation::Any || self.operation == operation;
        named && offset < self.to && offset.saturating_add(len) > self.from
    }
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Fault, FaultError> {
        parse(text).map_err(|reason| FaultError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Fault, String> {
    let mut parts = text.splitn(3, ':');
    let action = parts.next().unwrap_or_default();
    let operation = parts.next().ok_or("an operation is missing, as in error:write")?;
    let mut fault = Fault {
        action: action_of(action)?,
        operation: operation_of(operation)?,
        stage: Stage::Submit,
        count: None,
        after: 0,
        every: 1,
        from: 0,
        to: u64::MAX,
        sticky: true,
    };
    let pairs = parts.next().unwrap_or_default().split(',').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (key, value) = pair.split_once('=').ok_or(format!("\"{pair}\" is not KEY=VALUE"))?;
        set(&mut fault, key, value)?;
    }
    match fault.action {
        Action::Delay(delay) if delay.is_zero() => Err("a delay needs us=MICROSECONDS".to_owned()),
        Action::Misdirect { by } if by == 0 || by % 4096 != 0 => {
            Err("misdirect needs by=BYTES, a multiple of 4096".to_owned())
        }
        _ if fault.from >= fault.to => Err("from is not below to".to_owned()),
        _ => Ok(fault),
    }
}

fn action_of(text: &str) -> Result<Action, String> {
    match text {
        "error" => Ok(Action::Error(DiskError::Io)),
        "delay" => Ok(Action::Delay(Duration::ZERO)),
        "hang" => Ok(Action::Hang),
        "lose" => Ok(Action::Lose),
        "misdirect" => Ok(Action::Misdirect { by: 0 }),
        "corrupt" => Ok(Action::Corrupt { at: None }),
        other => Err(format!(
            "\"{other}\" is no action; there are error, delay, hang, lose, misdirect, corrupt"
        )),
    }
}

fn operation_of(text: &str) -> Result<Operation, String> {
    match text {
        "any" => Ok(Operation::Any),
        "read" => Ok(Operation::Read),
        "write" => Ok(Operation::Write),
        "flush" => Ok(Operation::Flush),
        "discard" => Ok(Operation::Discard),
        other => {
            Err(format!("\"{other}\" is no operation; there are any, read, write, flush, discard"))
        }
    }
}

fn set(fault: &mut Fault, key: &str, value: &str) -> Result<(), String> {
    match (key, &mut fault.action) {
        ("count", _) => fault.count = Some(number(value)?),
        ("after", _) => fault.after = number(value)?,
        ("every", _) => fault.every = number(value)?.max(1),
        ("from", _) => fault.from = number(value)?,
        ("to", _) => fault.to = number(value)?,
        ("stage", _) => {
            fault.stage = match value {
                "submit" => Stage::Submit,
                "complete" => Stage::Complete,
                _ => return Err(format!("\"{value}\" is no stage; there are submit, complete")),
            }
        }
        ("sticky", _) => {
            fault.sticky = match value {
                "yes" => true,
                "no" => false,
                _ => return Err("sticky is yes or no".to_owned()),
            }
        }
        ("kind", Action::Error(error)) => {
            *error = match value {
                "io" => DiskError::Io,
                "nospace" => DiskError::NoSpace,
                "short" => DiskError::Short,
                "gone" => DiskError::Gone,
                _ => {
                    return Err(format!(
                        "\"{value}\" is no kind of error; there are io, nospace, short, gone"
                    ));
                }
            }
        }
        ("us", Action::Delay(delay)) => *delay = micros(number(value)?),
        ("by", Action::Misdirect { by }) => *by = number(value)?,
        ("at", Action::Corrupt { at }) => *at = Some(number(value)?),
        _ => return Err(format!("the key \"{key}\" means nothing to this action")),
    }
    Ok(())
}

fn number(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let value: u64 = digits.parse().map_err(|_| format!("\"{text}\" is not a number"))?;
    value.checked_mul(1 << shift).ok_or(format!("\"{text}\" is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_faults() {
        let fault: Fault = "error:read:kind=short,from=1m,to=2m,count=3,after=7".parse().unwrap();
        assert_eq!(fault.action, Action::Error(DiskError::Short));
        assert_eq!((fault.from, fault.to), (1 << 20, 2 << 20));
        assert_eq!((fault.count, fault.after, fault.every), (Some(3), 7, 1));
        let fault: Fault = "delay:any:us=5k".parse().unwrap();
        assert_eq!(fault.action, Action::Delay(Duration::from_micros(5 << 10)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, part: &str| {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(part), "{error}");
        };
        check("explode:write", "no action");
        check("error", "operation is missing");
        check("error:seek", "no operation");
        check("error:write:count", "KEY=VALUE");
        check("error:write:count=x", "not a number");
        check("error:write:us=1", "means nothing");
        check("delay:write", "us=MICROSECONDS");
        check("misdirect:write:by=100", "multiple of 4096");
        check("error:read:from=2m,to=1m", "below");
        check("error:read:to=99999999999999999g", "too large");
    }
}
