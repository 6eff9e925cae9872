//! The memory that opening may take: a checkpoint of hundreds of thousands of tensors is refused while its headers are
//! read, before its modules are found and planned.

use crate::container::safetensors::header::Header;
use crate::{Error, Result};

/// A limit on memory, and what of it the tensors take that were met so far.
#[derive(Clone, Debug)]
pub struct Room {
    /// The limit in bytes.
    given: u64,
    /// Bytes that other things take.
    beside: u64,
    /// Bytes that the tensors take.
    taken: u64,
    tensors: u64,
    /// Bytes that a tensor takes besides its name, and that a byte of its name takes.
    each: [u64; 2],
}

impl Room {
    /// `given` bytes, of which other things take `beside`. `each` is what a tensor takes, and what a byte of its name
    /// takes.
    pub fn new(given: u64, beside: u64, each: [u64; 2]) -> Room {
        Room { given, beside, taken: 0, tensors: 0, each }
    }

    /// Room for anything.
    pub(crate) fn boundless() -> Room {
        Room::new(u64::MAX, 0, [0, 0])
    }

    /// Counts the tensors of a header. Where there is no room for them, the header is emptied: only the count remains.
    pub(crate) fn count(&mut self, header: &mut Header) {
        let [tensor, byte] = self.each;
        let names: u64 = header.tensors.iter().map(|(stored, _)| stored.name.len() as u64).sum();
        self.tensors += header.tensors.len() as u64;
        self.taken = self.taken.saturating_add(tensor * header.tensors.len() as u64 + byte * names);
        if self.taken > self.given {
            header.tensors = Vec::new();
        }
    }

    /// Checks that there was room for all that was counted. If only the other things leave too little, the plan reports
    /// the exact number later.
    ///
    /// # Errors
    /// [`Kind::Decide`](crate::Kind::Decide) where there was not. Work needs more than what is named here.
    pub(crate) fn check(&self) -> Result<()> {
        if self.taken <= self.given {
            return Ok(());
        }
        let (given, least) = (self.given >> 20, self.taken.saturating_add(self.beside).div_ceil(1 << 20));
        let what = format!("not enough memory: {given} MiB given, at least {least} MiB needed");
        let hint =
            format!("its {} tensors alone take as much: give --memory {least}MiB or more", self.tensors);
        Err(Error::decide(what).hint(hint))
    }
}
