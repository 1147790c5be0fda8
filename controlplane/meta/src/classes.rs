//! Storage classes: what volumes of one kind have in common.

use crate::rules;
use crate::state::{MetaState, Outcome, Refused, refusal};
use basalt_api::meta::v1::{ClassRecord, DeleteClass, PutClass, VolumeRecord};
use basalt_api::v1::{ErrorReason, Qos};

/// The most classes of a cluster.
const CLASSES_MAX: usize = 256;

/// The etag of a record that is only ever changed as a whole.
pub fn etag_of_revision(revision: u64) -> String {
    format!("r{revision}")
}

impl MetaState {
    /// The storage classes in the order of their names.
    pub fn classes(&self) -> impl Iterator<Item = &ClassRecord> {
        self.classes.values()
    }

    /// A storage class by the last part of its name.
    pub fn class(&self, id: &str) -> Option<&ClassRecord> {
        self.classes.get(id)
    }

    /// How many volumes have a class.
    pub fn volumes_of_class(&self, id: &str) -> usize {
        self.volumes.followed().of_class(id).count()
    }

    /// The bounds that hold for a volume: its own, and those of its class where it has none.
    pub fn effective_qos(&self, volume: &VolumeRecord) -> Qos {
        self.qos_within(volume, self.class(&volume.storage_class))
    }

    /// The same if its class were as given.
    pub(crate) fn qos_within(&self, volume: &VolumeRecord, class: Option<&ClassRecord>) -> Qos {
        let own = volume.qos.unwrap_or_default();
        let class = class.and_then(|class| class.qos).unwrap_or_default();
        let or = |own: u64, class: u64| if own == 0 { class } else { own };
        let iops_max = or(own.iops_max, class.iops_max);
        let most = if iops_max == 0 { u64::MAX } else { iops_max };
        Qos {
            iops_max,
            // The bound of one may be below the minimum of the other.
            iops_min: or(own.iops_min, class.iops_min).min(most),
            iops_burst: or(own.iops_burst, class.iops_burst),
            bandwidth_max: or(own.bandwidth_max, class.bandwidth_max),
            bandwidth_burst: or(own.bandwidth_burst, class.bandwidth_burst),
        }
    }

    /// The class of a new volume: the one that was named, or the default one.
    pub(crate) fn class_for(&self, asked: &str) -> Result<String, Refused> {
        if asked.is_empty() {
            let default = self.classes.values().find(|class| class.is_default);
            return Ok(default.map_or_else(String::new, |class| class.id.clone()));
        }
        match self.class(asked) {
            Some(class) => Ok(class.id.clone()),
            None => Err(Refused::class_not_found(asked)),
        }
    }

    pub(crate) fn put_class(
        &mut self,
        (index, now_ms): (u64, i64),
        put: PutClass,
    ) -> Result<Outcome, Refused> {
        let asked = put.class.unwrap_or_default();
        check(&asked)?;
        let known = self.class(&asked.id);
        match (known, put.create) {
            (Some(known), true) => return Err(exists(known)),
            (None, false) => return Err(Refused::class_not_found(&asked.id)),
            (Some(known), false) => {
                check_etag("storage class", &known.id, known.revision, &put.etag)?;
                if known.encrypted != asked.encrypted {
                    let message = format!(
                        "whether the volumes of the storage class '{}' are encrypted is never changed; make \
                         another class",
                        known.id
                    );
                    let facts = vec![("field", "encrypted".to_owned())];
                    return Err(refusal(ErrorReason::EncryptionDiffers, message, facts));
                }
            }
            (None, true) if self.classes.len() >= CLASSES_MAX => {
                let message =
                    format!("the cluster has {CLASSES_MAX} storage classes, the most it can have");
                return Err(refusal(ErrorReason::Limit, message, vec![]));
            }
            (None, true) => {}
        }
        let minimum = |class: &ClassRecord| class.qos.map_or(0, |qos| qos.iops_min);
        if minimum(&asked) > known.map_or(0, minimum) {
            self.check_minimums(None, Some(&asked))?;
        }
        let create_time_ms = known.map_or(now_ms, |known| known.create_time_ms);
        let class =
            ClassRecord { create_time_ms, update_time_ms: now_ms, revision: index, ..asked };
        if class.is_default {
            let others = self.classes.values().filter(|other| other.is_default);
            let others: Vec<String> = others.map(|other| other.id.clone()).collect();
            self.classes.change_each(others, |other| {
                other.is_default = false;
                other.revision = index;
            });
        }
        self.classes.insert(class.id.clone(), class.clone());
        self.touch_volumes_of_class(&class.id);
        Ok(Outcome::Class(class))
    }

    /// What a volume may do is shown with it, and changes with its class.
    fn touch_volumes_of_class(&mut self, id: &str) {
        let of_class = self.volumes.followed().of_class(id);
        let names: Vec<String> = of_class.map(|volume| volume.id.clone()).collect();
        self.volumes.change_each(names, |_| {});
    }

    pub(crate) fn delete_class(&mut self, delete: &DeleteClass) -> Result<Outcome, Refused> {
        let known = self.class(&delete.id).ok_or_else(|| Refused::class_not_found(&delete.id))?;
        check_etag("storage class", &known.id, known.revision, &delete.etag)?;
        let count = self.volumes_of_class(&delete.id);
        if count > 0 {
            return Err(refusal(
                ErrorReason::StorageClassInUse,
                format!(
                    "{count} volume(s) have the storage class '{}'; give them another one first ('basalt \
                     volume list --filter \"storage_class = \\\"storageClasses/{}\\\"\"')",
                    delete.id, delete.id
                ),
                vec![("storage_class", delete.id.clone()), ("volumes", count.to_string())],
            ));
        }
        self.classes.remove(&delete.id);
        Ok(Outcome::Nothing)
    }
}

impl Refused {
    /// There is no such storage class.
    pub fn class_not_found(id: &str) -> Refused {
        let shown = id.escape_debug().to_string();
        refusal(
            ErrorReason::StorageClassNotFound,
            format!(
                "there is no storage class '{shown}'; 'basalt class list' shows those that there are"
            ),
            vec![("storage_class", shown)],
        )
    }
}

/// Whether a record is still the one that was meant.
pub(crate) fn check_etag(what: &str, id: &str, revision: u64, etag: &str) -> Result<(), Refused> {
    let now = etag_of_revision(revision);
    if etag.is_empty() || etag == now {
        return Ok(());
    }
    Err(refusal(
        ErrorReason::EtagMismatch,
        format!("the {what} '{id}' changed in between; read it again and decide anew"),
        vec![("id", id.to_owned()), ("etag", now)],
    ))
}

fn check(class: &ClassRecord) -> Result<(), Refused> {
    let invalid = |field: &str, message: String| {
        refusal(ErrorReason::InvalidField, message, vec![("field", field.to_owned())])
    };
    rules::check_plain_id(&class.id, "storage class")
        .map_err(|e| invalid("storage_class_id", e))?;
    rules::check_description(&class.description).map_err(|e| invalid("description", e))?;
    rules::check_labels(class.labels.iter()).map_err(|e| invalid("labels", e))?;
    rules::check_qos(class.qos.as_ref()).map_err(|e| invalid("qos", e))
}

fn exists(known: &ClassRecord) -> Refused {
    refusal(
        ErrorReason::StorageClassExists,
        format!(
            "the storage class '{}' exists already; choose another name, or update it",
            known.id
        ),
        vec![("storage_class", known.id.clone())],
    )
}
