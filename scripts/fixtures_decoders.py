#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["transformers==5.19.0", "torch==2.13.0", "peft==0.21.2", "safetensors==0.8.0", "tokenizers==0.23.3"]
# ///
"""Makes tests/fixtures/decoders: tiny random models of every decoder that `calibrate` and `evaluate` run, and what transformers and
PEFT say of them.

    python scripts/fixtures_decoders.py .

One folder a case: the model in bf16 as `save_pretrained` writes it, adapters as PEFT writes them, and `expected.json` with the token ids,
the mean next-token loss of every sequence, the same with each adapter, and for every distinct input of a linear layer its number of rows
and the sums of their squares, taken by forward hooks in f32. Experts are fused modules in transformers: what a hook on the whole stack is
given says which rows each expert gets, and the reference's own gate and up give the rows of its down projection. `tokenizer.json` has
the numbers from 0 on as its words, and `text.jsonl` the sequences in them.

`pair.json` has the same of the real pair in tests/data, `base` and `base-fp8` (dequantized here by its block scales), on the beginning of
the built-in text.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 96
LENGTHS = [40, 23, 9]
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=None, max_position_embeddings=512,
)
SMALL = SHAPE | dict(num_hidden_layers=2)
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16)
LONG = dict(
    rope_type="longrope", rope_theta=1000.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.1, 1.3], long_factor=[2.0, 3.0, 5.0],
    original_max_position_embeddings=128,
)

CASES = {
    "llama": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SMALL, sliding_window=8, head_dim=12),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6, max_window_layers=2),
    "qwen3": Qwen3Config(**SMALL, head_dim=16, rope_parameters=YARN),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, mlp_only_layers=[1],
    ),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "gemma2": Gemma2Config(
        **SHAPE, head_dim=16, query_pre_attn_scalar=20, sliding_window=8, attn_logit_softcapping=3.0, final_logit_softcapping=5.0,
    ),
    "gemma3": Gemma3TextConfig(
        **SHAPE, head_dim=16, query_pre_attn_scalar=20, sliding_window=8, layer_types=ALTERNATING,
        rope_parameters={
            "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1000.0),
            "sliding_attention": dict(rope_type="default", rope_theta=100.0),
        },
    ),
    "phi3": Phi3Config(**SMALL, original_max_position_embeddings=128, rope_parameters=LONG),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "llama": {
        "linear": LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR),
        "ends": LoraConfig(r=3, lora_alpha=3, target_modules=["q_proj", "lm_head", "embed_tokens"]),
    },
    "gemma3": {"linear": LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=LINEAR)},
    "phi3": {"linear": LoraConfig(r=2, lora_alpha=4, target_modules=["qkv_proj", "gate_up_proj", "o_proj"])},
}


def random_model(config, seed):
    """Weights so large that attention, routing and caps matter."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * ((0.3 if config.tie_word_embeddings else 1.0) if "embed" in name else 1.5 / parameter.shape[-1] ** 0.5))
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.3)
            else:
                parameter.add_(noise * 0.2)
    return model.to(torch.bfloat16)


