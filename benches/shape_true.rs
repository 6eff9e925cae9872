//! Makes a trio of checkpoints with the true shapes of Qwen3 and synthetic weights: `base/` and `tuned/` in bf16,
//! `base-fp8/` in block FP8. A generator of input for measurements, not a timing itself.
//!
//! ```text
//! cargo bench --bench shape_true -- OUT [--layers 1] [--hidden 5120] ...
//! ```
//! The defaults are one layer of Qwen3-32B and a small vocabulary. base is N(0, 0.02); tuned adds a decaying delta
//! of rank 64, as training leaves one, and white noise of 1e-4. Weights stream in panels of 128 rows, each from a
//! generator of its own seed, so that the bytes do not depend on the number of threads and memory stays small
//! whatever the size.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{CommandFactory, Parser};
use faer::{Accum, Mat, Par};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use trephine::checkpoint::Checkpoint;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// The side of an FP8 block, and the rows of a panel.
const BLOCK: usize = 128;
const VARIANTS: [&str; 3] = ["base", "tuned", "base-fp8"];

/// Writes base/, tuned/ and base-fp8/ of a Qwen3-shaped model with synthetic weights.
#[derive(Parser)]
#[command(name = "cargo bench --bench shape_true --")]
struct Options {
    /// The folder to write into
    out: PathBuf,
    #[arg(long, default_value_t = 5120)]
    hidden: usize,
    #[arg(long, default_value_t = 25600)]
    intermediate: usize,
    #[arg(long, default_value_t = 64)]
    heads: usize,
    #[arg(long, default_value_t = 8)]
    kv_heads: usize,
    #[arg(long, default_value_t = 128)]
    head_dim: usize,
    #[arg(long, default_value_t = 1)]
    layers: usize,
    #[arg(long, default_value_t = 1024)]
    vocab: usize,
    /// The rank of the delta below its noise
    #[arg(long, default_value_t = 64)]
    rank: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out base/: for a pair of a quantized base and tuned that the disk would not hold with it
    #[arg(long)]
    without_base: bool,
}

impl Options {
    fn variants(&self) -> &'static [&'static str] {
        &VARIANTS[usize::from(self.without_base)..]
    }
}

/// How a tensor's values come about.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Differs between base and tuned, and is FP8 in base-fp8.
    Linear,
    /// The same N(0, 0.02) in all three.
    Shared,
    /// Ones; 1-D.
    Norm,
}

struct Spec {
    name: String,
    rows: usize,
    columns: usize,
    kind: Kind,
}

impl Spec {
    fn new(name: impl Into<String>, rows: usize, columns: usize, kind: Kind) -> Spec {
        Spec { name: name.into(), rows, columns, kind }
    }

    fn blocks(&self) -> [usize; 2] {
        [self.rows.div_ceil(BLOCK), self.columns.div_ceil(BLOCK)]
    }

    /// What a variant stores for it: name, dtype, shape, bytes.
    fn stored(&self, variant: &str) -> Vec<(String, &'static str, Vec<usize>, usize)> {
        let values = self.rows * self.columns;
        let shape = if self.kind == Kind::Norm { vec![self.columns] } else { vec![self.rows, self.columns] };
        if self.kind != Kind::Linear || variant != "base-fp8" {
            return vec![(self.name.clone(), "BF16", shape, 2 * values)];
        }
        let grid = self.blocks();
        let scale = self.name.replace(".weight", ".weight_scale_inv");
        vec![
            (self.name.clone(), "F8_E4M3", shape, values),
            (scale, "F32", grid.to_vec(), 4 * grid[0] * grid[1]),
        ]
    }
}

/// The tensors, file by file: embeddings first, then a layer each.
fn files(o: &Options) -> Vec<Vec<Spec>> {
    use Kind::*;
    let (h, q, kv) = (o.hidden, o.heads * o.head_dim, o.kv_heads * o.head_dim);
    let mut files = vec![vec![
        Spec::new("model.embed_tokens.weight", o.vocab, h, Shared),
        Spec::new("lm_head.weight", o.vocab, h, Shared),
        Spec::new("model.norm.weight", 1, h, Norm),
    ]];
    for layer in 0..o.layers {
        let spec = |name: &str, rows, columns, kind| {
            Spec::new(format!("model.layers.{layer}.{name}.weight"), rows, columns, kind)
        };
        files.push(vec![
            spec("self_attn.q_proj", q, h, Linear),
            spec("self_attn.k_proj", kv, h, Linear),
            spec("self_attn.v_proj", kv, h, Linear),
            spec("self_attn.o_proj", h, q, Linear),
            spec("mlp.gate_proj", o.intermediate, h, Linear),
            spec("mlp.up_proj", o.intermediate, h, Linear),
            spec("mlp.down_proj", h, o.intermediate, Linear),
            spec("input_layernorm", 1, h, Norm),
            spec("post_attention_layernorm", 1, h, Norm),
            spec("self_attn.q_norm", 1, o.head_dim, Norm),
            spec("self_attn.k_norm", 1, o.head_dim, Norm),
        ]);
    }
    files
}

