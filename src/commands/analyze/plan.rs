//! The cost of each module of an analysis, and whether its differences are held in memory or recomputed at every visit.
//! Both give bitwise identical results.

use crate::commands::analyze::quartet::{AnalysisOptions, Analyzing, Checkpoints, Quartet};
use crate::commands::analyze::single_pass::{SURVEY_SCRATCH, band_bytes};
use crate::commands::analyze::stats::subspace::projection_bytes;
use crate::delta::difference::visit_scratch;
use crate::factorize::kernel::bytes::codes::words as code_words;
use crate::factorize::kernel::tiling;
use crate::factorize::types::{Method, Request};
use crate::factorize::{choose, code_flops, code_workspace};
use crate::pipeline::memory::{THREAD, catalogue, mapped, overhead, records};
use crate::{Error, Result};

/// Minimum number of leading directions computed for every difference, whatever the rank.
pub const LEADING: usize = 64;

/// How far a factorization's error may exceed the optimal error, as a fraction of it.
const TOLERANCE: f64 = 0.005;

/// The plan for one module.
#[derive(Clone, Copy, Debug)]
pub struct PlannedAnalysis {
    /// Whether one difference at a time is held in memory.
    pub held: bool,
    /// Whether differences are multiplied in bytes, where these are exact enough: by shape alone.
    pub in_bytes: bool,
    /// Number of threads that may hold a panel of a recomputed difference.
    pub visitors: usize,
    /// Memory that the module needs while it is worked on, in bytes.
    pub memory: u64,
    /// Floating-point operations, by the cost model of the factorizations.
    pub flops: f64,
}

/// The whole plan.
#[derive(Clone, Debug)]
pub struct AnalysisPlan {
    /// One plan per module, in the order of the modules.
    pub modules: Vec<PlannedAnalysis>,
    /// Memory available to all modules together, in bytes.
    pub budget: u64,
}

/// The factorization of a difference of shape `[m, n]`: into `rank` directions, or [`LEADING`] if that is more.
pub fn request(asking: &AnalysisOptions, [m, n]: [usize; 2]) -> Request {
    Request {
        rank: asking.rank.max(LEADING).min(m.min(n)).max(1),
        energy: None,
        tolerance: TOLERANCE,
        method: Method::Auto,
        seed: asking.seed,
    }
}

/// Plans within the memory limit.
///
/// # Errors
/// A rank of 0, or a memory limit that is too small.
pub fn plan(checkpoints: &Checkpoints, modules: &[Quartet<'_>], job: &Analyzing) -> Result<AnalysisPlan> {
    if job.asking.rank == 0 {
        return Err(Error::decide("rank 0 holds nothing").hint("give --rank 1 or more"));
    }
    let (threads, memory) = (job.running.threads, job.running.memory);
    let sides = checkpoints.all();
    let catalogues: u64 = sides.iter().map(|(_, c)| catalogue(c) + records(c)).sum();
    let pages: u64 = sides.iter().map(|(_, c)| mapped(c)).sum();
    let band = modules.iter().map(band_bytes).max().unwrap_or(0);
    let is_kept = modules.iter().any(|quartet| quartet.kept_size() > 0);
    let thread = THREAD + visit_scratch(is_kept) + SURVEY_SCRATCH + band + pages;
    let fixed = overhead() + threads as u64 * thread + catalogues;
    let costs: Vec<Cost> =
        modules.iter().map(|quartet| Cost::of(checkpoints, quartet, &job.asking, threads)).collect();
    let largest = costs.iter().zip(modules).max_by_key(|(cost, _)| cost.recomputed(1));
    let least =
        (fixed + largest.as_ref().map_or(0, |(cost, _)| cost.recomputed(1))).next_multiple_of(1 << 20);
    if memory < least {
        let [given, least] = [memory, least].map(|bytes| bytes >> 20);
        let what = format!("not enough memory: {given} MiB given, {least} MiB needed");
        let name = largest.map(|(_, quartet)| quartet.pair.name.clone()).unwrap_or_default();
        let hint = format!("give --memory {least}MiB; fewer --threads and a lower --rank need less");
        return Err(Error::decide(what).tensor(name).hint(hint));
    }
    let budget = memory - fixed;
    Ok(AnalysisPlan { modules: costs.iter().map(|cost| cost.plan(budget, threads)).collect(), budget })
}

struct Cost {
    /// Bytes of a difference in f32.
    difference: u64,
    /// Bytes of its codes, where products are in bytes.
    codes: Option<u64>,
    /// Bytes of one panel of it.
    panel: u64,
    /// How many threads may quantize a panel of it.
    threads: u64,
    /// Bytes that a factorization or the projections need, including the singular vectors that are kept.
    work: u64,
    /// Stored bytes that stay mapped while it is read, or are kept because they come from a server.
    kept: u64,
    flops: f64,
}

impl Cost {
    fn of(
        checkpoints: &Checkpoints,
        quartet: &Quartet<'_>,
        asking: &AnalysisOptions,
        threads: usize,
    ) -> Cost {
        let shape @ [m, n] = [quartet.pair.rows, quartet.pair.shape[1]];
        let request = request(asking, shape);
        let k = request.rank;
        let vectors = (4 * (m + n) * k) as u64;
        let workspace = choose::workspace(m, n, threads, &request) as u64;
        // After a factorization: the factors, unit vectors and orthonormal vectors. During projections: the orthonormal
        // vectors of all three differences.
        let in_bytes = code_flops(m, n, &request);
        let code_workspace = in_bytes.map_or(0, |_| code_workspace(m, n, &request)) as u64;
        let workspace = workspace.max(code_workspace);
        let work = workspace.max(3 * vectors).max(projection_bytes(shape, k)) + 3 * vectors;
        let (_, panel_rows) = tiling::panel_rows(m, n);
        Cost {
            difference: (4 * m * n) as u64,
            codes: in_bytes.map(|_| 4 * code_words(m, n) as u64),
            panel: (4 * panel_rows * n) as u64,
            threads: threads as u64,
            work,
            kept: quartet.kept_size() + checkpoints.memory_to_keep(quartet),
            flops: 3.0 * in_bytes.unwrap_or_else(|| choose::flops(m, n, &request))
                + 16.0 * (m * n * k) as f64,
        }
    }

    fn recomputed(&self, visitors: usize) -> u64 {
        // Every thread keeps the codes of a panel.
        let quantized = self.codes.map_or(0, |_| self.panel / 3 * self.threads);
        (self.panel * visitors as u64).min(self.difference) + quantized + self.work + self.kept
    }

    fn plan(&self, budget: u64, threads: usize) -> PlannedAnalysis {
        // The noise's codes, while another difference turns out to be too coarse in bytes. They are made of panels.
        let codes = self.codes.map_or(0, |codes| codes + self.panel * self.threads);
        let whole = self.difference + codes + self.work + self.kept;
        let held = whole <= budget;
        let visitors = (1..=threads).rev().find(|&v| self.recomputed(v) <= budget).unwrap_or(1);
        let memory = if held { whole } else { self.recomputed(visitors) };
        PlannedAnalysis { held, in_bytes: self.codes.is_some(), visitors, memory, flops: self.flops }
    }
}
