//! Changes of single fields of a volume.

use crate::rules;
use crate::state::{MetaState, Outcome, Refused, being_deleted, check_etag, find, refusal};
use basalt_api::meta::v1::{ResizeVolume, UpdateVolume, VolumeRecord};
use basalt_api::v1::ErrorReason;

/// The fields that can be changed.
pub const VOLUME_FIELDS: [&str; 5] = ["labels", "qos", "storage_class", "size_bytes", "failover"];

impl MetaState {
    /// All of it, or nothing.
    pub(crate) fn update_volume(
        &mut self,
        index: u64,
        update: UpdateVolume,
    ) -> Result<Outcome, Refused> {
        let invalid = |field: &str, message: String| {
            refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
        };
        if let Some(other) = update.fields.iter().find(|f| !VOLUME_FIELDS.contains(&f.as_str())) {
            let message = format!(
                "'{}' is no field of a volume that can be changed; those are {}",
                other.escape_debug(),
                VOLUME_FIELDS.join(", ")
            );
            return Err(invalid("update_mask", message));
        }
        let changes = |field: &str| update.fields.iter().any(|name| name == field);
        rules::check_labels(update.labels.iter()).map_err(|e| invalid("labels", e))?;
        rules::check_qos(update.qos.as_ref()).map_err(|e| invalid("qos", e))?;
        let class = match update.storage_class.as_str() {
            "" => String::new(),
            asked => self.class_for(asked)?,
        };
        let known = self.volume(&update.id).ok_or_else(|| Refused::volume_not_found(&update.id))?;
        check_etag(known, &update.etag)?;
        if known.deleting {
            return Err(being_deleted(&update.id, "changed"));
        }
        if changes("storage_class") {
            self.check_class_fits(known, &class)?;
        }
        let labels = if changes("labels") { &update.labels } else { &known.labels };
        let size_bytes = if changes("size_bytes") { update.size_bytes } else { known.size_bytes };
        self.check_quotas(&update.id, labels, size_bytes)?;
        let becomes = VolumeRecord {
            labels: labels.clone(),
            qos: if changes("qos") { update.qos } else { known.qos },
            storage_class: if changes("storage_class") {
                class.clone()
            } else {
                known.storage_class.clone()
            },
            ..known.clone()
        };
        if self.effective_qos(&becomes).iops_min > 0 {
            self.check_minimums(Some(&becomes), None)?;
        }
        if size_bytes != known.size_bytes {
            // Refused as a whole, so it goes first: nothing else is refused from here on.
            let (id, etag) = (update.id.clone(), String::new());
            self.resize_volume(index, ResizeVolume { id, size_bytes, etag })?;
        }
        let mut volume = find(&mut self.volumes, &update.id)?;
        let settled =
            |v: &VolumeRecord| (v.labels.clone(), v.qos, v.storage_class.clone(), v.failover);
        let before = settled(&volume);
        if update.fields.iter().any(|name| name == "labels") {
            volume.labels = update.labels;
        }
        if update.fields.iter().any(|name| name == "qos") {
            volume.qos = update.qos;
        }
        if update.fields.iter().any(|name| name == "storage_class") {
            volume.storage_class = class;
        }
        if update.fields.iter().any(|name| name == "failover") {
            volume.failover = update.failover;
        }
        if before != settled(&volume) {
            volume.revision = index;
        }
        Ok(Outcome::Volume(volume.clone()))
    }
}