/// A panel's bytes in each variant, and its row of FP8 scales.
struct Panel {
    bytes: [Vec<u8>; 3],
    scales: Vec<f32>,
}

/// The delta's right factor `[rank, columns]` and the scale of each direction.
struct Delta {
    right: Mat<f32>,
    scales: Vec<f32>,
}

/// A generator that depends on the seed and what it is for, and on nothing else.
fn generator(o: &Options, spec: &Spec, part: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(*blake3::hash(format!("{}/{}/{part}", o.seed, spec.name).as_bytes()).as_bytes())
}

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

fn delta(o: &Options, spec: &Spec) -> Delta {
    let rank = o.rank.min(spec.rows).min(spec.columns);
    let mut rng = generator(o, spec, "right");
    // Column by column, the order in which a `Mat` lies in memory.
    let right = Mat::from_fn(rank, spec.columns, |_, _| normal(&mut rng));
    let longer = spec.rows.max(spec.columns) as f32;
    let scale = |i: usize| (-(i as f32) / 16.0).exp() * 0.5 / longer.sqrt() * 0.02;
    Delta { right, scales: (0..rank).map(scale).collect() }
}

fn panel(o: &Options, spec: &Spec, delta: Option<&Delta>, index: usize) -> Panel {
    let rows = BLOCK.min(spec.rows - index * BLOCK);
    let mut rng = generator(o, spec, &index.to_string());
    let value = |_| if spec.kind == Kind::Norm { bf16::ONE } else { bf16::from_f32(0.02 * normal(&mut rng)) };
    let base: Vec<bf16> = (0..rows * spec.columns).map(value).collect();
    let stored = bytes(&base);
    let Some(delta) = delta else {
        return Panel { bytes: [stored.clone(), stored.clone(), stored], scales: Vec::new() };
    };
    // The product is taken transposed: its columns are the panel's rows, contiguous as they are written.
    let left = Mat::from_fn(delta.scales.len(), rows, |i, _| delta.scales[i] * normal(&mut rng));
    let mut product = Mat::<f32>::zeros(spec.columns, rows);
    faer::linalg::matmul::matmul(&mut product, Accum::Replace, delta.right.transpose(), &left, 1.0, Par::Seq);
    let mut tuned = Vec::with_capacity(base.len());
    for (row, base) in base.chunks_exact(spec.columns).enumerate() {
        let product = product.col(row).iter();
        tuned.extend(
            base.iter().zip(product).map(|(b, d)| bf16::from_f32(b.to_f32() + d + 1e-4 * normal(&mut rng))),
        );
    }
    let (codes, scales) = quantize(&base, spec.columns);
    Panel { bytes: [stored, bytes(&tuned), codes], scales }
}

fn bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// One row of blocks in FP8: the scale is the largest magnitude over 448, the codes are `w / scale`.
fn quantize(panel: &[bf16], columns: usize) -> (Vec<u8>, Vec<f32>) {
    let mut largest = vec![1e-12f32; columns.div_ceil(BLOCK)];
    for row in panel.chunks_exact(columns) {
        for (block, largest) in row.chunks(BLOCK).zip(&mut largest) {
            *largest = block.iter().fold(*largest, |max, w| max.max(w.to_f32().abs()));
        }
    }
    let scales: Vec<f32> = largest.iter().map(|max| max / 448.0).collect();
    let mut codes = Vec::with_capacity(panel.len());
    for row in panel.chunks_exact(columns) {
        for (block, scale) in row.chunks(BLOCK).zip(&scales) {
            codes.extend(block.iter().map(|w| e4m3(w.to_f32() / scale)));
        }
    }
    (codes, scales)
}

