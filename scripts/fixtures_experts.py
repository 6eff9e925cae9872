#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/mxfp4 and tests/fixtures/fp8_experts: stacks of experts, and what transformers dequantizes them to.

    python scripts/fixtures_experts.py tests/fixtures

One file a case, as in fixtures_fp8.py, but the weights are experts' and `expected_f32`, `bridge_bf16` are `[experts, out, in]`. The
references are transformers' `convert_moe_packed_tensors`, whose `[experts, in, out]` is turned back, and its Fp8Dequantize, which takes
a stack as it is. A transposed stack is turned after it was dequantized. A scale of 255 is left out: infinite there, NaN in the
standard. Where which side is `hidden_size` decides, the metadata holds the model's `config` too.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
NAME = "w.experts.gate_up_proj"

# name, experts, rows, blocks of 32
PACKED = [("3x34x64", 3, 34, 2), ("2x35x96", 2, 35, 3), ("5x2x32", 5, 2, 1)]
# name, experts, rows and columns as stored, dtype, transposed
STACKED = [
    ("e4m3_3x32x48", 3, 32, 48, torch.float8_e4m3fn, False),
    ("e4m3_2x48x80_turned", 2, 48, 80, torch.float8_e4m3fn, True),
    ("e5m2_2x64x32_turned", 2, 64, 32, torch.float8_e5m2, True),
]


def save(path, tensors, expected, bridge, quantization, config=None):
    metadata = {"quantization_config": json.dumps(quantization)} | ({"config": json.dumps(config)} if config else {})
    save_file(tensors | {"expected_f32": expected.contiguous(), "bridge_bf16": bridge.contiguous()}, path, metadata=metadata)
    print(path.name, list(expected.shape), f"{int(expected.isinf().sum())} infinite, {int(expected.isnan().sum())} NaN")


def packed(path, experts, rows, groups, seed):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (experts, rows, groups, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(100, 140, (experts, rows, groups), generator=generator, dtype=torch.uint8)
    scales.view(-1)[:3] = torch.tensor([0, 1, 254], dtype=torch.uint8)  # subnormal; the smallest normal; overflows
    bridge = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).transpose(1, 2)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    save(path, {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}, expected, bridge, MXFP4)


def stacked(path, experts, rows, columns, dtype, turned, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (experts, rows, columns), generator=generator, dtype=torch.uint8)
    magnitude = codes & 0x7F
    codes[magnitude > (0x7E if dtype == torch.float8_e4m3fn else 0x7C)] = 0x3A  # NaN is tested by itself
    codes = codes.view(dtype)
    scales = torch.exp(torch.randn((experts, rows // 16, columns // 16), generator=generator) * 2 - 6)
    values = {d: Fp8Dequantize(None)._dequantize_one(codes, scales, d) for d in (torch.float32, torch.bfloat16)}
    if turned:
        values = {d: v.transpose(1, 2) for d, v in values.items()}
    config = {"model_type": "qwen3_vl_moe", "text_config": {"hidden_size": rows if turned else columns}}
    quantization = FP8 | {"fmt": "e5m2" if dtype == torch.float8_e5m2 else "e4m3"}
    tensors = {NAME: codes, f"{NAME}_scale_inv": scales}
    save(path, tensors, values[torch.float32], values[torch.bfloat16], quantization, config)


def main():
    out = Path(sys.argv[1])
    for folder, make, cases in [("mxfp4", packed, PACKED), ("fp8_experts", stacked, STACKED)]:
        (out / folder).mkdir(parents=True, exist_ok=True)
        for seed, (name, *case) in enumerate(cases):
            make(out / folder / f"{name}.safetensors", *case, seed)


main()