class Moments:
    """Sums of squares of every module's input, under the module's name in the checkpoint."""

    def __init__(self, model):
        self.sums = {}
        self.handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) or name.endswith("mlp.gate"):
                self.handles.append(module.register_forward_pre_hook(lambda _, given, name=name: self.add(name, given[0])))
            if name.endswith("mlp.experts"):
                self.handles.append(module.register_forward_pre_hook(lambda m, given, name=name: self.experts(name, m, *given)))

    def add(self, name, rows):
        rows = rows.reshape(-1, rows.shape[-1]).double()
        count, squares = self.sums.get(name, (0, 0))
        self.sums[name] = (count + len(rows), squares + rows.square().sum(0))

    def experts(self, name, module, hidden, index, _weights):
        mixtral = "Mixtral" in type(module).__name__
        path = name.replace("mlp.experts", "block_sparse_moe.experts") if mixtral else name
        first, last = ("w1", "w2") if mixtral else ("gate_proj", "down_proj")
        for expert in range(module.num_experts):
            rows = hidden[(index == expert).any(-1)]
            gate, up = torch.nn.functional.linear(rows, module.gate_up_proj[expert]).chunk(2, dim=-1)
            self.add(f"{path}.{expert}.{first}", rows)
            self.add(f"{path}.{expert}.{last}", module.act_fn(gate) * up)

    def result(self):
        for handle in self.handles:
            handle.remove()
        # Modules that share an input have the same sums: the calibration names the first of them.
        shared = (".k_proj", ".v_proj", ".up_proj")
        name = lambda name: name.replace("mlp.gate", "block_sparse_moe.gate") if self.mixtral(name) else name
        kept = {name(key): value for key, value in sorted(self.sums.items()) if not key.endswith(shared)}
        return {key: {"count": count, "squares": [float(f"{v:.7g}") for v in squares]} for key, (count, squares) in kept.items()}

    def mixtral(self, name):
        return name.endswith("mlp.gate") and any("block_sparse_moe" in other for other in self.sums)


@torch.no_grad()
def losses(model, sequences):
    found = []
    for ids in sequences:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
        picked = logits.gather(-1, torch.tensor(ids)[1:, None])[:, 0]
        found.append(float((torch.logsumexp(logits, -1) - picked).mean()))
    return found


def adapters(folder, sequences, configs, seed):
    expected = {}
    for name, config in configs.items():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        model = get_peft_model(base, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        model.save_pretrained(folder / name, save_embedding_layers=False)
        (folder / name / "README.md").unlink(missing_ok=True)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        expected[name] = losses(PeftModel.from_pretrained(base, folder / name).eval(), sequences)
    return expected


def numbers(out):
    """A tokenizer whose words are the numbers of its tokens."""
    tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(out / "tokenizer.json"))


def measured(model, sequences):
    moments = Moments(model)
    return {"losses": losses(model, sequences), "inputs": moments.result()}


def pair(root, out):
    text = (root / "src/corpus/built_in.txt").read_text(encoding="utf-8")
    data = root / "tests/data"
    ids = AutoTokenizer.from_pretrained(data / "base").encode(text, add_special_tokens=False)
    sequences = [ids[start : start + 128] for start in range(0, 1000, 128)]
    sequences[-1] = sequences[-1][: 1000 - 7 * 128]
    base = AutoModelForCausalLM.from_pretrained(data / "base", dtype=torch.float32, attn_implementation="eager").eval()
    expected = {"sequences": sequences, "base": measured(base, sequences)}
    stored = load_file(data / "base-fp8/model.safetensors")
    dense = {}
    for name, value in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scale = stored.get(f"{name}_scale_inv")
        value = value.float()
        if scale is not None:
            grown = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
            value = value * grown[: value.shape[0], : value.shape[1]]
        dense[name] = value
    base.load_state_dict(dense)
    expected["base-fp8"] = measured(base, sequences)
    (out / "pair.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print("pair", [sum(expected[k]["losses"]) / 8 for k in ("base", "base-fp8")])


def main():
    root = Path(sys.argv[1])
    out = root / "tests/fixtures/decoders"
    out.mkdir(parents=True, exist_ok=True)
    numbers(out)
    for seed, (name, config) in enumerate(CASES.items()):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        random_model(config, seed).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        generator = torch.Generator().manual_seed(100 + seed)
        sequences = [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]
        lines = [json.dumps({"text": " ".join(map(str, ids))}) + "\n" for ids in sequences]
        (folder / "text.jsonl").write_text("".join(lines))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        expected = measured(model, sequences) | {"adapters": adapters(folder, sequences, ADAPTERS.get(name, {}), seed)}
        (folder / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
        print(name, expected["losses"], expected["adapters"], len(expected["inputs"]))
    pair(root, out)


main()
