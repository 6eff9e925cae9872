#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["compressed-tensors==0.17.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/encode_fp8: weights in f32 and what compressed-tensors encodes them to as block FP8.

    python scripts/fixtures_encode_fp8.py tests/fixtures/encode_fp8

One file a case, with `w` (F32 or BF16), the library's `weight` (F8_E4M3) and `weight_scale_inv` (F32), and in its metadata the block.
The scale is the library's `calculate_qparams` of each block's least and greatest value, the codes are its `quantize`, both of the
weight as f32.
"""
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

# name, rows, columns, block, dtype of the weight
CASES = [
    ("f32_64x96_tile32", 64, 96, (32, 32), torch.float32),
    ("f32_130x35", 130, 35, (128, 128), torch.float32),
    ("bf16_33x150", 33, 150, (128, 128), torch.bfloat16),
    ("f32_1x5_tile1x2", 1, 5, (1, 2), torch.float32),
]


def weight(rows, columns, dtype, generator):
    """Normal numbers of many magnitudes, a corner of zeros, one of numbers whose scale is zero in f32, both zeros."""
    w = torch.randn(rows, columns, generator=generator) * 0.02
    w *= torch.exp(torch.randn(rows, columns, generator=generator) * 2)
    if rows > 32:
        w[:32, :32] = 0.0
        w[0, 0] = -0.0
        w[32:, :32] *= 1e-40
    return w.to(dtype)


def extremes(w, block):
    """The least and the greatest value of each block, [row blocks, column blocks]."""
    rows = [[(b.min(), b.max()) for b in band.split(block[1], 1)] for band in w.split(block[0], 0)]
    return [torch.tensor([[pair[i] for pair in row] for row in rows]) for i in range(2)]


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, (name, rows, columns, block, dtype) in enumerate(CASES):
        w = weight(rows, columns, dtype, torch.Generator().manual_seed(seed))
        args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="block", block_structure=list(block))
        scale, _ = calculate_qparams(*extremes(w.float(), block), args)
        codes = quantize(w.float(), scale, None, args, dtype=torch.float8_e4m3fn)
        tensors = {"w": w, "weight": codes.contiguous(), "weight_scale_inv": scale.contiguous()}
        save_file(tensors, out / f"{name}.safetensors", metadata={"block": json.dumps(block)})
        print(name, list(scale.shape), scale.dtype, f"{scale.min():.3g} to {scale.max():.3g}",
              f"{int((codes.view(torch.uint8) & 0x7F).eq(0).sum())} zeros")


main()
