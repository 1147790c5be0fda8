//! What names, hosts, sizes and labels may be.

/// Bytes in a block; sizes are multiples of it.
const BLOCK: u64 = 4096;
/// The largest volume: 1 PiB.
const SIZE_MAX: u64 = 1 << 50;
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
