//! What each module of an analysis costs, and whether its differences are held in memory or recomputed at every visit. Both
//! give the same bits.

use crate::commands::analyze::quartet::{AnalysisOptions, Analyzing, Checkpoints, Quartet};
use crate::commands::analyze::single_pass::{SURVEY_SCRATCH, band_bytes};
use crate::commands::analyze::stats::subspace::projection_bytes;
use crate::delta::difference::VISIT_SCRATCH;
use crate::factorize::choose;
use crate::factorize::kernel::tiling;
use crate::factorize::types::{Method, Request};
use crate::pipeline::memory::{CATALOGUE_ENTRY, OVERHEAD, THREAD, mapped};
use crate::{Error, Result};

/// Leading directions of every difference that are looked for, whatever the rank.
pub const LEADING: usize = 64;

/// How far above the optimal error a factorization may lie.
const TOLERANCE: f64 = 0.005;

/// One module's part of the work.
#[derive(Clone, Copy, Debug)]
pub struct PlannedAnalysis {
    /// Whether one difference at a time is held in memory.
    pub held: bool,
    /// How many threads may hold a panel of one where it is recomputed.
    pub visitors: usize,
    /// Bytes that the module takes while it is worked on.
    pub memory: u64,
    /// Floating-point operations, by the cost model of the factorizations.
    pub flops: f64,
}

/// The whole plan.
#[derive(Clone, Debug)]
pub struct AnalysisPlan {
    /// One for each of the modules, in their order.
    pub modules: Vec<PlannedAnalysis>,
    /// What modules may hold together.
    pub budget: u64,
}

/// The factorization of a difference of this shape, into the rank's directions, or more where that is few.
pub fn request(asking: &AnalysisOptions, [m, n]: [usize; 2]) -> Request {
    Request {
        rank: asking.rank.max(LEADING).min(m.min(n)).max(1),
        energy: None,
        tolerance: TOLERANCE,
        method: Method::Auto,
        seed: asking.seed,
    }
}

/// Plans within the memory that is promised.
///
/// # Errors
/// A rank of 0, a budget below what would do.
pub fn plan(all: &Checkpoints, modules: &[Quartet<'_>], job: &Analyzing) -> Result<AnalysisPlan> {
    if job.asking.rank == 0 {
        return Err(Error::decide("rank 0 holds nothing").hint("give --rank 1 or more"));
    }
    let (threads, memory) = (job.running.threads, job.running.memory);
    let checkpoints = all.all();
    let entries: usize = checkpoints.iter().map(|(_, c)| c.tensors().len()).sum();
    let pages: u64 = checkpoints.iter().map(|(_, c)| mapped(c)).sum();
    let band = modules.iter().map(band_bytes).max().unwrap_or(0);
    let thread = THREAD + VISIT_SCRATCH + SURVEY_SCRATCH + band + pages;
    let fixed = OVERHEAD + threads as u64 * thread + entries as u64 * CATALOGUE_ENTRY;
    let costs: Vec<Cost> = modules.iter().map(|of| Cost::of(of, &job.asking)).collect();
    let largest = costs.iter().zip(modules).max_by_key(|(cost, _)| cost.recomputed(1));
    let least =
        (fixed + largest.as_ref().map_or(0, |(cost, _)| cost.recomputed(1))).next_multiple_of(1 << 20);
    if memory < least {
        let [given, least] = [memory, least].map(|bytes| bytes >> 20);
        let what = format!("{given} MiB of memory do not do: {least} MiB would");
        let name = largest.map(|(_, of)| of.pair.name.clone()).unwrap_or_default();
        let hint = format!("--memory {least}MiB; fewer --threads and a lower --rank need less");
        return Err(Error::decide(what).tensor(name).hint(hint));
    }
    let budget = memory - fixed;
    Ok(AnalysisPlan { modules: costs.iter().map(|cost| cost.plan(budget, threads)).collect(), budget })
}

struct Cost {
    /// A difference in f32.
    difference: u64,
    /// One panel of it.
    panel: u64,
    /// What a factorization takes, or the projections, beside the singular vectors that are kept.
    work: u64,
    /// Stored bytes that stay mapped while it is read.
    kept: u64,
    flops: f64,
}

impl Cost {
    fn of(of: &Quartet<'_>, asking: &AnalysisOptions) -> Cost {
        let shape @ [m, n] = [of.pair.rows, of.pair.shape[1]];
        let request = request(asking, shape);
        let k = request.rank;
        let vectors = (4 * (m + n) * k) as u64;
        let workspace = choose::workspace(m, n, &request) as u64;
        // After a factorization: the factors, unit vectors, orthonormal vectors. During projections the orthonormal ones of all three.
        let work = workspace.max(3 * vectors).max(projection_bytes(shape, k)) + 3 * vectors;
        let (_, panel_rows) = tiling::panel_rows(m, n);
        Cost {
            difference: (4 * m * n) as u64,
            panel: (4 * panel_rows * n) as u64,
            work,
            kept: of.kept_size(),
            flops: 3.0 * choose::flops(m, n, &request) + 16.0 * (m * n * k) as f64,
        }
    }

    fn recomputed(&self, visitors: usize) -> u64 {
        (self.panel * visitors as u64).min(self.difference) + self.work + self.kept
    }

    fn plan(&self, budget: u64, threads: usize) -> PlannedAnalysis {
        let whole = self.difference + self.work + self.kept;
        let held = whole <= budget;
        let visitors = (1..=threads).rev().find(|&v| self.recomputed(v) <= budget).unwrap_or(1);
        let memory = if held { whole } else { self.recomputed(visitors) };
        PlannedAnalysis { held, visitors, memory, flops: self.flops }
    }
}
