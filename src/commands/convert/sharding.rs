//! Which tensor goes into which file, and in which pieces a file is produced.

use std::ops::Range;

use crate::checkpoint::catalogue::{FileId, Tensor};
use crate::checkpoint::module::Module;
use crate::quant::encode::fp8::FP8_BLOCK;
use crate::quant::weight::TensorInfo;
use crate::shared::Name;

/// The default for the largest weight file, in bytes: transformers used it for years, and many tools and file systems
/// handle it well.
pub const DEFAULT_SHARD_SIZE: u64 = 5_000_000_000;

/// Elements of a weight that one thread computes at a time, approximately.
const PIECE: usize = 1 << 20;

/// Bytes of a copied tensor that are mapped at a time.
pub(crate) const COPY: u64 = 2 << 20;

/// Where the bytes of a tensor come from.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// A tensor of the base, unchanged.
    Base(Tensor),
    /// A tensor of the adapter, unchanged.
    Adapter(Tensor),
    /// The dense form of a stack of experts, computed and rounded.
    Stack(Module),
    /// The weight of a module, computed and rounded.
    Weight(Computed),
    /// The same as e4m3 codes.
    Codes(Computed),
    /// The scales of these codes.
    Scales(Computed),
}

/// A module whose weight is computed.
#[derive(Clone, Debug)]
pub(crate) struct Computed {
    /// Its name in the output: that of the head where a head is made from the embedding.
    pub name: Name,
    /// Where its values come from.
    pub module: Module,
}

/// One tensor of the output.
#[derive(Clone, Debug)]
pub(crate) struct OutTensor {
    /// Name, dtype, shape.
    pub stored: TensorInfo,
    /// Where its bytes come from.
    pub content: Content,
}

impl OutTensor {
    /// A copy of a tensor of the base.
    pub fn copy(tensor: &Tensor) -> OutTensor {
        OutTensor { stored: tensor.stored.clone(), content: Content::Base(tensor.clone()) }
    }

    /// The module that it is computed from, if it is.
    pub fn module(&self) -> Option<&Module> {
        match &self.content {
            Content::Stack(stack) => Some(stack),
            Content::Weight(of) | Content::Codes(of) | Content::Scales(of) => Some(&of.module),
            Content::Base(_) | Content::Adapter(_) => None,
        }
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        (self.stored.shape.iter().product::<usize>() * self.stored.dtype.bitsize() / 8) as u64
    }
}

/// Tensors that belong in the same file, and where the first of them comes from.
#[derive(Debug)]
pub(crate) struct Unit {
    /// File of the base and offset in it.
    pub place: (FileId, u64),
    /// One tensor, or codes with their scales.
    pub tensors: Vec<OutTensor>,
}

/// One weight file.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Its name.
    pub name: String,
    /// Its tensors, in file order.
    pub tensors: Vec<OutTensor>,
    /// Bytes of the tensors.
    pub bytes: u64,
}

/// Fills one file after another in the order of `units`. Only a unit that is larger by itself makes a file larger than
/// `largest` bytes.
pub(crate) fn shards(units: Vec<Unit>, largest: u64) -> Vec<Shard> {
    let mut files: Vec<(u64, Vec<Unit>)> = vec![(0, Vec::new())];
    for unit in units {
        let bytes: u64 = unit.tensors.iter().map(OutTensor::bytes).sum();
        let last = files.len() - 1;
        if !files[last].1.is_empty() && files[last].0 + bytes > largest {
            files.push((0, Vec::new()));
        }
        let last = files.len() - 1;
        files[last].0 += bytes;
        files[last].1.push(unit);
    }
    let count = files.len();
    let shard = |(index, (bytes, units)): (usize, (u64, Vec<Unit>))| {
        let mut tensors: Vec<OutTensor> = units.into_iter().flat_map(|unit| unit.tensors).collect();
        tensors.sort_by(|a, b| order(a).cmp(&order(b)));
        Shard { name: name(index, count), tensors, bytes }
    };
    files.into_iter().enumerate().map(shard).collect()
}

/// The file name, as transformers chooses it.
fn name(index: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

/// The sort key: wide elements first, so that each is aligned, then by name. Scales are known only after their codes,
/// so codes (whole words of them) come before four-byte elements, and scales last among those.
fn order(tensor: &OutTensor) -> (u8, &str) {
    let class = match (&tensor.content, tensor.stored.dtype.bitsize()) {
        (Content::Codes(_), _) => 1,
        (Content::Scales(_), _) => 3,
        (_, 33..) => 0,
        (_, 17..=32) => 2,
        (_, 9..=16) => 4,
        _ => 5,
    };
    (class, &tensor.stored.name)
}

/// A part of a tensor that is produced at once.
#[derive(Clone, Debug)]
pub(crate) enum ShardPiece {
    /// Bytes of a copied tensor.
    Bytes(Range<u64>),
    /// Rows of a computed one.
    Rows(Range<usize>),
    /// The scales of all rows.
    Scales,
}

/// The pieces of a tensor in order; `module` is the one it is computed from.
pub(crate) fn pieces(tensor: &OutTensor, module: Option<&Module>) -> Vec<ShardPiece> {
    match (&tensor.content, module) {
        (Content::Scales(_), _) => vec![ShardPiece::Scales],
        (Content::Base(_) | Content::Adapter(_), _) | (_, None) => {
            let size = tensor.bytes();
            (0..size)
                .step_by(COPY as usize)
                .map(|start| ShardPiece::Bytes(start..(start + COPY).min(size)))
                .collect()
        }
        (_, Some(module)) => {
            let [rows, columns] = module.shape();
            let height = height(columns);
            (0..rows)
                .step_by(height)
                .map(|start| ShardPiece::Rows(start..(start + height).min(rows)))
                .collect()
        }
    }
}

/// Rows of a piece, in whole FP8 blocks.
pub(crate) fn height(columns: usize) -> usize {
    (PIECE / columns.max(1) / FP8_BLOCK[0] * FP8_BLOCK[0]).max(FP8_BLOCK[0])
}

/// The most bytes of a module that one of its pieces maps; zero if the module is mapped whole for all pieces.
pub(crate) fn mapped(module: &Module) -> u64 {
    let [rows, columns] = module.shape();
    if module.is_whole() {
        return 0;
    }
    let height = height(columns);
    // A piece that spans two experts may map more than the first piece does.
    let pieces = (0..rows).step_by(height).map(|start| start..(start + height).min(rows));
    pieces.map(|piece| module.packed_size(piece)).max().unwrap_or(0) as u64
}
