#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/e5m2: FP8 weights of the kind E5M2, and what torch makes of them.

    python scripts/fixtures_e5m2.py tests/fixtures/e5m2

One file a case, as in fixtures_fp8.py. The reference is transformers' Fp8Dequantize where every block is whole, else torch's own
conversion to f32 and product, block by block; both have to agree where both can be asked. Infinities are among the codes.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

BLOCK = {"quant_method": "fp8", "fmt": "e5m2", "activation_scheme": "dynamic"}
PLAIN = {"quant_method": "fp8", "activation_scheme": "static"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}

# name, rows, columns, block (none: a scale for all, or a row), config, name and shape and dtype of the scale
CASES = [
    ("block_f32_96x64", 96, 64, (32, 32), BLOCK, "weight_scale_inv", None, torch.float32),
    ("block_bf16_130x70", 130, 70, (32, 32), BLOCK, "weight_scale_inv", None, torch.bfloat16),
    ("scalar_f32_33x61", 33, 61, None, PLAIN, "weight_scale", [], torch.float32),
    ("rows_bf16_65x20", 65, 20, None, PLAIN, "weight_scale", [65, 1], torch.bfloat16),
    ("modelopt_f32_34x40", 34, 40, None, MODELOPT, "weight_scale", [], torch.float32),
]


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0), b.nan_to_num(0))


def make(out, name, rows, columns, block, config, scale_name, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    codes[(codes & 0x7F) > 0x7C] = 0x3A  # NaN
    codes = codes.view(torch.float8_e5m2)
    shape = [-(-rows // block[0]), -(-columns // block[1])] if block else shape
    scale = torch.exp(torch.randn(shape, generator=generator) * 2 - 6).to(dtype)
    config = config | ({"weight_block_size": list(block)} if block else {})
    height, width = block or (1 if scale.numel() == rows else rows, columns)
    grid = scale.reshape(-(-rows // height), -(-columns // width))
    wide = grid.to(torch.float32).repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    expected = codes.to(torch.float32) * wide
    bridge = expected.to(torch.bfloat16)
    if rows % height == 0 and columns % width == 0:
        for values in (expected, bridge):
            assert same(Fp8Dequantize(None)._dequantize_one(codes, grid, values.dtype), values), name
    tensors = {"w.weight": codes, f"w.{scale_name}": scale, "expected_f32": expected, "bridge_bf16": bridge}
    save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, f"{int(expected.isinf().sum())} infinite")


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(CASES):
        make(out, *case, seed)


main()
