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
    TORCHDYNAMO_DISABLE=1 python scripts/fixtures_quantized.py REF tests/data/base tests/fixtures/quantized [NAME ...]

NAME is a folder of the fixtures; without one, all are made. A fixture needs its own tool only, so that tools which do not install
beside each other can be asked one by one.

Each tool writes a whole model. What is kept of it is the attention of the middle layer and, of the config, what says how it is
quantized. `expected.json` has for each module the blake3 of the values that the format's reference library gives it, as F32, zeros
without a sign. GPTQ and AWQ are written by auto-round, since their own tools do not install beside a recent torch; their references
are loaded by file, as in fixtures_columns.py. FP8 without blocks is written by transformers' Fp8Quantize, which its
quantizer runs on a GPU only, and E5M2 by the same operation with its dtype set to that, since no tool chooses it. K-quants are
missing: their blocks hold 256 values of a row, and the rows here are of 128 and 160.
"""
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

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


def compressed(base, work, out, name, scheme):
    """llm-compressor's data-free quantization, by the name of one of its schemes or by what it says of the weights."""
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    named = isinstance(scheme, str)
    scheme = preset_name_to_scheme(scheme, ["Linear"]) if named else QuantizationScheme(targets=["Linear"], weights=scheme)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    oneshot(model=model, recipe=QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    model.save_pretrained(work / name, save_compressed=True)
    keep(work / name, out, name, decompressed)


def decompressed(parts, config):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    group = config["config_groups"]["group_0"]
    form = group.get("format") or config["format"]
    parts = {key: value for key, value in parts.items() if not key.startswith("input")}
    raw = {key: group[key] for key in ("targets", "weights")} | {"format": form}
    return BaseCompressor.get_value_from_registry(form).decompress(parts, QuantizationScheme(**raw))["weight"]


def bitsandbytes(base, work, out, name, **kind):
    import bitsandbytes.functional as F
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute as kernel

    kernel = getattr(kernel, "_torchdynamo_orig_callable", kernel)
    config = BitsAndBytesConfig(**kind)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map="cpu", dtype=torch.bfloat16)
    model.save_pretrained(work / name)

    def values(parts, config):
        if config["load_in_8bit"]:
            return F.int8_vectorwise_dequant(parts["weight"], parts["SCB"])
        state = {key.removeprefix("weight."): value for key, value in parts.items() if key != "weight"}
        state = F.QuantState.from_dict(state, device="cpu")
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        return kernel(parts["weight"].reshape(-1), absmax, state.code, state.blocksize, state.shape, state.dtype)

    keep(work / name, out, name, values)


def fp8(base, work, out, name, dtype, blocks=None):
    """transformers' own operation, on the weights of the linear layers."""
    from transformers import FineGrainedFP8Config
    from transformers.integrations import finegrained_fp8 as theirs

    theirs._FP8_DTYPE, (theirs._FP8_MIN, theirs._FP8_MAX) = dtype, (torch.finfo(dtype).min, torch.finfo(dtype).max)
    quantizer = SimpleNamespace(quantization_config=FineGrainedFP8Config(weight_block_size=blocks))
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    linear = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head.weight"}
    tensors = {}
    for key, value in model.state_dict().items():
        tensors |= theirs.Fp8Quantize(quantizer)._quantize_one(key, value) if key in linear else {key: value}
    model.config.quantization_config = quantizer.quantization_config
    model.config.save_pretrained(work / name)
    save_file(tensors, work / name / "model.safetensors")

    def values(parts, config):
        return theirs.Fp8Dequantize(quantizer)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.float32)

    keep(work / name, out, name, values)


def modelopt(base, work, out, name):
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
    config, reference = (mtq.FP8_DEFAULT_CFG, fp8) if name == "modelopt_fp8" else (mtq.NVFP4_DEFAULT_CFG, nvfp4)
    export_hf_checkpoint(mtq.quantize(model, config, loop), export_dir=work / name)
    keep(work / name, out, name, reference)


def ggml(base, out, name):
    import gguf

    kind = gguf.GGMLQuantizationType[name.removeprefix("gguf_").upper()]
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


FOUR = dict(num_bits=4, type="int", strategy="group", group_size=32, symmetric=False)
EIGHT = dict(num_bits=8, type="float", symmetric=True)
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
FP4 = dict(load_in_4bit=True, bnb_4bit_quant_type="fp4")


def jobs(ref, base, work, out):
    """Each fixture's name, and what makes it."""
    cuda = "auto_gptq/nn_modules/qlinear/qlinear_cuda.py"
    linear = lambda: gptq(load(ref / cuda).QuantLinear)
    gemm = lambda: awq(load(ref / "autoawq-0.2.9/awq/utils/packing_utils.py").dequantize_gemm)
    four = dict(scheme="W4A16", group_size=32)
    here = (base, work, out)
    return {
        "auto_gptq": lambda name: rounded(*here, name, linear(), **four),
        "auto_awq": lambda name: rounded(*here, name, gemm(), **four, sym=False),
        "compressed_w4a16": lambda name: compressed(*here, name, FOUR),
        "compressed_w8a16": lambda name: compressed(*here, name, FOUR | {"num_bits": 8}),
        "compressed_int8": lambda name: compressed(*here, name, "W8A8"),
        "compressed_fp8": lambda name: compressed(*here, name, EIGHT | {"strategy": "channel"}),
        "compressed_fp8_tensor": lambda name: compressed(*here, name, EIGHT | {"strategy": "tensor"}),
        "compressed_nvfp4": lambda name: compressed(*here, name, "NVFP4A16"),
        "compressed_mxfp4": lambda name: compressed(*here, name, "MXFP4A16"),
        "compressed_mxfp8": lambda name: compressed(*here, name, "MXFP8A16"),
        "bitsandbytes_nf4": lambda name: bitsandbytes(*here, name, **NF4),
        "bitsandbytes_fp4": lambda name: bitsandbytes(*here, name, **FP4),
        "bitsandbytes_int8": lambda name: bitsandbytes(*here, name, load_in_8bit=True),
        "fp8_blocks": lambda name: fp8(*here, name, torch.float8_e4m3fn, (32, 32)),
        "fp8_tensor": lambda name: fp8(*here, name, torch.float8_e4m3fn),
        "fp8_e5m2": lambda name: fp8(*here, name, torch.float8_e5m2),
        "modelopt_fp8": lambda name: modelopt(*here, name),
        "modelopt_nvfp4": lambda name: modelopt(*here, name),
        "gguf_q8_0": lambda name: ggml(base, out, name),
        "gguf_q4_0": lambda name: ggml(base, out, name),
    }


def main():
    ref, base, out = map(Path, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as work:
        every = jobs(ref, base, Path(work), out)
        for name in sys.argv[4:] or every:
            every[name](name)


main()
