//! Sizes, shares and durations as people write and read them.

use std::fmt;
use std::time::Duration;

/// The largest size: the largest integer of SQLite and TOML.
const MAX_SIZE: u64 = i64::MAX as u64;

/// The longest duration: longer than the life of a machine, and short enough that no clock overflows.
pub(super) const LONGEST: Duration = Duration::from_secs(100 * 31_557_600);

/// The duration that `30s`, `2m`, `1h 30m` or `30d` names.
pub(super) fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text.trim()).ok()
}

/// The number of bytes that `512`, `32KiB`, `1GiB` or `64MB` names. The last is decimal; the case does not matter.
pub(super) fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let factor = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|&n| n <= MAX_SIZE)
}

/// The free space that must be left: a share of the file system, or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// A share of the file system in hundredths of a percent, fine enough for half a percent of a large disk.
    Share(u16),
    /// A number of bytes, independent of the size of the file system.
    Bytes(u64),
}

impl MinFree {
    const WHOLE: u16 = 100 * 100;

    /// Parses `2%`, `0.5%`, `1GiB` or `1073741824`.
    pub fn parse(text: &str) -> Option<MinFree> {
        let Some(percent) = text.trim().strip_suffix('%') else { return size(text).map(MinFree::Bytes) };
        let percent: f64 = percent.trim_end().parse().ok()?;
        // In this range the cast is exact.
        (0.0..=100.0).contains(&percent).then(|| MinFree::Share((percent * 100.0).round() as u16))
    }

    /// The number of bytes on a file system of `total` bytes.
    pub fn bytes(&self, total: u64) -> u64 {
        match *self {
            MinFree::Bytes(bytes) => bytes,
            MinFree::Share(share) => {
                let bytes = u128::from(total) * u128::from(share) / u128::from(Self::WHOLE);
                u64::try_from(bytes).unwrap_or(total)
            }
        }
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MinFree::Bytes(bytes) => Bytes(bytes).fmt(f),
            MinFree::Share(share) => write!(f, "{}%", f64::from(share) / 100.0),
        }
    }
}

/// A size for people, in binary units with at most one decimal: `512 B`, `1 GiB`, `1.5 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = ["KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        // A value that would be rounded up to 1024 is shown as 1 of the next unit.
        while value >= 1023.95 {
            let Some(next) = units.next() else { break };
            (value, unit) = (value / 1024.0, next);
        }
        let number = format!("{value:.1}");
        let number = number.strip_suffix(".0").unwrap_or(&number);
        let whole = number.split('.').next().map_or(0, str::len);
        // The largest number is that of the PiB of u64::MAX: one separator of thousands is enough.
        match whole.checked_sub(3).filter(|at| *at > 0) {
            Some(at) => write!(f, "{},{} {unit}", &number[..at], &number[at..]),
            None => write!(f, "{number} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_binary_or_decimal() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("32KiB", 32_768),
            ("64MiB", 67_108_864),
            (" 1 GiB ", 1_073_741_824),
            ("2tib", 2 << 40),
            ("5kB", 5_000),
            ("5MB", 5_000_000),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "1K", "1 GiB free", "9223372036854775808", "99999999TiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn durations_name_their_unit() {
        for (text, seconds) in [("0s", 0), ("30s", 30), ("2m", 120), ("1h 30m", 5_400), ("30d", 2_592_000)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "30", "s", "-1s", "2 parsecs", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_minimum_of_free_space_is_a_share_or_bytes() {
        const TB: u64 = 1_000_000_000_000;
        for (text, bytes, shown) in [
            ("2%", 20_000_000_000, "2%"),
            ("0.25 %", 2_500_000_000, "0.25%"),
            ("0%", 0, "0%"),
            ("100%", TB, "100%"),
            ("1GiB", 1 << 30, "1 GiB"),
            ("5", 5, "5 B"),
        ] {
            let min_free = MinFree::parse(text).unwrap();
            assert_eq!((min_free.bytes(TB), min_free.to_string().as_str()), (bytes, shown));
        }
        assert_eq!(MinFree::Share(MinFree::WHOLE).bytes(u64::MAX), u64::MAX);
        for text in ["", "%", "-1%", "101%", "nan%", "inf%", "2 percent"] {
            assert_eq!(MinFree::parse(text), None, "{text}");
        }
    }

    #[test]
    fn bytes_are_shown_in_binary_units() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1_048_575, "1 MiB"),
            (1_572_864, "1.5 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16,384 PiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }
}
