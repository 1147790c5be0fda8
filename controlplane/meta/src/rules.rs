//! What names, hosts, sizes and labels may be.

use basalt_api::v1::Qos;

/// Bytes in a block; sizes are multiples of it.
const BLOCK: u64 = 4096;
/// The largest volume: 1 PiB.
const SIZE_MAX: u64 = 1 << 50;
/// The least bandwidth that a volume can be held to: less than one large request a second.
const BANDWIDTH_LEAST: u64 = 1 << 20;
/// The longest description.
const DESCRIPTION_MAX: usize = 1024;
/// The most labels of a volume.
const LABELS_MAX: usize = 64;

/// Whether `id` may be the last part of a volume's name.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_volume_id(id: &str) -> Result<(), String> {
    check_id(id, "volume")
}

/// Whether `id` may be the last part of a snapshot's name.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_snapshot_id(id: &str) -> Result<(), String> {
    check_id(id, "snapshot")
}

/// Whether `id` may be the last part of a token's name.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_token_id(id: &str) -> Result<(), String> {
    check_id(id, "token")
}

fn check_id(id: &str, what: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let first = id.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    if first && id.len() <= 63 && id.chars().all(inner) && !id.ends_with('-') {
        return Ok(());
    }
    Err(format!(
        "'{}' can not name a {what}: use 1 to 63 of a-z, 0-9 and '-', a letter first and no '-' last",
        id.escape_debug()
    ))
}

/// Whether `host` may have an attachment.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_host(host: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !host.is_empty() && host.len() <= 63 && host.chars().all(good) {
        return Ok(());
    }
    Err(format!(
        "'{}' can not name a host: use 1 to 63 letters, digits, '-', '_', '.' and ':'",
        host.escape_debug()
    ))
}

/// Whether a volume may have so many bytes.
///
/// # Errors
/// Says what is wrong.
pub fn check_size(bytes: u64) -> Result<(), String> {
    if bytes == 0 || bytes > SIZE_MAX || !bytes.is_multiple_of(BLOCK) {
        return Err(format!(
            "a volume can not have {bytes} bytes: give a multiple of {BLOCK}, at most 1 PiB"
        ));
    }
    Ok(())
}

/// Whether a volume, or those of a class, may have these bounds.
pub(crate) fn check_qos(qos: Option<&Qos>) -> Result<(), String> {
    let Some(qos) = qos else { return Ok(()) };
    let burst = |bound: u64, burst: u64, what: &str| {
        if burst != 0 && bound == 0 {
            return Err(format!("a burst of {what} without a bound on them: give {what}_max too"));
        }
        Ok(())
    };
    burst(qos.iops_max, qos.iops_burst, "iops")?;
    burst(qos.bandwidth_max, qos.bandwidth_burst, "bandwidth")?;
    if qos.iops_max != 0 && qos.iops_min > qos.iops_max {
        return Err(format!(
            "a guaranteed minimum of {} requests a second is more than the bound of {}: raise iops_max or lower \
             iops_min",
            qos.iops_min, qos.iops_max
        ));
    }
    if qos.bandwidth_max != 0 && qos.bandwidth_max < BANDWIDTH_LEAST {
        return Err(format!(
            "a bandwidth_max of {} bytes a second is less than {BANDWIDTH_LEAST}, the least there can be",
            qos.bandwidth_max
        ));
    }
    Ok(())
}

/// Whether `id` may be the last part of the name of a storage class or a quota.
pub(crate) fn check_plain_id(id: &str, what: &str) -> Result<(), String> {
    check_id(id, what)
}

/// Whether a description may be this long.
pub(crate) fn check_description(text: &str) -> Result<(), String> {
    match text.len() {
        0..=DESCRIPTION_MAX => Ok(()),
        long => Err(format!("a description of {long} bytes is longer than {DESCRIPTION_MAX}")),
    }
}

/// Whether a volume may have these labels.
pub(crate) fn check_labels<'a>(
    labels: impl ExactSizeIterator<Item = (&'a String, &'a String)>,
) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels are more than {LABELS_MAX}", labels.len()));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > 63 || value.len() > 255 {
            return Err(format!(
                "the label '{}' is out of bounds: keys have 1 to 63 bytes, values up to 255",
                key.escape_debug()
            ));
        }
    }
    Ok(())
}
