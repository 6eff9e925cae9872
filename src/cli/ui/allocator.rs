//! Keeps freed memory from staying resident.

/// Makes glibc give every large block back to the system when it is freed. By itself it raises the size from which it
/// does so as the program runs, and keeps up to 32 MiB a block: a promise on resident memory cannot be kept then.
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

/// Other allocators give large blocks back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn return_freed_blocks() {}
