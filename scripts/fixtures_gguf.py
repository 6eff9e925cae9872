#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/gguf and tests/fixtures/gguf_models with gguf-py, and what gguf-py and transformers make of them.

    python scripts/fixtures_gguf.py tests/fixtures [later]

`gguf`: one weight a file, `blk.0.ffn_up.weight`, beside the values that `gguf.quants.dequantize` gives it as `expected_f32`, and those
rounded by `quantize` to BF16 as `bridge_bf16`. Types of 32 values are quantized by gguf-py. It only decodes K-quants: their codes and
the scales of their parts are random bytes, the scales of their blocks small F16 numbers.

`gguf_models`: tiny models of each family, and beside each the weights under their names in transformers, as its
`load_gguf_checkpoint` reads them: that undoes the permutation of llama's Q and K as well.
"""
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from gguf.constants import GGML_QUANT_SIZES
from safetensors.numpy import save_file
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

# where the F16 scales of a K-quant's block lie
SCALES = {
    Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208], Q.Q2_K: [80, 82], Q.Q3_K: [108], Q.IQ4_XS: [0], Q.IQ2_XXS: [0], Q.IQ2_XS: [0],
    Q.IQ2_S: [0], Q.IQ3_XXS: [0], Q.IQ3_S: [0], Q.IQ1_S: [0], Q.IQ1_M: [], Q.IQ4_NL: [0], Q.MXFP4: [], Q.NVFP4: [],
}
SHAPES = {1: [(7, 33), (34, 16)], 32: [(33, 32), (5, 160)], 64: [(33, 64), (5, 192)], 256: [(5, 256), (2, 768)]}
TYPES = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K]
# those since 2026; IQ1_M has its block's scale in the upper bits of its other scales, and all of its bytes are random
LATER = [
    Q.Q2_K, Q.Q3_K, Q.IQ4_NL, Q.IQ4_XS, Q.IQ3_XXS, Q.IQ3_S, Q.IQ2_XXS, Q.IQ2_XS, Q.IQ2_S, Q.IQ1_S, Q.IQ1_M, Q.TQ1_0, Q.TQ2_0, Q.MXFP4,
    Q.NVFP4,
]


def packed(kind, shape, rng):
    """A tensor of that type as bytes, or as numbers where the type is one of numpy's."""
    values = (rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))).astype(np.float32)
    if kind not in SCALES:
        return gguf.quants.quantize(values, kind)
    size, width = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0], shape[1] // size, width), dtype=np.uint8)
    if kind == Q.MXFP4:  # exponents of which the ends are few
        blocks[..., 0] = rng.choice([0, 1, 2, 3, *range(100, 150)], blocks.shape[:2])
    if kind == Q.IQ1_M:  # an exponent below infinity's
        blocks[..., 55] &= 0xBF
    for at in SCALES[kind]:
        scale = (rng.standard_normal(blocks.shape[:2]) * 0.01).astype(np.float16)
        blocks[..., at : at + 2] = scale.view(np.uint8).reshape(*scale.shape, 2)
    return blocks.reshape(shape[0], -1)


def add(writer, name, data, kind):
    plain = kind in (Q.F32, Q.F16)
    writer.add_tensor(name, data, raw_dtype=None if plain else kind)


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weight(out, kind, shape, rng):
    data = packed(kind, shape, rng)
    expected = gguf.quants.dequantize(data, kind).reshape(shape).astype(np.float32)
    name = f"{kind.name.lower()}_{shape[0]}x{shape[1]}.gguf"
    writer = gguf.GGUFWriter(out / name, "qwen3")
    add(writer, "blk.0.ffn_up.weight", data, kind)
    add(writer, "expected_f32", expected, Q.F32)
    add(writer, "bridge_bf16", gguf.quants.quantize(expected, Q.BF16), Q.BF16)
    close(writer)
    print(name)


