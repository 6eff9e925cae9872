#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/fp8: FP8 weights under one scale, or one a row, and what transformers dequantizes them to.

    python scripts/fixtures_fp8_plain.py tests/fixtures/fp8

One file a case, as in fixtures_fp8.py: `w.weight`, its scale, `expected_f32`, `bridge_bf16`; the config in the metadata. The
reference is transformers' Fp8Dequantize, which is given a scale a row as the grid `[out, 1]` that it is.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
NESTED = {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}
CHANNEL = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}

# name, rows, columns, config, name and shape and dtype of the scale
CASES = [
    ("scalar_f32_33x61", 33, 61, FP8, "weight_scale", [], torch.float32),
    ("one_bf16_128x64", 128, 64, FP8, "weight_scale", [1], torch.bfloat16),
    ("one_f16_7x129", 7, 129, FP8, "weight_scale_inv", [1, 1], torch.float16),
    ("rows_bf16_130x33", 130, 33, FP8, "weight_scale", [130, 1], torch.bfloat16),
    ("rows_f32_65x20", 65, 20, FP8, "weight_scale", [65], torch.float32),
    ("row_f32_1x9", 1, 9, FP8, "scale", [1], torch.float32),
    ("modelopt_f32_191x40", 191, 40, MODELOPT, "weight_scale", [], torch.float32),
    ("modelopt_nested_f32_34x65", 34, 65, NESTED, "weight_scale", [1], torch.float32),
    ("modelopt_overflow_f32_4x256", 4, 256, MODELOPT, "weight_scale", [], torch.float32),
    ("modelopt_rows_f32_129x31", 129, 31, CHANNEL, "weight_scale", [129], torch.float32),
    ("modelopt_rows_f32_1x31", 1, 31, CHANNEL, "weight_scale", [1], torch.float32),
]


def make(out, name, rows, columns, config, scale_name, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), generator=generator, dtype=torch.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x3A  # NaN is tested by itself
    scale = torch.exp(torch.randn(shape, generator=generator) * 2 - 6).to(dtype)
    if "overflow" in name:
        scale.fill_(3e38)
    codes = codes.view(torch.float8_e4m3fn)
    grid = scale.reshape(rows, 1) if scale.numel() == rows else scale.reshape(1, 1)
    values = {d: Fp8Dequantize(None)._dequantize_one(codes, grid, d) for d in (torch.float32, torch.bfloat16)}
    tensors = {"w.weight": codes, f"w.{scale_name}": scale, "w.input_scale": torch.tensor(0.5),
               "expected_f32": values[torch.float32], "bridge_bf16": values[torch.bfloat16]}
    save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, values[torch.float32].abs().max())


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for seed, case in enumerate(CASES):
        make(out, *case, seed)


main()
