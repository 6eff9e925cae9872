//! What one module costs, and what of its delta and of its fetched bytes is held.

use crate::Result;
use crate::calibration::KnownInput;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::module::Module;
use crate::commands::extract::fetch::bytes::Fetched;
use crate::commands::extract::holding::{Holding, Memory};
use crate::commands::extract::inputs::Inputs;
use crate::commands::extract::norm::{self, Work};
use crate::commands::extract::options::Extraction;
use crate::commands::extract::plan::planned::PlannedModule;
use crate::delta::module_record::Minimized;
use crate::delta::pair::Pair;
use crate::factorize::kernel::bytes::codes::words as code_words;
use crate::factorize::kernel::tiling;
use crate::factorize::precision::Precision;
use crate::factorize::types::Method;
use crate::factorize::{code_flops, code_workspace};
use crate::storage::{Kept, has_scratch};

/// The costs of one module.
pub(super) struct Cost {
    pub(super) pair: Pair,
    method: Method,
    pub(super) precision: Precision,
    pub(super) flops: f64,
    pub(super) memory: Memory,
    read_bytes: u64,
    fetched: Fetched,
    /// Whether the tuned weight is read again even where the delta is held.
    tuned_again: bool,
    minimizes: Option<Minimized>,
    calibrated: Option<KnownInput>,
}

impl Cost {
    pub(super) fn of(pair: Pair, inputs: &Inputs, job: &Extraction) -> Result<Cost> {
        let request = job.deciding.request();
        let (m, n) = (pair.rows, pair.shape[1]);
        let k = request.rank.min(m).min(n);
        let served = if inputs.served.is_some() { 2.0 * (m * n * k) as f64 } else { 0.0 };
        let (_, panel_rows) = tiling::panel_rows(m, n);
        // After the factorization itself: the factors as computed, as rounded and as bytes, and the two blocks of twice
        // their width that measure the rounding error.
        let factors = (pair.shape[0] + n) * k * (4 + 4 + 8 + job.deciding.dtype.bytes());
        let bytes = |checkpoint: &Checkpoint, name: &str| checkpoint.module(name).map_or(0, Module::size);
        let kept_for = inputs.served.as_ref().map_or(0, |served| kept(served, &pair.name));
        let dense = inputs.dense.as_ref();
        let kept_dense = dense.map_or(0, |dense| kept(dense, &pair.name) + kept(&inputs.tuned, &pair.tuned));
        let panel = (panel_rows * n * 4) as u64;
        // The change is computed anew at every pass.
        let change = dense.map_or(0, |_| panel * job.running.threads as u64 + kept_dense);
        let calibrated = norm::input(inputs, &pair)?;
        let fetched = Fetched::of(&pair, inputs);
        let Work { method, flops, bytes: workspace } =
            Work::of([m, n], &request, job.running.threads, calibrated.as_ref(), dense.is_some());
        let plain = calibrated.is_none() && dense.is_none();
        let in_bytes = if plain { code_flops(m, n, &request) } else { None };
        let (precision, method, flops) = match (job.deciding.precision, in_bytes) {
            (Precision::F32, _) | (_, None) => (Precision::F32, method, flops),
            (precision, Some(flops)) => (precision, Method::Krylov, flops),
        };
        let memory = Memory {
            delta: (m * n * 4) as u64,
            codes: 4 * code_words(m, n) as u64,
            panel,
            work: workspace.max(factors) as u64 + change,
            code_work: code_workspace(m, n, &request).max(factors) as u64,
            kept: kept(&inputs.base, &pair.name).max(kept_for) + kept(&inputs.tuned, &pair.tuned),
            served: inputs.served.is_some(),
        };
        Ok(Cost {
            precision,
            method,
            flops: flops + served,
            memory,
            read_bytes: bytes(&inputs.base, &pair.name)
                + bytes(&inputs.tuned, &pair.tuned)
                + dense.map_or(0, |dense| bytes(dense, &pair.name) + bytes(&inputs.tuned, &pair.tuned)),
            fetched,
            tuned_again: inputs.served.is_some() || inputs.dense.is_some(),
            minimizes: norm::minimized(inputs, calibrated.as_ref()),
            calibrated,
            pair,
        })
    }

    /// Bytes from a server that are read more than once: both sides of the delta, if that is so; and what is read again
    /// for the served checkpoint or a hybrid.
    fn again(&self, delta: bool) -> u64 {
        let Fetched { base, tuned, served, dense } = self.fetched;
        let sides = [(base, delta), (tuned, delta || self.tuned_again), (served, true), (dense, true)];
        sides.into_iter().filter_map(|(bytes, again)| again.then_some(bytes)).sum()
    }

    /// The least memory that it can be done with.
    pub(super) fn least(&self, threads: usize) -> u64 {
        let least = self.memory.least(self.precision, threads);
        if has_scratch() || self.fetched.all() == 0 {
            return least;
        }
        let held = match self.precision {
            Precision::F32 => Some(self.memory.in_f32(u64::MAX, 1)),
            _ => self.memory.as_values(u64::MAX, threads),
        };
        let recomputed = least + self.again(true);
        held.map_or(recomputed, |held| recomputed.min(held.memory + self.again(false))).max(least)
    }

    /// What is held of the delta, and where its fetched bytes are kept: in memory if they fit.
    fn hold(&self, budget: u64, threads: usize, in_bytes: bool) -> (Holding, Option<Kept>) {
        let memory = &self.memory;
        let fetched = self.fetched.base + self.fetched.tuned > 0;
        let read_once = |room: u64| match in_bytes {
            true if fetched => memory.as_values(room, threads),
            true => None,
            false => Some(memory.in_f32(room, threads)).filter(|holding| holding.held),
        };
        let read_again = |room: u64| match in_bytes {
            true if fetched => memory.in_bytes_or_f32(room, threads),
            true => memory.in_bytes(room, threads),
            false => memory.in_f32(room, threads),
        };
        let beside = |again: u64, way: &dyn Fn(u64) -> Option<Holding>| {
            let room = budget.saturating_sub(again);
            let holding = way(room).filter(|holding| holding.memory <= room)?;
            let kept = (again > 0).then_some(Kept::Memory);
            Some((Holding { memory: holding.memory + again, ..holding }, kept))
        };
        beside(self.again(false), &read_once)
            .or_else(|| beside(self.again(true), &|room| Some(read_again(room))))
            .unwrap_or_else(|| {
                let holding = read_again(budget);
                let again = self.again(holding.reads_again(in_bytes));
                (holding, (again > 0).then_some(Kept::Scratch))
            })
    }

    pub(super) fn plan(self, budget: u64, threads: usize) -> PlannedModule {
        let (in_f32, kept_in_f32) = self.hold(budget, threads, false);
        let (holding, kept) = match self.precision {
            Precision::F32 => (in_f32, kept_in_f32),
            _ => self.hold(budget, threads, true),
        };
        PlannedModule {
            name: self.pair.name.clone(),
            shape: self.pair.shape,
            method: self.method.name().to_owned(),
            precision: self.precision,
            holding,
            in_f32,
            flops: self.flops,
            read_bytes: self.read_bytes,
            link_bytes: self.fetched.all(),
            kept,
            kept_in_f32,
            minimizes: self.minimizes,
            calibrated: self.calibrated,
            pair: self.pair,
            rescaling: None,
        }
    }
}

/// The stored bytes of a module that stay mapped while it is read.
pub(super) fn kept(checkpoint: &Checkpoint, name: &str) -> u64 {
    checkpoint.module(name).map_or(0, Module::kept_size) as u64
}
