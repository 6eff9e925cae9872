#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["compressed-tensors==0.17.0", "transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/block_fp8: block FP8 weights and what the reference libraries dequantize them to.

    python scripts/fixtures_fp8.py tests/fixtures/block_fp8

One file a case. Each holds `w.weight` (F8_E4M3), its scale under the name that the case tests, and
    expected_f32   the product in f32
    bridge_bf16    the same rounded to bf16 by the library, as a bridge on disk would be
The file's metadata holds the case's `quantization_config` and which library the values come from.

The reference is compressed-tensors' FP8BlockDequantizer, which pads ragged blocks as Qwen's and DeepSeek's exporters do. It reads U8
scales as numbers, so those are given to it as the F8_E8M0 that they are. Where every block is whole, transformers' Fp8Dequantize,
which knows U8 but not ragged shapes, is asked as well and has to say the same. (Its exp2 makes code 0xFF infinite, where E8M0 has
NaN: that code is in the ragged cases only.)
"""
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

# name, rows, columns, block, dtype of the scale, its name, whether it is the reciprocal
CASES = [
    ("f32_192x320", 192, 320, (128, 128), torch.float32, "weight_scale_inv", False),
    ("bf16_576x128", 576, 128, (128, 128), torch.bfloat16, "weight_scale_inv", False),
    ("f16_130x257", 130, 257, (128, 128), torch.float16, "weight_scale_inv", False),
    ("u8_1x200", 1, 200, (128, 128), torch.uint8, "weight_scale_inv", False),
    ("e8m0_70x100_tile32", 70, 100, (32, 32), torch.float8_e8m0fnu, "weight_scale_inv", False),
    ("u8_64x96_tile32", 64, 96, (32, 32), torch.uint8, "weight_scale_inv", False),
    ("u8_33x130_tile1x32", 33, 130, (1, 32), torch.uint8, "weight_scale_inv", False),
    ("f32_256x128_whole", 256, 128, (128, 128), torch.float32, "scale", False),
    ("bf16_97x161_tile32", 97, 161, (32, 32), torch.bfloat16, "qscale_weight", False),
    ("f32_130x140_inverse", 130, 140, (128, 128), torch.float32, "weight_scale_inv", True),
]


def codes(rows, columns, generator):
    """Every code but the two NaNs, subnormals and both zeros among them."""
    q = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    q[(q & 0x7F) == 0x7F] = 0x3A
    return q.view(torch.float8_e4m3fn)


def scales(grid, dtype, ragged, generator):
    if dtype in (torch.uint8, torch.float8_e8m0fnu):
        s = torch.randint(100, 140, grid, generator=generator, dtype=torch.uint8)
        flat = s.view(-1)
        extremes = [0, 1, 254] + ([255] if ragged else [])  # 2^-127 (subnormal), 2^-126, 2^127, NaN
        for i, code in enumerate(extremes[: max(flat.numel() - 1, 0)]):
            flat[i] = code
        return s.view(dtype)
    s = torch.exp(torch.randn(grid, generator=generator) * 2 - 6).to(dtype)
    if dtype == torch.float32 and s.numel() > 2:
        s.view(-1)[0] = 3e38  # overflows
        s.view(-1)[1] = 1e-40  # is itself subnormal, and so are its products
    return s


def reference(q, s, block, dtype):
    """compressed-tensors' values in `dtype`."""
    s = s.view(torch.float8_e8m0fnu) if s.dtype == torch.uint8 else s
    tensors = {"w.weight": q.clone(), "w.weight_scale_inv": s.clone()}
    converter = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=block, dtype=dtype)
    return converter.process(tensors)["w.weight"].contiguous()


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))


def make(out, name, rows, columns, block, dtype, scale_name, inverse, seed):
    generator = torch.Generator().manual_seed(seed)
    ragged = rows % block[0] != 0 or columns % block[1] != 0
    q = codes(rows, columns, generator)
    s = scales((-(-rows // block[0]), -(-columns // block[1])), dtype, ragged, generator)
    source = "compressed-tensors FP8BlockDequantizer"
    if inverse:
        # No library reads reciprocals: plain torch, block by block, is the reference.
        s.clamp_(1e-3, 1e3)
        source = "torch division"
        wide = s.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
        expected = q.to(torch.float32) / wide
        bridge = expected.to(torch.bfloat16)
    else:
        expected, bridge = reference(q, s, block, torch.float32), reference(q, s, block, torch.bfloat16)
    if not ragged and not inverse:
        for dtype_out, values in [(torch.float32, expected), (torch.bfloat16, bridge)]:
            assert same(Fp8Dequantize(None)._dequantize_one(q, s, dtype_out), values), f"{name}: the libraries differ"
        source += ", transformers Fp8Dequantize"
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    if inverse:
        config["weight_scale_semantics"] = "inverse"
    tensors = {"w.weight": q, f"w.{scale_name}": s, "expected_f32": expected, "bridge_bf16": bridge}
    metadata = {"quantization_config": json.dumps(config), "reference": source}
    save_file(tensors, out / f"{name}.safetensors", metadata=metadata)
    print(f"{name}: {source}; {int(expected.isnan().sum())} NaN, {int(expected.isinf().sum())} infinite, "
          f"{int(((expected != 0) & (expected.abs() < 2**-126)).sum())} subnormal")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(CASES):
        make(out, *case, seed)


main()
