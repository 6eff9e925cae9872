//! Encoders against a reference library: each file in `tests/fixtures/encode_*` holds a weight and the library's
//! encoding of it (see `scripts/fixtures_encode_*.py`). Codes and scales must match bit for bit.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use trephine::quant::encode::encode_block_fp8;
use trephine::quant::format::to_f32;

/// The fixtures in a folder.
fn files(folder: &str, cases: usize) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder);
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), cases);
    files
}

#[test]
fn block_fp8_comes_out_bit_for_bit() {
    for path in files("encode_fp8", 4) {
        let name = path.display();
        let bytes = fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let block: [usize; 2] = serde_json::from_str(&header.metadata().as_ref().unwrap()["block"]).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let [weight, codes, scales] =
            ["w", "weight", "weight_scale_inv"].map(|name| file.tensor(name).unwrap());
        let values = to_f32(weight.dtype(), weight.data()).unwrap();
        let want = to_f32(scales.dtype(), scales.data()).unwrap();
        let (mut got_codes, mut got) = (vec![0; values.len()], vec![0.0; want.len()]);
        encode_block_fp8(&values, weight.shape()[1], block, &mut got_codes, &mut got);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&want), "{name}: scales");
        let wrong = got_codes.iter().zip(codes.data()).position(|(got, want)| got != want);
        assert_eq!(wrong, None, "{name}: the first code that differs");
    }
}
