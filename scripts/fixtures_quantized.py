#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "auto-round==0.16.1", "llmcompressor==0.14.0.1", "compressed-tensors==0.19.0", "nvidia-modelopt==0.47.0", "bitsandbytes==0.50.2",
#   "gguf==0.19.0", "transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5", "blake3==1.0.11",
# ]
# ///
"""Makes tests/fixtures/quantized: tests/data/base as the tools that people use quantize it, and what the reference makes of it.

    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9    # into a folder REF, and unpack both there
    TORCHDYNAMO_DISABLE=1 python scripts/fixtures_quantized.py REF tests/data/base tests/fixtures/quantized

Each tool writes a whole model. What is kept of it is the attention of the middle layer and, of the config, what says how it is
quantized. `expected.json` has for each module the blake3 of the values that the format's reference library gives it, as F32, zeros
without a sign. GPTQ and AWQ are written by auto-round, since their own tools do not install beside a recent torch; their references
are loaded by file, as in fixtures_columns.py.
"""
import copy
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from blake3 import blake3
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

LAYER = "model.layers.1.self_attn."
NAMES = [f"{LAYER}{name}_proj" for name in "qkvo"]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(values):
    # minus zero becomes zero, as it does in AutoGPTQ's product with the identity
    return blake3((values.detach().float() + 0.0).contiguous().numpy().tobytes()).hexdigest()


def keep(written, out, name, reference):
    """Cuts a model that a tool wrote down to the modules that are kept, and asks the reference for their values."""
    config = json.loads((written / "config.json").read_text())
    tensors = {}
    for path in sorted(written.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(LAYER) and "norm" not in key}
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {key: config[key] for key in ("model_type", "quantization_config") if key in config}
    expected = {}
    for module in NAMES:
        parts = {key.removeprefix(module + "."): value for key, value in tensors.items() if key.startswith(module + ".")}
        expected[module] = digest(reference(parts, config.get("quantization_config")))
    save_file(tensors, folder / "model.safetensors")
    finish(folder, config, expected)


def finish(folder, config, expected):
    if config:
        (folder / "config.json").write_text(json.dumps(config) + "\n")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(folder.name, sum(path.stat().st_size for path in folder.iterdir()), flush=True)


def rounded(base, work, out, form, reference, **scheme):
    """auto-round without its tuning: nearest rounding."""
    from auto_round import AutoRound

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base, dtype="auto"), AutoTokenizer.from_pretrained(base)
    tool = AutoRound(model, tokenizer, iters=0, disable_opt_rtn=True, device_map="cpu", **scheme)
    tool.quantize_and_save(str(work / form), format=form)
    keep(next((work / form).rglob("config.json")).parent, out, form, reference)


def gptq(linear):
    def values(parts, config):
        inputs, outputs = parts["qweight"].shape[0] * 32 // config["bits"], parts["qweight"].shape[1]
        layer = linear(config["bits"], config["group_size"], inputs, outputs, bias=False, kernel_switch_threshold=0)
        layer.qweight, layer.qzeros, layer.scales = parts["qweight"], parts["qzeros"], parts["scales"].half()
        layer.g_idx = parts.get("g_idx", layer.g_idx)
        return layer(torch.eye(inputs, dtype=torch.float16)).t()

    return values


def awq(dequantize_gemm):
    return lambda parts, config: dequantize_gemm(
        parts["qweight"], parts["qzeros"], parts["scales"], config["bits"], config["group_size"]
    ).t()


def compressed(base, work, out, name, **weights):
    """llm-compressor's data-free quantization."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    oneshot(model=model, recipe=QuantizationModifier(config_groups=groups, ignore=["lm_head"]))
    model.save_pretrained(work / name, save_compressed=True)

    def values(parts, config):
        group = config["config_groups"]["group_0"]
        form = group.get("format") or config["format"]
        parts = {key: value for key, value in parts.items() if not key.startswith("input")}
        raw = {key: group[key] for key in ("targets", "weights")} | {"format": form}
        return BaseCompressor.get_value_from_registry(form).decompress(parts, QuantizationScheme(**raw))["weight"]

    keep(work / name, out, name, values)


def bitsandbytes(base, work, out):
    import bitsandbytes.functional as F
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as kernel

    kernel = getattr(kernel, "_torchdynamo_orig_callable", kernel)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu", dtype=torch.bfloat16)
    model.save_pretrained(work / "nf4")

    def values(parts, config):
        state = {key.removeprefix("weight."): value for key, value in parts.items() if key != "weight"}
        state = F.QuantState.from_dict(state, device="cpu")
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
        return kernel(parts["weight"].reshape(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)

    keep(work / "nf4", out, "bitsandbytes_nf4", values)


def modelopt(base, work, out):
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    def fp8(parts, config):
        tensor = FP8QTensor(parts["weight"].shape, torch.float32, parts["weight"])
        return tensor.dequantize(torch.float32, scale=parts["weight_scale"])

    def nvfp4(parts, config):
        rows, half = parts["weight"].shape
        tensor = NVFP4QTensor((rows, half * 2), torch.bfloat16, parts["weight"])
        more = dict(scale=parts["weight_scale"], double_scale=parts["weight_scale_2"], block_sizes={-1: 16})
        return tensor.dequantize(torch.bfloat16, **more)

    def loop(model):
        with torch.no_grad():
            model(torch.arange(64)[None])

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for name, config, reference in [("fp8", mtq.FP8_DEFAULT_CFG, fp8), ("nvfp4", mtq.NVFP4_DEFAULT_CFG, nvfp4)]:
        quantized = mtq.quantize(copy.deepcopy(model), config, loop)
        export_hf_checkpoint(quantized, export_dir=work / name)
        keep(work / name, out, f"modelopt_{name}", reference)


def ggml(base, out, kind):
    name = f"gguf_{kind.name.lower()}"
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "qwen3")
    state = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    expected = {}
    for module, theirs in zip(NAMES, ["attn_q", "attn_k", "attn_v", "attn_output"]):
        codes = gguf.quants.quantize(state[f"{module}.weight"].numpy(), kind)
        writer.add_tensor(f"blk.1.{theirs}.weight", codes, raw_dtype=kind)
        expected[module] = digest(torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(codes, kind))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    finish(folder, None, expected)


def main():
    reference, base, out = map(Path, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        linear = load(reference / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
        dequantize_gemm = load(reference / "autoawq-0.2.9/awq/utils/packing_utils.py").dequantize_gemm
        rounded(base, work, out, "auto_gptq", gptq(linear), scheme="W4A16", group_size=32)
        rounded(base, work, out, "auto_awq", awq(dequantize_gemm), scheme="W4A16", group_size=32, sym=False)
        four = dict(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False)
        compressed(base, work, out, "compressed_w4a16", **four)
        compressed(base, work, out, "compressed_fp8", num_bits=8, type="float", strategy="channel", symmetric=True)
        bitsandbytes(base, work, out)
        modelopt(base, work, out)
    for kind in [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0]:
        ggml(base, out, kind)


main()
