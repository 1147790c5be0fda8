//! How much all volumes together are guaranteed. A sum is made where a minimum is given or raised, over the
//! volumes that
//! a quota counts: that is rare, and there is nothing to be kept up with every other change.

use crate::quotas::{exceeded, selects};
use crate::state::{MetaState, Refused};
use basalt_api::meta::v1::{ClassRecord, QuotaRecord, VolumeRecord};

impl MetaState {
    /// Requests a second that the volumes which a quota counts are guaranteed together.
    pub fn iops_min_of(&self, quota: &QuotaRecord) -> u64 {
        self.promised(quota, None, None)
    }

    /// Whether it may be that a volume, and a class, are as given instead of as they are. What promises no more
    /// than before is
    /// always allowed.
    pub(crate) fn check_minimums(
        &self,
        volume: Option<&VolumeRecord>,
        class: Option<&ClassRecord>,
    ) -> Result<(), Refused> {
        for quota in self.quotas().filter(|quota| quota.max_iops_min > 0) {
            let after = self.promised(quota, volume, class);
            if after > quota.max_iops_min && after > self.promised(quota, None, None) {
                return Err(exceeded(quota, "guaranteed iops", after, quota.max_iops_min));
            }
        }
        Ok(())
    }

    fn promised(
        &self,
        quota: &QuotaRecord,
        volume: Option<&VolumeRecord>,
        class: Option<&ClassRecord>,
    ) -> u64 {
        let others = self.volumes().filter(|other| volume.is_none_or(|v| v.id != other.id));
        let counted = others.chain(volume).filter(|v| selects(&quota.selector, &v.labels));
        let minimums = counted.map(|volume| {
            let class = class.filter(|class| class.id == volume.storage_class);
            self.qos_within(volume, class.or_else(|| self.class(&volume.storage_class))).iops_min
        });
        minimums.fold(0, u64::saturating_add)
    }
}
