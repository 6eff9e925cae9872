//! The peak resident set of this process.

/// The peak resident set so far in bytes; `None` where the system does not say it in a file, as outside Linux.
pub fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_peak_is_at_least_what_is_touched_now() {
        let block = vec![1u8; 32 << 20];
        let peak = super::peak_resident().unwrap();
        assert!(peak > block.iter().map(|&byte| u64::from(byte)).sum::<u64>());
    }
}
