#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["bitsandbytes==0.50.2", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/bitsandbytes: weights that bitsandbytes quantizes, and what it dequantizes them to.

    python scripts/fixtures_bitsandbytes.py tests/fixtures/bitsandbytes

One file a case. Each holds the tensors that a checkpoint has (`QuantState.as_dict(packed=True)`), named after `w.weight`, and
    expected_f32   what bitsandbytes gives, widened
    bridge_bf16    the same rounded to bf16
The file's metadata holds the case's `quantization_config`. The reference of four bits is the library's plain torch kernel,
`backends/default/ops.py`: the one that a CPU takes by default goes wrong where a row is no whole number of blocks. Where it is, that
one is asked as well. TORCHDYNAMO_DISABLE=1 keeps torch from compiling the kernel, which needs a C++ compiler.
"""
import json
import sys
from pathlib import Path

import bitsandbytes.functional as F
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

BF16, F16, F32, U8 = torch.bfloat16, torch.float16, torch.float32, torch.uint8
REFERENCE = getattr(_dequantize_4bit_compute, "_torchdynamo_orig_callable", _dequantize_4bit_compute)

# name, rows, columns, kind, block, nested, dtype of the values, of the storage
FOUR = [
    ("nf4_bf16_64x128", 64, 128, "nf4", 64, False, BF16, U8),
    ("nf4_nested_bf16_130x320", 130, 320, "nf4", 64, True, BF16, U8),
    ("nf4_nested_f16_129x200", 129, 200, "nf4", 64, True, F16, U8),
    ("nf4_nested_f32_33x61", 33, 61, "nf4", 64, True, F32, U8),
    ("nf4_block256_bf16_7x129", 7, 129, "nf4", 256, False, BF16, U8),
    ("nf4_block32_nested_f32_191x97", 191, 97, "nf4", 32, True, F32, U8),
    ("nf4_stored_bf16_35x64", 35, 64, "nf4", 64, True, BF16, BF16),
    ("nf4_stored_f32_16x48", 16, 48, "nf4", 64, False, F16, F32),
    ("nf4_block4096_bf16_3x2050", 3, 2050, "nf4", 4096, False, BF16, U8),
    ("fp4_f16_128x64", 128, 64, "fp4", 64, False, F16, U8),
    ("fp4_nested_bf16_65x130", 65, 130, "fp4", 64, True, BF16, U8),
    ("fp4_block128_f32_31x33", 31, 33, "fp4", 128, False, F32, U8),
    ("fp4_nested_f32_1x1", 1, 1, "fp4", 64, True, F32, U8),
]
EIGHT = [("int8_128x64", 128, 64), ("int8_33x127", 33, 127), ("int8_1x5", 1, 5)]


def save(out, name, tensors, values, config):
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    tensors |= {"expected_f32": values.float().contiguous(), "bridge_bf16": values.to(BF16).contiguous()}
    config = {"quant_method": "bitsandbytes", **config}
    save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
    print(name, list(tensors["w.weight"].shape), config)


def four(out, name, rows, columns, kind, block, nested, dtype, storage, generator):
    weight = torch.randn(rows, columns, generator=generator).to(dtype)
    weight.view(-1)[: min(block, weight.numel() - 1)] *= 7
    codes, state = F.quantize_4bit(weight, blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage)
    absmax = state.absmax
    if nested:
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    values = REFERENCE(codes.view(U8).reshape(-1)[: (rows * columns + 1) // 2], absmax, state.code, block, (rows, columns), dtype)
    if columns % block == 0:
        assert torch.equal(F.dequantize_4bit(codes, state), values), f"{name}: the kernels differ"
    tensors = {"w.weight": codes} | {f"w.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    config = {"load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    save(out, name, tensors, values, config)


def eight(out, name, rows, columns, generator):
    codes, scale, _ = F.int8_vectorwise_quant(torch.randn(rows, columns, generator=generator).to(F16))
    values = F.int8_vectorwise_dequant(codes, scale)
    tensors = {"w.weight": codes, "w.SCB": scale, "w.weight_format": torch.tensor(0, dtype=U8)}
    save(out, name, tensors, values, {"load_in_4bit": False, "load_in_8bit": True})


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(20)
    for case in FOUR:
        four(out, *case, generator)
    for case in EIGHT:
        eight(out, *case, generator)


main()
