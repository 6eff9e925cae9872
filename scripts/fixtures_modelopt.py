#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/modelopt: NVFP4 weights and what modelopt dequantizes them to.

    pip download --no-deps nvidia-modelopt==0.47.0    # into a folder REF, and unpack it there
    python scripts/fixtures_modelopt.py REF tests/fixtures/modelopt

modelopt's own `qtensor/nvfp4_tensor.py` is loaded by file, with empty modules in the place of those that its `dequantize` does not
call. As in fixtures_fp8.py a file has the stored tensors, `expected_f32` (its bf16 values, widened) and `bridge_bf16`.
"""
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

CONFIG = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
NESTED = {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
CASES = [("130x96", 130, 96, CONFIG), ("3x16", 3, 16, NESTED), ("67x144", 67, 144, CONFIG), ("128x64", 128, 64, NESTED)]


class QTensor:
    """What `dequantize` needs of modelopt's base class."""

    def __init__(self, shape, dtype, data):
        self.metadata, self._quantized_data = {"shape": shape, "dtype": dtype}, data


def load(reference):
    path = reference / "modelopt/torch/quantization/qtensor/nvfp4_tensor.py"
    for name in ["modelopt", "modelopt.torch", "modelopt.torch.quantization", "modelopt.torch.quantization.qtensor"]:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    for name in ["backends", "backends.utils", "utils", "utils.numeric_utils", "qtensor.base_qtensor"]:
        sys.modules[f"modelopt.torch.quantization.{name}"] = MagicMock()
    sys.modules["modelopt.torch.quantization.qtensor.base_qtensor"].BaseQuantizedTensor = QTensor
    spec = importlib.util.spec_from_file_location("modelopt.torch.quantization.qtensor.nvfp4_tensor", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NVFP4QTensor


def main():
    qtensor, out = load(Path(sys.argv[1])), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(9)
    for name, rows, columns, config in CASES:
        codes = torch.randint(0, 256, (rows, columns // 2), generator=generator, dtype=torch.uint8)
        scale = (torch.rand((rows, columns // 16), generator=generator) * 448).to(torch.float8_e4m3fn)
        double = torch.rand((), generator=generator) * 1e-4
        values = qtensor((rows, columns), torch.bfloat16, codes).dequantize(
            torch.bfloat16, scale=scale, double_scale=double, block_sizes={-1: 16})
        tensors = {"w.weight": codes, "w.weight_scale": scale, "w.weight_scale_2": double, "w.input_scale": torch.tensor(0.1),
                   "expected_f32": values.float(), "bridge_bf16": values}
        save_file(tensors, out / f"{name}.safetensors", metadata={"quantization_config": json.dumps(config)})
        print(name, values.dtype, values.abs().max())


main()
