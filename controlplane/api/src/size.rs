//! Sizes as people write them: `1GiB`, `512M`, `4096`.

const UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Bytes from a size with an optional unit: B, K, KiB, M, MiB, G, GiB, T, TiB, all powers of 1024,
/// in capitals or not.
///
/// # Errors
/// Says what is wrong and what would be right.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS.iter().find_map(|(name, factor)| {
        let name = name.to_ascii_lowercase();
        let short = name.trim_end_matches("ib");
        (unit == name || unit == short || (unit.is_empty() && *factor == 1)).then_some(*factor)
    });
    let help = "write a whole number and a unit, such as 512MiB, 1GiB or 2TiB";
    let factor = factor.ok_or_else(|| match unit.as_str() {
        "kb" | "mb" | "gb" | "tb" => {
            format!("'{text}' is in decimal units, which are not supported; {help}")
        }
        _ => format!("'{text}' is not a size; {help}"),
    })?;
    let number: u64 = number.parse().map_err(|_| format!("'{text}' is not a size; {help}"))?;
    number.checked_mul(factor).ok_or_else(|| format!("'{text}' is too large"))
}

/// A size for people: the largest unit of which it is at least one, exact where that is short.
pub fn show(bytes: u64) -> String {
    let (unit, factor) =
        UNITS.iter().rev().copied().find(|(_, factor)| bytes >= *factor).unwrap_or(UNITS[0]);
    if bytes.is_multiple_of(factor) {
        return format!("{} {unit}", bytes / factor);
    }
    format!("{:.1} {unit}", bytes as f64 / factor as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let good = [
            ("4096", 4096),
            ("1GiB", 1 << 30),
            ("1g", 1 << 30),
            ("512 MiB", 512 << 20),
            ("2TIB", 2 << 40),
            ("3K", 3 << 10),
            ("7B", 7),
        ];
        for (text, bytes) in good {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "1GB", "1XiB", "99999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("1GB").unwrap_err().contains("decimal"));
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(show(1 << 30), "1 GiB");
        assert_eq!(show((1 << 30) + (1 << 29)), "1.5 GiB");
        assert_eq!(show(0), "0 B");
        assert_eq!(show(4097), "4.0 KiB");
    }
}
