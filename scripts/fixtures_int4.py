#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["compressed-tensors==0.17.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/int4: weights, and what compressed-tensors makes of them as symmetric INT4 in groups, round to nearest.

    python scripts/fixtures_int4.py tests/fixtures/int4

One file a case, with `w` in its dtype, the library's `weight_packed` and `weight_scale`, and `expected_f32`, what its `decompress`
gives (in the dtype of the scale), widened. Scales are the library's `calculate_qparams` of each group's least and greatest value, all
in the weight's dtype, as where a model is quantized in the dtype it is stored in. The metadata holds the group's size.
"""
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

# name, rows, columns, group, dtype
CASES = [
    ("bf16_33x128_group32", 33, 128, 32, torch.bfloat16),
    ("bf16_8x256_group128", 8, 256, 128, torch.bfloat16),
    ("f16_20x96_group32", 20, 96, 32, torch.float16),
    ("f32_17x64_group64", 17, 64, 64, torch.float32),
]


def weight(rows, columns, dtype, generator):
    """Normal numbers of many magnitudes, and two groups of zeros."""
    w = torch.randn(rows, columns, generator=generator) * 0.02
    w *= torch.exp(torch.randn(rows, columns, generator=generator))
    w[1, :32] = 0.0
    w[2] = -0.0
    return w.to(dtype)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    for seed, (name, rows, columns, group, dtype) in enumerate(CASES):
        w = weight(rows, columns, dtype, torch.Generator().manual_seed(seed))
        args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=group)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
        groups = w.unflatten(-1, (columns // group, group))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        assert scale.dtype == dtype
        packed = compressor.compress({"weight": w, "weight_scale": scale}, scheme)
        values = compressor.decompress(dict(packed), scheme)["weight"]
        assert values.dtype == dtype and values.shape == w.shape
        tensors = {"w": w, "weight_packed": packed["weight_packed"].contiguous(), "weight_scale": scale.contiguous(),
                   "expected_f32": values.float().contiguous()}
        save_file(tensors, out / f"{name}.safetensors", metadata={"group": str(group)})
        print(name, list(scale.shape), f"{scale.float().min():.3g} to {scale.float().max():.3g}",
              f"error {(values.float() - w.float()).norm() / w.float().norm():.4f}")


main()
