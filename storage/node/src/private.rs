//! Memory with keys in it.

/// Keeps a value's memory from being written to a swap device, as far as the process may lock memory, and the
/// process from leaving a core file behind. Both are best effort; says whether both came to be.
pub fn keep_private<T>(value: &T) -> bool {
    // SAFETY: the range is that of a live value; locking its pages changes nothing of what is in them. They stay
    // locked until the process ends, whatever they hold by then.
    let locked = unsafe { libc::mlock(std::ptr::from_ref(value).cast(), size_of::<T>()) } == 0;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a live value that is only read; a lower limit takes effect on core files alone.
    let undumped = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } == 0;
    locked && undumped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_core_file_is_left() {
        let value = [7u8; 64];
        keep_private(&value);
        let limits = std::fs::read_to_string("/proc/self/limits").expect("there is one");
        let line = limits.lines().find(|line| line.starts_with("Max core file size"));
        let words: Vec<&str> = line.expect("a limit").split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"]);
        assert_eq!(value, [7; 64]);
    }
}
