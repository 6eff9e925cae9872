//! The conformance suite of [`AdapterWriter`], PEFT's layout that passes it, and a toy writer of one flat file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use tempfile::tempdir;
use trephine::Result;
use trephine::lora::tree::BaseModules;
use trephine::lora::write::{Adapter, AdapterWriter, Peft, Piece, Shard, ShardNames, WrittenAdapter, shard};
use trephine::lora::{Keys, Place};
use trephine::quant::TensorInfo;

/// The rank of the adapter; modules of a lower one are padded.
const RANK: usize = 3;

/// `lora_A` `[rank, in]` and `lora_B` `[out, rank]` of a module, as the writer's own file has them.
type Read = fn(&Path, &str) -> [Vec<f32>; 2];

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + seed) % 17) as f32 / 8.0 - 1.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

/// A module with factors in a shard, `None` for one of zeros.
fn piece(folder: &Path, module: &str, [out, inner]: [usize; 2], rank: usize) -> Piece {
    let path = folder.join(shard::file_name(module));
    let info = |name: &str, shape: [usize; 2]| TensorInfo {
        name: name.into(),
        dtype: Dtype::F32,
        shape: shape.into(),
    };
    let (a, b) = (bytes(&numbers(rank * inner, 1)), bytes(&numbers(out * rank, 2)));
    let tensors = [(info("a", [rank, inner]), a.as_slice()), (info("b", [out, rank]), b.as_slice())];
    let written = shard::write(&path, &tensors, &BTreeMap::new()).unwrap();
    let open = move || Shard::open(&path, written);
    let shard = (rank > 0).then(|| Box::new(open) as _);
    Piece { module: module.into(), place: Place::Linear, shape: [out, inner], rank, shard }
}

/// Row-major `[rows, inner]` times `[inner, columns]`.
fn product(left: &[f32], right: &[f32], inner: usize, columns: usize) -> Vec<f32> {
    let cell = |i: usize, j: usize| (0..inner).map(|k| left[i * inner + k] * right[k * columns + j]).sum();
    (0..left.len() / inner).flat_map(|i| (0..columns).map(move |j| (i, j))).map(|(i, j)| cell(i, j)).collect()
}

fn conforms(writer: &dyn AdapterWriter, read: Read) {
    let home = tempdir().unwrap();
    let modules = [("l.0.up_proj", [5, 4], RANK), ("l.0.down_proj", [4, 5], 2), ("l.1.up_proj", [5, 4], 0)];
    let pieces: Vec<Piece> =
        modules.iter().map(|&(module, shape, rank)| piece(home.path(), module, shape, rank)).collect();
    let names = || ShardNames { a: "a", b: "b" };
    let (base, bare, dtype) = ("owner/base", BaseModules::default(), Dtype::F32);
    let adapter = Adapter {
        base,
        modules: &bare,
        task_type: Some("CAUSAL_LM"),
        rank: RANK,
        dtype,
        pieces: &pieces,
        names: names(),
    };
    let written = ["first", "second"].map(|name| {
        let out = home.path().join(name);
        fs::create_dir(&out).unwrap();
        let written = writer.write(&out, &adapter).unwrap();
        let mut found: Vec<_> = fs::read_dir(&out).unwrap().map(|file| file.unwrap().file_name()).collect();
        let mut files: Vec<_> = writer.files().iter().map(|file| file.to_string()).collect();
        found.sort();
        files.sort();
        assert_eq!(found, files.iter().map(|file| file.as_str()).collect::<Vec<_>>(), "no file too many");
        for file in files {
            assert_eq!(written.files[&file], blake3::hash(&fs::read(out.join(&file)).unwrap()), "{file}");
        }
        for (module, [_, inner], rank) in modules {
            let [a, b] = read(&out, module);
            let got = product(&b, &a, RANK, inner);
            let wanted = match rank {
                0 => vec![0.0; got.len()],
                rank => product(&numbers(b.len() / RANK * rank, 2), &numbers(rank * inner, 1), rank, inner),
            };
            assert_eq!(got, wanted, "{module}");
        }
        written
    });
    assert_eq!(written[0].files, written[1].files, "the same adapter has the same bytes");
    assert_eq!(written[0].modules, written[1].modules);
    assert_eq!(written[0].modules.len(), modules.len());
}

fn read_peft(out: &Path, module: &str) -> [Vec<f32>; 2] {
    let bytes = fs::read(out.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let keys = Keys::of(module, Place::Linear);
    [keys.a, keys.b].map(|key| floats(file.tensor(&key).unwrap().data()))
}

// The toy: all modules by name, `A` padded, then `B` as `[rank, out]`.

struct Flat;

impl AdapterWriter for Flat {
    fn files(&self) -> &'static [&'static str] {
        &["adapter.flat"]
    }

    fn write(&self, out: &Path, adapter: &Adapter<'_>) -> Result<WrittenAdapter> {
        let (mut file, mut modules) = (Vec::new(), BTreeMap::new());
        for piece in adapter.pieces {
            let ([out, inner], r) = (piece.shape, adapter.rank);
            let (mut a, mut b) = (vec![0; r * inner * 4], vec![0; r * out * 4]);
            if let Some(open) = &piece.shard {
                let shard = open()?;
                shard.read(adapter.names.a, 0, &mut a[..piece.rank * inner * 4])?;
                let mut packed = vec![0; out * piece.rank * 4];
                shard.read(adapter.names.b, 0, &mut packed)?;
                for (i, value) in packed.chunks_exact(4).enumerate() {
                    b[(i % piece.rank * out + i / piece.rank) * 4..][..4].copy_from_slice(value);
                }
            }
            file.extend(format!("{} {out} {inner}\n", piece.module).bytes());
            modules.insert(piece.module.clone(), blake3::hash(&[a.as_slice(), &b].concat()));
            file.extend(a.into_iter().chain(b));
        }
        fs::write(out.join("adapter.flat"), &file).unwrap();
        Ok(WrittenAdapter { files: [("adapter.flat".to_owned(), blake3::hash(&file))].into(), modules })
    }
}

fn read_flat(out: &Path, module: &str) -> [Vec<f32>; 2] {
    let file = fs::read(out.join("adapter.flat")).unwrap();
    let start = file.windows(module.len()).position(|window| window == module.as_bytes()).unwrap();
    let line: &[u8] = file[start..].split(|byte| *byte == b'\n').next().unwrap();
    let sizes: Vec<usize> =
        std::str::from_utf8(line).unwrap().split(' ').skip(1).map(|size| size.parse().unwrap()).collect();
    let (out, inner) = (sizes[0], sizes[1]);
    let data = &file[start + line.len() + 1..][..RANK * (out + inner) * 4];
    let (a, b) = data.split_at(RANK * inner * 4);
    let [a, b]: [Vec<f32>; 2] = [a, b].map(floats);
    [a, (0..out * RANK).map(|i| b[i % RANK * out + i / RANK]).collect()]
}

// The trial of both.

#[test]
fn every_writer_conforms() {
    conforms(&Peft, read_peft);
    conforms(&Flat, read_flat);
}
