//! How fast an autopsy takes the statistics of each way to store a weight, beside blake3 of the same bytes.
//!
//! ```text
//! cargo bench --bench autopsy -- run [TENSORS [ROWS COLUMNS [THREADS]]]
//! ```
//! Checkpoints of normally distributed weights are written to a temporary folder and read from the page cache,
//! through the same mappings for both, by turns; the medians are shown. Without `run` it prints its usage, so that
//! `cargo test` and `cargo bench` stay light.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use half::{bf16, f16};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;
use trephine::checkpoint::Checkpoint;
use trephine::commands::autopsy::{Examination, Thresholds, autopsy};
use trephine::pipeline::RunOptions;
use trephine::quant::encode::{FP8_BLOCK, encode_block_fp8};
use trephine::run::Silent;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 7;

/// A part of a stored weight: what its name ends with, dtype, shape, bytes.
type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// Makes the stored parts of a weight.
type Maker<'a> = Box<dyn Fn() -> Vec<Part> + 'a>;

fn main() -> AnyResult<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if arguments.first().map(String::as_str) != Some("run") {
        println!("usage: cargo bench --bench autopsy -- run [TENSORS [ROWS COLUMNS [THREADS]]]");
        return Ok(());
    }
    let number = |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |a| a.parse());
    let (tensors, rows, columns, threads) =
        (number(1, 8)?, number(2, 2048)?, number(3, 5120)?, number(4, 1)?);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let normal = Normal::new(0f32, 0.02)?;
    let values: Vec<f32> = (0..rows * columns).map(|_| normal.sample(&mut random)).collect();

    let elements = (tensors * rows * columns) as f64;
    println!("{tensors} weights of {rows} x {columns}, threads: {threads}, medians of {ROUNDS}");
    println!(
        "{:18} {:>12} {:>12} {:>12} {:>10}",
        "", "G values/s", "GB/s stored", "blake3 GB/s", "of blake3"
    );
    let home = tempfile::tempdir()?;
    for (name, parts) in cases(&values, rows, columns) {
        let folder = home.path().join("checkpoint");
        let stored = write(&folder, &parts, tensors)?;
        drop(parts);
        let [ours, theirs] = measure(&folder, threads)?;
        println!(
            "{name:18} {:12.2} {:12.2} {:12.2} {:10.2}",
            elements / ours / 1e9,
            stored as f64 / ours / 1e9,
            stored as f64 / theirs / 1e9,
            theirs / ours
        );
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}

/// The weight in every dtype that has a path of its own.
fn cases(values: &[f32], rows: usize, columns: usize) -> impl Iterator<Item = (&'static str, Vec<Part>)> {
    let dense = move |dtype, bytes| vec![("weight", dtype, vec![rows, columns], bytes)];
    let sixteen = move |bits: fn(f32) -> u16| values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect();
    let makers: [(&'static str, Maker<'_>); 4] = [
        ("BF16", Box::new(move || dense(Dtype::BF16, sixteen(|v| bf16::from_f32(v).to_bits())))),
        ("F16", Box::new(move || dense(Dtype::F16, sixteen(|v| f16::from_f32(v).to_bits())))),
        ("F32", Box::new(move || dense(Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()))),
        ("FP8 128x128", Box::new(move || fp8(values, rows, columns))),
    ];
    makers.into_iter().map(|(name, make)| (name, make()))
}

fn fp8(values: &[f32], rows: usize, columns: usize) -> Vec<Part> {
    let [height, width] = FP8_BLOCK;
    let grid = [rows.div_ceil(height), columns.div_ceil(width)];
    let (mut codes, mut scales) = (vec![0u8; rows * columns], vec![0f32; grid[0] * grid[1]]);
    encode_block_fp8(values, columns, FP8_BLOCK, &mut codes, &mut scales);
    let scales = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    vec![
        ("weight", Dtype::F8_E4M3, vec![rows, columns], codes),
        ("weight_scale_inv", Dtype::F32, grid.to_vec(), scales),
    ]
}

/// Writes a checkpoint of so many equal weights; how many bytes they have.
fn write(folder: &Path, parts: &[Part], tensors: usize) -> AnyResult<usize> {
    std::fs::create_dir_all(folder)?;
    let mut config = json!({"model_type": "qwen3"});
    if parts.len() > 1 {
        config["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": FP8_BLOCK});
    }
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let named = (0..tensors).flat_map(|i| {
        parts.iter().map(move |(part, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes)?;
            Ok((format!("model.layers.{i}.mlp.up_proj.{part}"), view))
        })
    });
    let named: Vec<(String, TensorView<'_>)> = named.collect::<AnyResult<_>>()?;
    serialize_to_file(named, None, &folder.join("model.safetensors"))?;
    Ok(tensors * parts.iter().map(|(_, _, _, bytes)| bytes.len()).sum::<usize>())
}

/// Seconds of an autopsy, and of blake3 over the same tensors.
fn measure(folder: &Path, threads: usize) -> AnyResult<[f64; 2]> {
    let path = PathBuf::from(folder).into_os_string().into_string().map_err(|_| "the folder's name")?;
    let job = Examination {
        checkpoint: path.clone(),
        against: None,
        include: Vec::new(),
        exclude: Vec::new(),
        thresholds: Thresholds::default(),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let running = RunOptions::new(threads, 1 << 30);
    let mut times = [Vec::new(), Vec::new()];
    // The first round warms the cache.
    for round in 0..=ROUNDS {
        let start = Instant::now();
        black_box(autopsy(&job, &running, &Silent)?);
        let ours = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let checkpoint = Checkpoint::open(&path)?;
        let all: Vec<_> = checkpoint.tensors().collect();
        pool.install(|| all.par_iter().try_for_each(|tensor| checkpoint.hash(tensor).map(drop)))?;
        let theirs = start.elapsed().as_secs_f64();
        if round > 0 {
            times[0].push(ours);
            times[1].push(theirs);
        }
    }
    Ok(times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}
