//! Keeps freed memory from staying resident.

/// Makes glibc return every large block to the system when it is freed. By default, glibc raises the size from which it
/// does so while the program runs, and keeps blocks of up to 32 MiB, so that no limit on resident memory could be kept.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn return_freed_blocks() {
    const BLOCK: i32 = 1 << 20;
    const TOP: i32 = 16 << 20;
    // SAFETY: mallopt only sets parameters of the allocator; it is called before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, BLOCK);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TOP);
    }
}

/// Other allocators return large blocks on their own.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_freed_blocks() {}