def model(out, arch, config, kinds, rng, more, file=None, single=lambda expert, part: f"mlp.experts.{expert}.{part}_proj"):
    """Every weight of a model made from `config`, under gguf-py's name for it; `single` names one expert's weight in a layer."""
    file = file or arch
    with torch.device("meta"):
        blank = transformers.AutoModelForCausalLM.from_config(config)
    writer = gguf.GGUFWriter(out / f"{file}.gguf", arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(config.vocab_size)
    # what a file is full of: lists that a reader of weights passes over
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
    writer.add_token_scores([0.5] * config.vocab_size)
    more(writer)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    index = 0
    for name, parameter in blank.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, ".", "weight"
        shape = tuple(parameter.shape)
        if stem.endswith("experts.gate_up_proj"):  # fused in transformers, two tensors in GGUF
            layer = stem.split(".")[2]
            for part in ("gate", "up"):
                values = rng.standard_normal((shape[0], shape[1] // 2, shape[2])).astype(np.float32)
                add(writer, f"blk.{layer}.ffn_{part}_exps.weight", gguf.quants.quantize(values, Q.Q8_0), Q.Q8_0)
            continue
        theirs = names.get_name(stem.replace("mlp.experts.down_proj", "block_sparse_moe.experts.w2"))
        assert theirs, name
        if len(shape) == 1 or stem.endswith("mlp.gate"):
            add(writer, f"{theirs}.{suffix}", rng.standard_normal(shape).astype(np.float32), Q.F32)
            continue
        kind = kinds[index % len(kinds)]
        index += 1
        values = rng.standard_normal(shape).astype(np.float32)
        add(writer, f"{theirs}.{suffix}", gguf.quants.quantize(values, kind), kind)
    close(writer)
    # transformers does not read Mixtral
    known = arch == file
    loaded = load_gguf_checkpoint(out / f"{file}.gguf", return_tensors=True, model_to_load=blank)["tensors"] if known else {}
    expected = {name: np.ascontiguousarray(t.float().numpy()) for name, t in loaded.items() if "experts" not in name}
    # transformers stacks experts otherwise: each by itself, as gguf-py decodes it
    for tensor in gguf.GGUFReader(out / f"{file}.gguf").tensors:
        if "_exps." not in tensor.name:
            continue
        _, layer, part, _ = tensor.name.split(".")
        part = part.removeprefix("ffn_").removesuffix("_exps")
        for expert, values in enumerate(gguf.quants.dequantize(tensor.data, tensor.tensor_type)):
            expected[f"model.layers.{layer}.{single(expert, part)}.weight"] = np.ascontiguousarray(values)
    save_file(expected, out / f"{file}.safetensors")
    print(file, len(expected))


def main():
    out, rng = Path(sys.argv[1]), np.random.default_rng(4)
    for folder in ("gguf", "gguf_models"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for kind in LATER:
        for shape in SHAPES[GGML_QUANT_SIZES[kind][0]]:
            weight(out / "gguf", kind, shape, np.random.default_rng(int(kind)))
    if sys.argv[2:] == ["later"]:
        return
    for kind in TYPES:
        for shape in SHAPES[GGML_QUANT_SIZES[kind][0]]:
            weight(out / "gguf", kind, shape, rng)
    common = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=24
    )
    kinds = [Q.Q8_0, Q.F16, Q.Q4_0, Q.BF16, Q.Q5_1]
    llama = transformers.LlamaConfig(**common, tie_word_embeddings=False)
    model(out / "gguf_models", "llama", llama, kinds, rng, lambda w: w.add_rope_dimension_count(8))
    qwen2 = transformers.Qwen2Config(**common, tie_word_embeddings=True)
    model(out / "gguf_models", "qwen2", qwen2, kinds, rng, lambda w: None)
    moe = transformers.Qwen3MoeConfig(
        **common, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32, tie_word_embeddings=False
    )

    def experts(writer):
        writer.add_key_length(8)
        writer.add_value_length(8)
        writer.add_expert_count(2)
        writer.add_expert_used_count(1)
        writer.add_expert_feed_forward_length(32)

    model(out / "gguf_models", "qwen3moe", moe, kinds, rng, experts)
    mixtral = transformers.MixtralConfig(**common, head_dim=8, num_local_experts=2, num_experts_per_tok=1, tie_word_embeddings=False)
    letters = {"gate": "w1", "up": "w3", "down": "w2"}
    name = lambda expert, part: f"block_sparse_moe.experts.{expert}.{letters[part]}"

    def experts(writer):
        writer.add_rope_dimension_count(8)
        writer.add_expert_count(2)
        writer.add_expert_used_count(1)

    model(out / "gguf_models", "llama", mixtral, kinds, rng, experts, "mixtral", name)


main()
