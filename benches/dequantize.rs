//! How fast each format decodes on one thread, beside a copy of as many output bytes.
//!
//! ```text
//! cargo bench --bench dequantize -- run [ROWS COLUMNS]
//! ```
//! Panels of 512 rows into one buffer, as the pipeline does it; the stored weight is larger than the caches.
//! Without `run` it prints its usage, so that `cargo test` and `cargo bench` stay light.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use safetensors::Dtype;
use serde_json::{Value, json};
use trephine::quant::format::{GgmlType, Gguf, Layout};
use trephine::quant::number::round_to_bf16;
use trephine::quant::{Declared, Dequantize, Scheme, TensorInfo, Tensors};

const PANEL: usize = 512;
const ROUNDS: usize = 7;

/// The tensors, and the content of any small one among them.
struct Shelf(BTreeMap<String, TensorInfo>, Vec<u8>);

impl Tensors for Shelf {
    fn stored(&self, name: &str) -> Option<&TensorInfo> {
        self.0.get(name)
    }

    fn content(&self, _: &str) -> trephine::Result<Vec<u8>> {
        Ok(self.1.clone())
    }
}

/// Name, dtype and shape of a stored tensor.
type Part<'a> = (&'a str, Dtype, Vec<usize>);

/// A decoder and the bytes of its tensors.
type Weight = (Arc<dyn Dequantize>, Vec<Vec<u8>>);

/// The weight that a config and some tensors describe, and bytes for it. `content` is what a format finds in a
/// small tensor.
fn weight(config: Option<Value>, content: Vec<u8>, tensors: &[Part]) -> Weight {
    let stored = |(name, dtype, shape): &Part| TensorInfo {
        name: (*name).into(),
        dtype: *dtype,
        shape: shape.clone().into(),
    };
    let shelf = Shelf(tensors.iter().map(|t| (t.0.to_owned(), stored(t))).collect(), content);
    let declared = config.map(|raw| Declared { origin: "config.json".into(), raw });
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

    for (name, (weight, bytes)) in &cases(rows, columns) {
        let seconds = best(|| decode(&**weight, bytes, &mut out));
        line(name, seconds, bytes.iter().map(Vec::len).sum::<usize>() as f64);
    }
    let panels = rows.div_ceil(PANEL);
    let seconds = best(|| (0..panels).for_each(|_| round_to_bf16(black_box(&mut out))));
    line("rounding to bf16", seconds, 4.0 * elements);
}

