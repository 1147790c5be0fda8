//! Errors as the API gives them: a canonical code, a message that says what was wrong and what to
//! do, and a machine-readable reason with its details.

use crate::v1::ErrorReason;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of every error of this API.
pub const DOMAIN: &str = "basalt";

const PREFIX: &str = "ERROR_REASON_";

/// The canonical code of a reason.
pub fn code_of(reason: ErrorReason) -> Code {
    match reason {
        ErrorReason::Unspecified => Code::Internal,
        ErrorReason::InvalidField | ErrorReason::RequestIdReused => Code::InvalidArgument,
        ErrorReason::VolumeNotFound
        | ErrorReason::SnapshotNotFound
        | ErrorReason::CutNotFound
        | ErrorReason::StorageClassNotFound
        | ErrorReason::QuotaNotFound
        | ErrorReason::OperationNotFound
        | ErrorReason::EventNotFound
        | ErrorReason::PoolNotFound
        | ErrorReason::TokenNotFound
        | ErrorReason::NodeNotFound => Code::NotFound,
        ErrorReason::VolumeExists
        | ErrorReason::SnapshotExists
        | ErrorReason::StorageClassExists
        | ErrorReason::QuotaExists
        | ErrorReason::TokenExists
        | ErrorReason::NodeExists => Code::AlreadyExists,
        ErrorReason::VolumeAttached
        | ErrorReason::VolumeDeleting
        | ErrorReason::VolumeShrinks
        | ErrorReason::VolumeHasSnapshots
        | ErrorReason::SnapshotInCut
        | ErrorReason::LaterSnapshots
        | ErrorReason::NodeInUse
        | ErrorReason::TooFewNodes
        | ErrorReason::HasClones
        | ErrorReason::CloneTooDeep
        | ErrorReason::StorageClassInUse
        | ErrorReason::OperationUnderWay
        | ErrorReason::NoSecret
        | ErrorReason::EncryptionDiffers
        | ErrorReason::NoKey
        | ErrorReason::NotBootstrapped
        | ErrorReason::AlreadyBootstrapped => Code::FailedPrecondition,
        ErrorReason::EtagMismatch
        | ErrorReason::AttachmentChanged
        | ErrorReason::CutGivenUp
        | ErrorReason::MemberChanged
        | ErrorReason::VolumeBusy => Code::Aborted,
        ErrorReason::NodeUnreachable | ErrorReason::NoQuorum | ErrorReason::VolumeCreating => {
            Code::Unavailable
        }
        ErrorReason::Limit | ErrorReason::QuotaExceeded => Code::ResourceExhausted,
        ErrorReason::RevisionCompacted => Code::OutOfRange,
        ErrorReason::CredentialsMissing
        | ErrorReason::CredentialsInvalid
        | ErrorReason::JoinTokenUsed => Code::Unauthenticated,
        ErrorReason::PermissionDenied => Code::PermissionDenied,
    }
}

/// The status of an error, with its reason and details.
pub fn status(reason: ErrorReason, message: impl Into<String>, facts: &[(&str, String)]) -> Status {
    let metadata: HashMap<String, String> =
        facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let name = reason.as_str_name().trim_start_matches(PREFIX);
    let details = ErrorDetails::with_error_info(name, DOMAIN, metadata);
    Status::with_error_details(code_of(reason), message, details)
}

/// The status of a field with a wrong value.
pub fn invalid(field: &str, message: impl Into<String>) -> Status {
    status(ErrorReason::InvalidField, message, &[("field", field.to_owned())])
}

/// The reason that a status of this API carries.
pub fn reason_of(status: &Status) -> Option<ErrorReason> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    ErrorReason::from_str_name(&format!("{PREFIX}{}", info.reason))
}

/// One fact of a status: an entry of `ErrorInfo.metadata`.
pub fn fact_of(status: &Status, key: &str) -> Option<String> {
    status.get_details_error_info()?.metadata.get(key).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_travels_with_its_facts() {
        let sent = status(ErrorReason::VolumeAttached, "it is", &[("host", "node-1".to_owned())]);
        assert_eq!(sent.code(), Code::FailedPrecondition);
        assert_eq!(reason_of(&sent), Some(ErrorReason::VolumeAttached));
        assert_eq!(fact_of(&sent, "host").as_deref(), Some("node-1"));
        assert_eq!(reason_of(&Status::internal("other")), None);
    }

    #[test]
    fn every_reason_has_a_code_of_its_own_choosing() {
        for reason in (1..1000).filter_map(|number| ErrorReason::try_from(number).ok()) {
            assert_ne!(code_of(reason), Code::Internal, "{reason:?}");
            assert_eq!(reason_of(&status(reason, "x", &[])), Some(reason));
        }
    }
}
