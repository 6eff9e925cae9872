//! The memory that holds a delta: hundreds of MiB, written once and read many times, then used again for the next module of that
//! size. Fresh memory has to be found, cleared and counted page by page, which for a large module costs as much as reading it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use memmap2::MmapMut;

use crate::{Error, Result};

/// Values of f32, in huge pages where the system lends them.
#[derive(Debug)]
pub struct HugeBuffer {
    map: Option<MmapMut>,
}

impl HugeBuffer {
    /// So many zeros.
    ///
    /// # Errors
    /// The system has not that much memory.
    pub fn zeroed(values: usize) -> Result<HugeBuffer> {
        let Some(bytes) = values.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0) else {
            return Ok(HugeBuffer { map: None });
        };
        let map = MmapMut::map_anon(bytes).map_err(|e| {
            Error::unexpected(format!("{} MiB of memory cannot be had", bytes >> 20))
                .because(e)
                .hint("a lower --memory holds less")
        })?;
        // Advice that is not taken costs time only.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(HugeBuffer { map: Some(map) })
    }
}

/// Slabs that nothing holds at the moment. Nobody has a permit for their bytes: whoever takes one has to let go of as many.
#[derive(Debug, Default)]
pub struct Slabs {
    idle: Mutex<Vec<HugeBuffer>>,
}

impl Slabs {
    /// So many values, of whatever content, for a holder of a permit for them. `free` tells how many bytes no permit is out for:
    /// what lies idle beyond them is given back to the system first.
    ///
    /// # Errors
    /// The system has not that much memory.
    pub fn obtain(&self, values: usize, free: u64) -> Result<HugeBuffer> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let again = idle.iter().position(|slab| slab.len() == values).map(|at| idle.swap_remove(at));
        trim(&mut idle, free);
        drop(idle);
        again.map_or_else(|| HugeBuffer::zeroed(values), Ok)
    }

    /// Lets go of what lies idle beyond `free` bytes: to be called after every permit is taken, before its bytes are used.
    pub fn trim(&self, free: u64) {
        trim(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner), free);
    }

    /// Keeps a slab for the next module of that size. To be called while the permit for it is still out.
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
