//! The state machine of the metadata group.
//!
//! The truth about volumes and attachments is a log of [`Entry`]s, replicated by the metadata group.
//! [`MetaState::apply`] is pure: it reads no clock and draws nothing, so every node that applied the
//! same entries holds the same state. A change names itself by a request id; its effect is kept with
//! the id, and proposing it again, after a lost answer, gives the same outcome and changes nothing.

pub mod backup;
mod chunks;
mod classes;
mod clones;
mod cuts;
mod events;
pub mod failover;
pub mod feed;
pub mod healing;
pub mod hosts;
mod index;
mod keys;
pub mod layout;
pub mod liveness;
mod members;
mod minimums;
mod operations;
pub mod planner;
mod quotas;
mod requests;
pub mod restore;
mod reverts;
mod rules;
mod snapshots;
mod state;
pub mod stops;
mod tokens;
mod tracked;
mod updates;

pub use basalt_api::meta::v1::BackupHeader;
pub use basalt_api::meta::v1::PlanStop;
pub use basalt_api::meta::v1::entry::Op;
pub use basalt_api::meta::v1::{
    AddMember, AttachVolume, AttachmentRecord, Barrier, CloneParent, CloneSource, CreateCut,
    CreateSnapshot, CreateVolume, DeleteCut, DeleteSnapshot, DeleteVolume, DetachVolume,
    DrainMember, Entry, EvacuateMember, FailOverVolume, FlattenVolume, GiveUpCut, InitCluster,
    JudgeAttachment, JudgeMember, MoveGroup, NewSnapshot, PurgeSnapshot, PurgeVolume, RaiseEpoch,
    RemoveMember, ResizeVolume, RevertRecord, RevertVolume, SetFailureDomain, SettleClone,
    SettleCut, SettleFlatten, SettleGroup, SettleRevert, SettleSnapshot, SnapshotRecord,
    UpdateMember, VolumeRecord,
};
pub use basalt_api::meta::v1::{
    AdoptVolume, HeldRecord, RestoreHeader, RestoreRecord, SettleRestore,
};
pub use basalt_api::meta::v1::{
    ClassRecord, DeleteClass, DeleteQuota, EventRecord, ForgetOperation, OperationRecord, PutClass,
    PutQuota, QuotaRecord, UpdateVolume, operation_record,
};
pub use basalt_api::meta::v1::{CreateToken, RevokeToken, TokenRecord, UseJoinToken};
pub use basalt_api::meta::v1::{EncryptionRecord, KeyRecord, RewrapKeys, WrappedKey};
pub use chunks::{BadState, CHUNK_BYTES_MAX, Chunks, STATE_FORMAT, StateReader};
pub use classes::etag_of_revision;
pub use clones::{CLONE_DEPTH_MAX, FLATTEN_DEPTH};
pub use keys::CIPHER;
pub use operations::groups_named;
pub use quotas::Used;
pub use rules::{check_host, check_size, check_snapshot_id, check_token_id, check_volume_id};
pub use snapshots::etag_of_snapshot;
pub use state::{ENTRY_VERSION, MetaState, Outcome, Refused, decode, encode, etag_of, trace_of};
pub use tracked::Shared;
pub use updates::VOLUME_FIELDS;
