//! Messages with keys in them, as they are shown in logs and errors: without.

use crate::meta::v1::WrappedKey;
use crate::v1::IssueVolumeKeyResponse;
use std::fmt;

impl fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey").field("version", &self.version).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssueVolumeKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("IssueVolumeKeyResponse");
        shown.field("key_version", &self.key_version).finish_non_exhaustive()
    }
}
