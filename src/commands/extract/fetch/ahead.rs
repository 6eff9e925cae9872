//! What is read next, told to the link in the order of the work.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::catalogue::Tensor;
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::plan::{PlannedLeftover, PlannedModule};
use crate::storage::link_backlog;

/// How much is announced ahead of the work that has begun: more than any link's blocks take.
const AHEAD: u64 = 512 << 20;

/// Tensors are announced in pieces of this size, those of the two sides in turns.
const PIECE: u64 = 4 << 20;

/// The modules and comparisons of a run in their order, of which those ahead are announced.
pub(crate) struct Ahead<'a> {
    inputs: &'a Inputs,
    order: Vec<Read<'a>>,
    /// The place of each in it.
    places: HashMap<usize, usize>,
    state: Mutex<State>,
}

/// What is read of both sides.
#[derive(Clone, Copy)]
pub(crate) enum Read<'a> {
    Module(&'a PlannedModule),
    Compared(&'a PlannedLeftover),
}

#[derive(Default)]
struct State {
    next: usize,
    begun: HashSet<usize>,
}

impl<'a> Ahead<'a> {
    /// For work in this order.
    pub(crate) fn new(inputs: &'a Inputs, order: Vec<Read<'a>>) -> Ahead<'a> {
        let remote = inputs.base.is_remote() || inputs.tuned.is_remote();
        let order = if remote { order } else { Vec::new() };
        let places = order.iter().enumerate().map(|(at, read)| (read.key(), at)).collect();
        Ahead { inputs, order, places, state: Mutex::default() }
    }

    /// This work begins: it is wanted now, and what comes after it soon.
    pub(crate) fn begin(&self, read: Read<'_>) {
        let Some(at) = self.places.get(&read.key()).copied() else { return };
        for (checkpoint, tensor, range) in read.pieces(self.inputs) {
            checkpoint.prefetch(tensor, range);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.begun.insert(at);
        while link_backlog() < AHEAD
            && let Some(read) = self.order.get(state.next)
        {
            if !state.begun.contains(&state.next) {
                for (checkpoint, tensor, range) in read.pieces(self.inputs) {
                    checkpoint.prefetch_later(tensor, range);
                }
            }
            state.next += 1;
        }
    }
}

type Piece<'a> = (&'a Checkpoint, &'a Tensor, Range<u64>);

impl Read<'_> {
    /// Where the plan has it, which is nowhere else.
    fn key(&self) -> usize {
        match self {
            Read::Module(module) => std::ptr::from_ref(*module).addr(),
            Read::Compared(left) => std::ptr::from_ref(*left).addr(),
        }
    }

    /// The pieces of both sides in the order in which they are read, and a pass over each tensor begun.
    fn pieces<'a>(&self, inputs: &'a Inputs) -> Vec<Piece<'a>> {
        let (base, tuned) = match self {
            Read::Module(module) => (Some(&*module.name), Some(&*module.pair.tuned)),
            Read::Compared(left) => (left.leftover.base.as_deref(), left.leftover.tuned.as_deref()),
        };
        let (Some(base), Some(tuned)) = (base, tuned) else { return Vec::new() };
        if matches!(self, Read::Compared(left) if left.read_bytes == 0) {
            return Vec::new();
        }
        let mut pieces = Vec::new();
        for (checkpoint, name) in [(&inputs.base, base), (&inputs.tuned, tuned)] {
            if !checkpoint.is_remote() {
                continue;
            }
            let extents: Vec<(&Tensor, Range<u64>)> = match (checkpoint.module(name), checkpoint.tensor(name))
            {
                (Some(module), _) => module.extents().collect(),
                (None, Some(tensor)) => vec![(tensor, 0..tensor.size())],
                (None, None) => Vec::new(),
            };
            for (tensor, extent) in extents {
                checkpoint.begin_pass(tensor, extent.clone());
                let length = (extent.end - extent.start).max(1) as f64;
                for start in extent.clone().step_by(PIECE as usize) {
                    let piece = start..(start + PIECE).min(extent.end);
                    pieces.push(((start - extent.start) as f64 / length, (checkpoint, tensor, piece)));
                }
            }
        }
        // A stable sort: among pieces of the same place, scales follow their weight.
        pieces.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        pieces.into_iter().map(|(_, piece)| piece).collect()
    }
}