/// The nearest e4m3 code, ties to even, saturating.
fn e4m3(value: f32) -> u8 {
    let magnitude = value.abs().min(448.0);
    let code = if magnitude < 2f32.powi(-6) {
        (magnitude * 512.0).round_ties_even() as u32
    } else {
        let bits = magnitude.to_bits();
        ((bits + 0x7_ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    };
    code as u8 | (u8::from(value.is_sign_negative()) << 7)
}

/// Starts a file: its header, padded so that the data is aligned.
fn start(path: &Path, variant: &str, specs: &[Spec]) -> AnyResult<BufWriter<File>> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0;
    for (name, dtype, shape, size) in specs.iter().flat_map(|spec| spec.stored(variant)) {
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}));
        end += size;
    }
    let mut header = Value::Object(header).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    Ok(file)
}

/// Writes one tensor to all variants, some panels at a time.
fn write(o: &Options, spec: &Spec, files: &mut [Box<dyn Write>]) -> AnyResult<()> {
    let delta = (spec.kind == Kind::Linear).then(|| delta(o, spec));
    let mut scales = Vec::new();
    let panels: Vec<usize> = (0..spec.rows.div_ceil(BLOCK)).collect();
    for group in panels.chunks(2 * rayon::current_num_threads()) {
        let made: Vec<Panel> = group.par_iter().map(|&index| panel(o, spec, delta.as_ref(), index)).collect();
        for panel in made {
            for (file, bytes) in files.iter_mut().zip(&panel.bytes) {
                file.write_all(bytes)?;
            }
            scales.extend(panel.scales);
        }
    }
    for scale in scales {
        files[2].write_all(&scale.to_le_bytes())?;
    }
    Ok(())
}

fn config(o: &Options, variant: &str) -> Value {
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": o.hidden,
        "intermediate_size": o.intermediate, "num_attention_heads": o.heads, "num_key_value_heads": o.kv_heads,
        "head_dim": o.head_dim, "num_hidden_layers": o.layers, "vocab_size": o.vocab, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": false,
    });
    if variant == "base-fp8" {
        config["quantization_config"] = json!({
            "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK],
            "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"],
        });
    }
    config
}

fn generate(o: &Options) -> AnyResult<()> {
    let shards = files(o);
    for variant in o.variants() {
        fs::create_dir_all(o.out.join(variant))?;
    }
    let file_name = |i: usize| format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
    for (i, specs) in shards.iter().enumerate() {
        let open = |variant: &&str| -> AnyResult<Box<dyn Write>> {
            if !o.variants().contains(variant) {
                return Ok(Box::new(io::sink()));
            }
            Ok(Box::new(start(&o.out.join(variant).join(file_name(i)), variant, specs)?))
        };
        let mut files = VARIANTS.iter().map(open).collect::<AnyResult<Vec<_>>>()?;
        for spec in specs {
            write(o, spec, &mut files)?;
        }
        for mut file in files {
            file.flush()?;
        }
    }
    for variant in o.variants() {
        let mut map = Map::new();
        let mut total = 0;
        for (i, specs) in shards.iter().enumerate() {
            for (name, _, _, size) in specs.iter().flat_map(|spec| spec.stored(variant)) {
                map.insert(name, json!(file_name(i)));
                total += size;
            }
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        let folder = o.out.join(variant);
        fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config(o, variant))?)?;
        fs::write(folder.join("model.safetensors.index.json"), serde_json::to_string_pretty(&index)?)?;
    }
    Ok(())
}

fn main() -> AnyResult<()> {
    // Cargo adds `--bench`. A bare `cargo bench` or `cargo test --all-targets` is not to write gigabytes.
    let arguments: Vec<String> = std::env::args().filter(|a| a != "--bench").collect();
    if arguments.len() < 2 {
        println!("{}", Options::command().render_help());
        return Ok(());
    }
    let options = Options::parse_from(arguments);
    let begun = Instant::now();
    generate(&options)?;
    println!("written in {:.1} s", begun.elapsed().as_secs_f64());
    for variant in options.variants() {
        let folder = options.out.join(variant);
        let checkpoint = Checkpoint::open(&folder.to_string_lossy())?;
        let size: u64 = checkpoint.tensors().map(|tensor| tensor.size()).sum();
        let (modules, scheme) = (checkpoint.modules().len(), checkpoint.scheme().label());
        println!("{}: {modules} modules, {size} bytes, {scheme}", folder.display());
    }
    Ok(())
}
