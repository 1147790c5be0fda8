//! Quotas: bounds on the volumes that have certain labels.
//!
//! They are counted when a change is applied, in the order of the log, and nothing is reserved: so two changes
//! under way
//! can not both take the last room, and there is nothing that could be left over from one that failed.

use crate::classes::check_etag;
use crate::rules;
use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::{DeleteQuota, PutQuota, QuotaRecord};
use basalt_api::v1::ErrorReason;
use std::collections::BTreeMap;

/// The most quotas of a cluster.
const QUOTAS_MAX: usize = 256;

/// What there is of what a quota bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// How many volumes.
    pub volumes: u64,
    /// Their sizes together.
    pub bytes: u64,
}

impl MetaState {
    /// The quotas in the order of their names.
    pub fn quotas(&self) -> impl Iterator<Item = &QuotaRecord> {
        self.quotas.values()
    }

    /// A quota by the last part of its name.
    pub fn quota(&self, id: &str) -> Option<&QuotaRecord> {
        self.quotas.get(id)
    }

    /// What is used of a quota. A volume that is being deleted counts until it is gone.
    pub fn used_of(&self, quota: &QuotaRecord) -> Used {
        self.volumes.followed().used_of(&quota.id).unwrap_or_default()
    }

    /// Whether a volume may come to be, or become, one of this size with these labels. What makes no quota fuller is
    /// always allowed.
    pub(crate) fn check_quotas(
        &self,
        id: &str,
        labels: &BTreeMap<String, String>,
        size_bytes: u64,
    ) -> Result<(), Refused> {
        let before = self.volume(id);
        for quota in self.quotas.values().filter(|quota| selects(&quota.selector, labels)) {
            let counted = before.filter(|volume| selects(&quota.selector, &volume.labels));
            let more_bytes = counted.is_none_or(|volume| volume.size_bytes < size_bytes);
            let (used, own) = (self.used_of(quota), counted.map_or(0, |v| v.size_bytes));
            let volumes = used.volumes + 1;
            if counted.is_none() && quota.max_volumes > 0 && volumes > u64::from(quota.max_volumes)
            {
                let most = u64::from(quota.max_volumes);
                return Err(exceeded(quota, "volumes", volumes, most));
            }
            let bytes = used.bytes.saturating_sub(own).saturating_add(size_bytes);
            if more_bytes && quota.max_bytes > 0 && bytes > quota.max_bytes {
                return Err(exceeded(quota, "bytes", bytes, quota.max_bytes));
            }
        }
        Ok(())
    }

    pub(crate) fn put_quota(
        &mut self,
        (index, now_ms): (u64, i64),
        put: PutQuota,
    ) -> Result<Outcome, Refused> {
        let asked = put.quota.unwrap_or_default();
        check(&asked)?;
        let known = self.quota(&asked.id);
        match (known, put.create) {
            (Some(known), true) => return Err(exists(known)),
            (None, false) => return Err(Refused::quota_not_found(&asked.id)),
            (Some(known), false) => check_etag("quota", &known.id, known.revision, &put.etag)?,
            (None, true) if self.quotas.len() >= QUOTAS_MAX => {
                let message = format!("the cluster has {QUOTAS_MAX} quotas, the most it can have");
                return Err(refusal(ErrorReason::Limit, message, vec![]));
            }
            (None, true) => {}
        }
        let create_time_ms = known.map_or(now_ms, |known| known.create_time_ms);
        let quota =
            QuotaRecord { create_time_ms, update_time_ms: now_ms, revision: index, ..asked };
        self.volumes.followed_mut().count_for(&quota);
        self.quotas.insert(quota.id.clone(), quota.clone());
        Ok(Outcome::Quota(quota))
    }

    pub(crate) fn delete_quota(&mut self, delete: &DeleteQuota) -> Result<Outcome, Refused> {
        let known = self.quota(&delete.id).ok_or_else(|| Refused::quota_not_found(&delete.id))?;
        check_etag("quota", &known.id, known.revision, &delete.etag)?;
        self.quotas.remove(&delete.id);
        self.volumes.followed_mut().count_no_more(&delete.id);
        Ok(Outcome::Nothing)
    }
}

impl Refused {
    /// There is no such quota.
    pub fn quota_not_found(id: &str) -> Refused {
        let shown = id.escape_debug().to_string();
        refusal(
            ErrorReason::QuotaNotFound,
            format!("there is no quota '{shown}'; 'basalt quota list' shows those that there are"),
            vec![("quota", shown)],
        )
    }
}

/// Whether a quota with this selector counts a volume with these labels.
pub(crate) fn selects(
    selector: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn check(quota: &QuotaRecord) -> Result<(), Refused> {
    let invalid = |field: &str, message: String| {
        refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
    };
    rules::check_plain_id(&quota.id, "quota").map_err(|e| invalid("quota_id", e))?;
    rules::check_description(&quota.description).map_err(|e| invalid("description", e))?;
    rules::check_labels(quota.labels.iter()).map_err(|e| invalid("labels", e))?;
    rules::check_labels(quota.selector.iter()).map_err(|e| invalid("selector", e))
}

pub(crate) fn exceeded(quota: &QuotaRecord, what: &str, wanted: u64, most: u64) -> Refused {
    refusal(
        ErrorReason::QuotaExceeded,
        format!(
            "the quota '{}' allows {most} {what}, and there would be {wanted}; delete what is not needed, or raise \
             it ('basalt quota update {}')",
            quota.id, quota.id
        ),
        vec![
            ("quota", quota.id.clone()),
            ("what", what.to_owned()),
            ("wanted", wanted.to_string()),
            ("most", most.to_string()),
        ],
    )
}

fn exists(known: &QuotaRecord) -> Refused {
    refusal(
        ErrorReason::QuotaExists,
        format!("the quota '{}' exists already; choose another name, or update it", known.id),
        vec![("quota", known.id.clone())],
    )
}
