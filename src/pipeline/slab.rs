//! The memory that holds a delta: hundreds of MiB, written once and read many times.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::{Error, Result};

/// Zeros of f32, in huge pages where the system lends them: in pages of 4 KiB it would clear and count a hundred thousand of them
/// for every module, and give them back one by one.
#[derive(Debug)]
pub struct Slab {
    map: Option<MmapMut>,
}

impl Slab {
    /// So many zeros.
    ///
    /// # Errors
    /// The system has not that much memory.
    pub fn zeroed(values: usize) -> Result<Slab> {
        let Some(bytes) = values.checked_mul(size_of::<f32>()).filter(|&bytes| bytes > 0) else {
            return Ok(Slab { map: None });
        };
        let map = MmapMut::map_anon(bytes).map_err(|e| {
            Error::unexpected(format!("{} MiB of memory cannot be had", bytes >> 20))
                .because(e)
                .hint("a lower --memory holds less")
        })?;
        // Advice that is not taken costs time only.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Slab { map: Some(map) })
    }
}

impl Deref for Slab {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.map.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.map.as_deref_mut().map_or(&mut [], bytemuck::cast_slice_mut)
    }
}

impl AsRef<[f32]> for Slab {
    fn as_ref(&self) -> &[f32] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn begins_as_zeros_and_keeps_what_is_written() {
        let mut slab = Slab::zeroed(3 << 20).unwrap();
        assert!(slab.len() == 3 << 20 && slab.iter().all(|&v| v == 0.0));
        slab[(3 << 20) - 1] = 2.5;
        assert_eq!(slab.iter().sum::<f32>(), 2.5);
        assert!(Slab::zeroed(0).unwrap().is_empty());
        assert!(Slab::zeroed(1 << 60).unwrap_err().cure().is_some());
    }
}
