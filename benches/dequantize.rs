//! How fast each format decodes on one thread, beside a copy of as many output bytes.
//!
//! ```text
//! cargo bench --bench dequantize -- run [ROWS COLUMNS]
//! ```
//! Panels of 512 rows into one buffer, as the pipeline does it; the stored weight is larger than the caches. Without `run` it
//! prints its usage, so that `cargo test` and `cargo bench` stay light.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use safetensors::Dtype;
use serde_json::json;
use trephine::quant::{Declared, Dequantize, Scheme, Stored, Tensors, round_to_bf16};

const PANEL: usize = 512;
const ROUNDS: usize = 7;

struct Shelf(BTreeMap<String, Stored>);

impl Tensors for Shelf {
    fn stored(&self, name: &str) -> Option<&Stored> {
        self.0.get(name)
    }
}

/// The weight that a config and some tensors describe, and bytes for it.
fn weight(
    block: Option<[usize; 2]>,
    tensors: &[(&str, Dtype, [usize; 2])],
) -> (std::sync::Arc<dyn Dequantize>, Vec<Vec<u8>>) {
    let stored = |&(name, dtype, shape): &(&str, Dtype, [usize; 2])| Stored {
        name: name.into(),
        dtype,
        shape: shape.into(),
    };
    let shelf = Shelf(tensors.iter().map(|t| (t.0.to_owned(), stored(t))).collect());
    let declared = block.map(|size| Declared {
        origin: "config.json".into(),
        raw: json!({"quant_method": "fp8", "weight_block_size": size}),
    });
    let scheme = Scheme::from_config(declared.as_ref()).expect("a known scheme");
    let found = scheme.weights(&shelf.0[tensors[0].0], &shelf).expect("a whole weight");
    let weight = found[0].weight.clone();
    let bytes = weight.tensors().iter().map(|t| {
        let size = t.shape.iter().product::<usize>() * t.dtype.bitsize() / 8;
        // Small numbers in every dtype: the upper byte of a float is 0x3c or 0x3d.
        let byte = |i: usize| if i % 2 == 1 { 0x3c + (i / 2 % 2) as u8 } else { (i * 37) as u8 };
        (0..size).map(byte).collect()
    });
    let bytes = bytes.collect();
    (weight, bytes)
}

/// The best time of a whole pass, in seconds.
fn best(mut pass: impl FnMut()) -> f64 {
    let timed = |_| {
        let start = Instant::now();
        pass();
        start.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(timed).fold(f64::INFINITY, f64::min)
}

fn decode(weight: &dyn Dequantize, whole: &[Vec<u8>], out: &mut [f32]) {
    let [rows, columns] = weight.shape();
    for start in (0..rows).step_by(PANEL) {
        let panel = start..(start + PANEL).min(rows);
        let spans = weight.spans(panel.clone());
        let parts: Vec<&[u8]> = whole.iter().zip(spans).map(|(bytes, span)| &bytes[span]).collect();
        let out = &mut out[..panel.len() * columns];
        weight.dequantize(panel, &parts, out).expect("it decodes");
        black_box(out);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if arguments.first().map(String::as_str) != Some("run") {
        println!("usage: cargo bench --bench dequantize -- run [ROWS COLUMNS]");
        return;
    }
    let side = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (rows, columns) = (side(1, 8192), side(2, 5120));
    let elements = (rows * columns) as f64;
    let mut out = vec![0f32; PANEL * columns];

    let source = vec![1f32; rows * columns];
    let copy = best(|| {
        for panel in source.chunks(PANEL * columns) {
            out[..panel.len()].copy_from_slice(panel);
            black_box(&mut out);
        }
    });
    println!("{rows} x {columns}, panels of {PANEL} rows, one thread, best of {ROUNDS}");
    println!("{:24} {:>12} {:>12} {:>10}", "", "G values/s", "GB/s stored", "of a copy");
    let line = |name: &str, seconds: f64, stored: f64| {
        println!(
            "{name:24} {:12.2} {:12.2} {:10.2}",
            elements / seconds / 1e9,
            stored / seconds / 1e9,
            copy / seconds
        );
    };
    line("copy of f32", copy, 4.0 * elements);
    drop(source);

    let grid = |height: usize, width: usize| [rows.div_ceil(height), columns.div_ceil(width)];
    let (w, s) = ("w.weight", "w.weight_scale_inv");
    let whole = [rows, columns];
    let cases = [
        ("BF16", weight(None, &[(w, Dtype::BF16, whole)])),
        ("F16", weight(None, &[(w, Dtype::F16, whole)])),
        ("F32", weight(None, &[(w, Dtype::F32, whole)])),
        ("F64", weight(None, &[(w, Dtype::F64, whole)])),
        (
            "FP8 128x128, F32",
            weight(Some([128, 128]), &[(w, Dtype::F8_E4M3, whole), (s, Dtype::F32, grid(128, 128))]),
        ),
        (
            "FP8 32x32, F8_E8M0",
            weight(Some([32, 32]), &[(w, Dtype::F8_E4M3, whole), (s, Dtype::F8_E8M0, grid(32, 32))]),
        ),
        ("FP8 1x32, U8", weight(Some([1, 32]), &[(w, Dtype::F8_E4M3, whole), (s, Dtype::U8, grid(1, 32))])),
    ];
    for (name, (weight, bytes)) in &cases {
        let seconds = best(|| decode(&**weight, bytes, &mut out));
        line(name, seconds, bytes.iter().map(Vec::len).sum::<usize>() as f64);
    }
    let panels = rows.div_ceil(PANEL);
    let seconds = best(|| (0..panels).for_each(|_| round_to_bf16(black_box(&mut out))));
    line("rounding to bf16", seconds, 4.0 * elements);
}