/// Every format, with a weight of that shape.
fn cases(rows: usize, columns: usize) -> Vec<(&'static str, Weight)> {
    let grid = |height: usize, width: usize| vec![rows.div_ceil(height), columns.div_ceil(width)];
    let (w, whole) = ("w.weight", vec![rows, columns]);
    let dense = |dtype| weight(None, Vec::new(), &[(w, dtype, whole.clone())]);
    let fp8 = |height: usize, width: usize, scale| {
        let config = json!({"quant_method": "fp8", "weight_block_size": [height, width]});
        let scale = ("w.weight_scale_inv", scale, grid(height, width));
        weight(Some(config), Vec::new(), &[(w, Dtype::F8_E4M3, whole.clone()), scale])
    };
    let compressed = |format: &str, raw: Value, parts: Vec<Part>| {
        let config = json!({"quant_method": "compressed-tensors", "format": format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": raw}}});
        weight(Some(config), [rows, columns].iter().flat_map(|n| n.to_le_bytes()).collect(), &parts)
    };
    let (scale, zeros) = ("w.weight_scale", "w.weight_zero_point");
    let packed = |bits: usize, raw: Value, dtype| {
        let words = vec![rows, columns.div_ceil(32 / bits)];
        let zeros = (zeros, Dtype::I32, vec![rows.div_ceil(32 / bits), columns.div_ceil(128)]);
        let shape = ("w.weight_shape", Dtype::I64, vec![2]);
        let parts = vec![("w.weight_packed", Dtype::I32, words), (scale, dtype, grid(1, 128)), zeros, shape];
        compressed("pack-quantized", raw, parts)
    };
    let group = |bits: usize, symmetric: bool| json!({"num_bits": bits, "strategy": "group", "group_size": 128, "symmetric": symmetric});
    let channel = |kind: &str| json!({"num_bits": 8, "type": kind, "strategy": "channel"});
    let byte = |format: &str, kind: &str, code, dtype| {
        compressed(format, channel(kind), vec![(w, code, whole.clone()), (scale, dtype, vec![rows, 1])])
    };
    let nvfp4 = || {
        let raw = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16});
        let parts = vec![
            ("w.weight_packed", Dtype::U8, vec![rows, columns / 2]),
            (scale, Dtype::F8_E4M3, grid(1, 16)),
            ("w.weight_global_scale", Dtype::F32, vec![1]),
        ];
        compressed("nvfp4-pack-quantized", raw, parts)
    };
    let nf4 = |nested: bool| {
        let blocks = rows * columns / 64;
        let state = json!({"shape": [rows, columns], "dtype": "bfloat16", "blocksize": 64,
            "nested_blocksize": if nested { json!(256) } else { Value::Null }, "nested_offset": 0.5});
        let absmax = if nested { Dtype::U8 } else { Dtype::F32 };
        let parts = [
            (w, Dtype::U8, vec![rows * columns / 2, 1]),
            ("w.weight.absmax", absmax, vec![blocks]),
            ("w.weight.quant_map", Dtype::F32, vec![16]),
            ("w.weight.nested_absmax", Dtype::F32, vec![blocks.div_ceil(256)]),
            ("w.weight.nested_quant_map", Dtype::F32, vec![256]),
            ("w.weight.quant_state.bitsandbytes__nf4", Dtype::U8, vec![79]),
        ];
        weight(Some(json!({"load_in_4bit": true})), state.to_string().into_bytes(), &parts)
    };
    let int8 = || {
        let parts = [(w, Dtype::I8, whole.clone()), ("w.SCB", Dtype::F32, vec![rows])];
        weight(Some(json!({"load_in_8bit": true})), Vec::new(), &parts)
    };
    let transposed = |method: &str, words: Vec<usize>| {
        let groups = columns.div_ceil(128);
        let parts = [
            ("w.qweight", Dtype::I32, words),
            ("w.qzeros", Dtype::I32, vec![groups, rows / 8]),
            ("w.scales", Dtype::F16, vec![groups, rows]),
        ];
        weight(Some(json!({"quant_method": method, "bits": 4, "group_size": 128})), Vec::new(), &parts)
    };
    let modelopt = || {
        let parts = [
            (w, Dtype::U8, vec![rows, columns / 2]),
            (scale, Dtype::F8_E4M3, grid(1, 16)),
            ("w.weight_scale_2", Dtype::F32, vec![]),
        ];
        let config = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16});
        weight(Some(config), Vec::new(), &parts)
    };
    let micro = |format: &str, code, packed: usize| {
        let bits = 8 / packed;
        let raw = json!({"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32});
        let name = if packed == 2 { "w.weight_packed" } else { w };
        compressed(
            format,
            raw,
            vec![(name, code, vec![rows, columns / packed]), (scale, Dtype::U8, grid(1, 32))],
        )
    };
    let bits = |bits: usize, act_order: bool| {
        let groups = columns.div_ceil(128);
        let mut parts = vec![
            ("w.qweight", Dtype::I32, vec![columns * bits / 32, rows]),
            ("w.qzeros", Dtype::I32, vec![groups, rows * bits / 32]),
            ("w.scales", Dtype::F16, vec![groups, rows]),
        ];
        if act_order {
            parts.push(("w.g_idx", Dtype::I32, vec![columns]));
        }
        let (weight, mut bytes) = weight(
            Some(json!({"quant_method": "gptq", "bits": bits, "group_size": 128})),
            Vec::new(),
            &parts,
        );
        if act_order {
            bytes[3] = (0..columns).flat_map(|i| ((i * 37 % groups) as i32).to_le_bytes()).collect();
        }
        (weight, bytes)
    };
    let gguf = |kind: GgmlType| {
        let (values, size) = kind.block();
        let stored = TensorInfo::new(w, Dtype::U8, [rows, columns / values * size]);
        let layout = Layout { kind, shape: [rows, columns], head: None, experts: Vec::new() };
        let scheme = Scheme::of(Box::new(Gguf::new([(w.into(), layout)].into())));
        let shelf = Shelf([(w.to_owned(), stored.clone())].into(), Vec::new());
        let found = scheme.weights(&stored, &shelf).expect("a whole weight");
        let bytes =
            (0..stored.shape.iter().product()).map(|i: usize| if i % 2 == 1 { 0x1c } else { (i * 37) as u8 });
        (found[0].weight.clone(), vec![bytes.collect()])
    };
    vec![
        ("BF16", dense(Dtype::BF16)),
        ("F16", dense(Dtype::F16)),
        ("F32", dense(Dtype::F32)),
        ("F64", dense(Dtype::F64)),
        ("FP8 128x128, F32", fp8(128, 128, Dtype::F32)),
        ("FP8 32x32, F8_E8M0", fp8(32, 32, Dtype::F8_E8M0)),
        ("FP8 1x32, U8", fp8(1, 32, Dtype::U8)),
        ("CT FP8 channel, BF16", byte("float-quantized", "float", Dtype::F8_E4M3, Dtype::BF16)),
        ("CT INT8 channel, F32", byte("int-quantized", "int", Dtype::I8, Dtype::F32)),
        ("CT W4 g128, BF16", packed(4, group(4, true), Dtype::BF16)),
        ("CT W4 g128 asym, F16", packed(4, group(4, false), Dtype::F16)),
        ("CT W8 g128 asym, BF16", packed(8, group(8, false), Dtype::BF16)),
        ("CT NVFP4", nvfp4()),
        ("NF4, BF16", nf4(false)),
        ("NF4 nested, BF16", nf4(true)),
        ("LLM.int8", int8()),
        ("GPTQ 4 bits g128", transposed("gptq", vec![columns / 8, rows])),
        ("GPTQ 4 bits, act-order", bits(4, true)),
        ("GPTQ 2 bits g128", bits(2, false)),
        ("GPTQ 3 bits g128", bits(3, false)),
        ("GPTQ 8 bits g128", bits(8, false)),
        ("AWQ gemm g128", transposed("awq", vec![columns, rows / 8])),
        ("NVFP4 of modelopt", modelopt()),
        ("CT MXFP4", micro("mxfp4-pack-quantized", Dtype::U8, 2)),
        ("CT MXFP8", micro("mxfp8-quantized", Dtype::F8_E4M3, 1)),
        ("GGUF Q8_0", gguf(GgmlType::Q8_0)),
        ("GGUF Q4_0", gguf(GgmlType::Q4_0)),
        ("GGUF Q5_0", gguf(GgmlType::Q5_0)),
        ("GGUF Q4_K", gguf(GgmlType::Q4_K)),
        ("GGUF Q5_K", gguf(GgmlType::Q5_K)),
        ("GGUF Q6_K", gguf(GgmlType::Q6_K)),
    ]
}
