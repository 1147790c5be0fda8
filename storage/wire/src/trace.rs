//! Where the time of a request goes: the stages that it passes, and what those who carried it say of them.
//!
//! Only durations travel, each measured by one machine on its own monotonic clock: no two clocks are ever
//! compared. What lies between two machines is what is left of the asker's time when the answerer's is taken
//! from it.

use crate::ids::{GroupId, LogIndex, NodeId, Term};

/// A stage of a request. At any moment a request is in exactly one, so that they add up to its whole time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// At the client: until the session's bounds let it begin.
    Limit = 0,
    /// At the client: until earlier parts of the same request were answered, of which a bounded number is under
    /// way at a time.
    Parts = 1,
    /// At the client: until writes of the same blocks that came before were answered.
    Order = 2,
    /// Until the block was read of which only a part is written.
    ReadFirst = 3,
    /// At the client: until there was a leader, a link to it, and the session was known to the group.
    Route = 4,
    /// At the client: until the link had credit.
    Credit = 5,
    /// Attempts that were refused or not answered, and the pauses between them.
    Retry = 6,
    /// Between the client and who served it, there and back; and in turns of both that had begun before.
    Link = 7,
    /// Where it is served: held back so that other volumes get their guaranteed minimum.
    Admission = 8,
    /// At the leader: from its arrival until it was proposed. While the log is being written proposals gather.
    Batch = 9,
    /// At the leader: until the cleaner had made room for it.
    Room = 10,
    /// At the leader: from the proposal until the log's write began.
    LogQueue = 11,
    /// At the leader: the log's write, to the end of the batch that the request is in.
    LogWrite = 12,
    /// Between the leader and the follower that made it a majority, there and back.
    FollowerLink = 13,
    /// At that follower: from its arrival until the log's write began.
    FollowerQueue = 14,
    /// At that follower: the log's write.
    FollowerWrite = 15,
    /// At the leader: from the majority until it knew that the entry is committed.
    Commit = 16,
    /// Until tables of the index came into memory.
    Pages = 17,
    /// At the leader: until the gate was opened that holds acknowledgements back while several volumes are cut.
    Gate = 18,
    /// The device's reads, to the last of them.
    DeviceRead = 19,
    /// Nobody says.
    Other = 20,
}

/// Stages there are.
pub const STAGES: usize = 21;

impl Stage {
    /// All of them, in the order in which a request passes them.
    pub const ALL: [Stage; STAGES] = [
        Stage::Limit,
        Stage::Parts,
        Stage::Order,
        Stage::ReadFirst,
        Stage::Route,
        Stage::Credit,
        Stage::Retry,
        Stage::Link,
        Stage::Admission,
        Stage::Batch,
        Stage::Room,
        Stage::LogQueue,
        Stage::LogWrite,
        Stage::FollowerLink,
        Stage::FollowerQueue,
        Stage::FollowerWrite,
        Stage::Commit,
        Stage::Pages,
        Stage::Gate,
        Stage::DeviceRead,
        Stage::Other,
    ];

    /// Its name, for programs: it never changes.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Limit => "limit",
            Stage::Parts => "parts",
            Stage::Order => "order",
            Stage::ReadFirst => "read_first",
            Stage::Route => "route",
            Stage::Credit => "credit",
            Stage::Retry => "retry",
            Stage::Link => "link",
            Stage::Admission => "admission",
            Stage::Batch => "batch",
            Stage::Room => "room",
            Stage::LogQueue => "log_queue",
            Stage::LogWrite => "log_write",
            Stage::FollowerLink => "follower_link",
            Stage::FollowerQueue => "follower_queue",
            Stage::FollowerWrite => "follower_write",
            Stage::Commit => "commit",
            Stage::Pages => "pages",
            Stage::Gate => "gate",
            Stage::DeviceRead => "device_read",
            Stage::Other => "other",
        }
    }

    /// The stage of a number.
    pub fn of(number: u8) -> Option<Stage> {
        Stage::ALL.get(usize::from(number)).copied()
    }

    /// Whether whoever serves a request says how long it took. The others are the client's to say.
    pub fn is_told(self) -> bool {
        (Stage::Admission..=Stage::Other).contains(&self)
    }

    /// Whether it belongs to the follower that made the majority.
    pub fn is_followers(self) -> bool {
        matches!(self, Stage::FollowerLink | Stage::FollowerQueue | Stage::FollowerWrite)
    }
}

/// What whoever served a request says of its time there: from its arrival to its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Stages and nanoseconds, rising and none twice: see [`Stage::is_told`]. They add up to its time there.
    pub stages: Vec<(Stage, u64)>,
    /// The follower that made it a majority, if it waited for one.
    pub follower: Option<NodeId>,
}

impl Trace {
    /// Nanoseconds of all stages together.
    pub fn total(&self) -> u64 {
        self.stages.iter().fold(0, |sum, (_, nanos)| sum.saturating_add(*nanos))
    }
}

/// Leader to follower, ahead of an append: say how long the log's write of this entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The group.
    pub group: GroupId,
    /// The entry's term.
    pub term: Term,
    /// The entry.
    pub index: LogIndex,
}

/// Follower to leader, ahead of the acknowledgement: how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What was asked.
    pub watch: Watch,
    /// Nanoseconds from the arrival of the question until the log's write began.
    pub queue_nanos: u64,
    /// Nanoseconds of the log's write.
    pub write_nanos: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unambiguous() {
        for (number, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(Stage::of(number as u8), Some(stage));
            assert_eq!(Stage::ALL.iter().filter(|other| other.name() == stage.name()).count(), 1);
        }
        assert_eq!(Stage::of(STAGES as u8), None);
        assert!(!Stage::Link.is_told() && Stage::Admission.is_told() && Stage::Other.is_told());
    }
}
