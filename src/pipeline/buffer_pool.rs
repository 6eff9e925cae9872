//! The memory that holds deltas: hundreds of MiB, written once and read many times, then reused for the next module of
//! the same size. Fresh memory must be found, cleared and counted page by page, which for a large module costs as much
//! as reading it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use memmap2::MmapMut;

use crate::{Error, Result};

/// A buffer of f32 values, in huge pages if the system provides them.
#[derive(Debug)]
pub struct HugeBuffer {
    map: Option<MmapMut>,
}

impl HugeBuffer {
    /// A buffer of `values` zeros.
    ///
    /// # Errors
    /// The system does not have that much memory.
    pub fn zeroed(values: usize) -> Result<HugeBuffer> {
        let Some(bytes) = values.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0) else {
            return Ok(HugeBuffer { map: None });
        };
        let map = MmapMut::map_anon(bytes).map_err(|e| {
            Error::unexpected(format!("cannot allocate {} MiB of memory", bytes >> 20))
                .because(e)
                .hint("give a lower --memory")
        })?;
        // If the advice is not taken, only time is lost.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(HugeBuffer { map: Some(map) })
    }
}

/// Buffers that nothing holds at the moment. Their bytes are under no permit: whoever takes a permit must free as many.
#[derive(Debug, Default)]
pub struct Slabs {
    idle: Mutex<Vec<HugeBuffer>>,
}

impl Slabs {
    /// A buffer of `values` values with arbitrary content, for a caller that holds a permit for them. `free` is the
    /// number of bytes not covered by any permit: idle buffers beyond it are returned to the system first.
    ///
    /// # Errors
    /// The system does not have that much memory.
    pub fn obtain(&self, values: usize, free: u64) -> Result<HugeBuffer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let again = idle.iter().position(|slab| slab.len() == values).map(|index| idle.swap_remove(index));
        trim(&mut idle, free);
        drop(idle);
        again.map_or_else(|| HugeBuffer::zeroed(values), Ok)
    }

    /// Frees the idle buffers beyond `free` bytes. Call this after taking any permit, before its bytes are used.
    pub fn trim(&self, free: u64) {
        trim(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner), free);
    }

    /// Keeps a buffer for the next module of the same size. Call this while its permit is still held.
    pub fn give_back(&self, slab: HugeBuffer) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(slab);
    }
}

fn trim(idle: &mut Vec<HugeBuffer>, free: u64) {
    while idle.iter().map(|slab| 4 * slab.len() as u64).sum::<u64>() > free {
        idle.remove(0);
    }
}

impl Deref for HugeBuffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.map.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

impl DerefMut for HugeBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.map.as_deref_mut().map_or(&mut [], bytemuck::cast_slice_mut)
    }
}

impl AsRef<[f32]> for HugeBuffer {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::{HugeBuffer, Slabs};

    #[test]
    fn an_idle_slab_serves_again_within_what_is_free() {
        let (slabs, mib) = (Slabs::default(), 1 << 18);
        let mut slab = slabs.obtain(mib, 0).unwrap();
        slab[0] = 3.0;
        slabs.give_back(slab);
        let again = slabs.obtain(mib, 0).unwrap();
        assert_eq!(again[0], 3.0, "the same memory");
        slabs.give_back(again);
        slabs.trim(1 << 20);
        assert_eq!(slabs.idle.lock().unwrap().len(), 1);
        assert_eq!(slabs.obtain(2 * mib, (1 << 20) - 1).unwrap().len(), 2 * mib);
        assert!(slabs.idle.lock().unwrap().is_empty(), "its bytes are under another's permit");
    }

    #[test]
    fn begins_as_zeros_and_keeps_what_is_written() {
        let mut slab = HugeBuffer::zeroed(3 << 20).unwrap();
        assert!(slab.len() == 3 << 20 && slab.iter().all(|&v| v == 0.0));
        slab[(3 << 20) - 1] = 2.5;
        assert_eq!(slab.iter().sum::<f32>(), 2.5);
        assert!(HugeBuffer::zeroed(0).unwrap().is_empty());
        assert!(HugeBuffer::zeroed(1 << 60).unwrap_err().cure().is_some());
    }
}
