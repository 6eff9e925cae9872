#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["gguf==0.19.0", "transformers==5.19.0", "torch==2.13.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Makes tests/fixtures/gguf_lora: adapters of tiny models, and what llama.cpp's convert_lora_to_gguf.py makes of them.

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36    # into a folder REF, and unpack it there
    python scripts/fixtures_gguf_lora.py REF/llama_cpp_python-0.3.36/vendor/llama.cpp tests/fixtures/gguf_lora

A folder for each model: its `config.json`, the adapter, and the converter's tensors and metadata in `converted.safetensors`: F32, as the
converter writes them by default, with the shapes of the numbers and not of the file (outermost first).
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import torch
import transformers
from safetensors.torch import save_file

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=20)
QKVO, MLP = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"], ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
FUSED = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"]
MODELS = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}, [*QKVO, *MLP], ["lm_head", "model.embed_tokens"]),
    "mistral": ("MistralConfig", {"tie_word_embeddings": False, "head_dim": 8}, [*QKVO, *MLP], ["lm_head"]),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}, [*QKVO, *MLP], []),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}, [*QKVO, *MLP], []),
    "gemma2": ("Gemma2Config", {"head_dim": 8}, [*QKVO, *MLP], []),
    "gemma3_text": ("Gemma3TextConfig", {"head_dim": 8}, [*QKVO, *MLP], []),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "tie_word_embeddings": False}, FUSED, []),
    "granite": ("GraniteConfig", {"tie_word_embeddings": True}, [*QKVO, *MLP], []),
    "glm4": ("Glm4Config", {"pad_token_id": 0, "head_dim": 8}, ["self_attn.q_proj", "self_attn.k_proj", "mlp.gate_up_proj", "mlp.down_proj"], []),
    "olmo2": ("Olmo2Config", {}, [*QKVO, *MLP], []),
}


def shape_of(model, name):
    module = model.get_submodule(name)
    return tuple(module.weight.shape)


def main():
    converter, out = Path(sys.argv[1]), Path(sys.argv[2])
    for seed, (name, (config, more, inside, outside)) in enumerate(MODELS.items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        config = getattr(transformers, config)(**SIZES, **more)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        generator = torch.Generator().manual_seed(seed)
        numbers = lambda *shape: torch.randn(shape, generator=generator)
        tensors = {}
        for module in [f"model.layers.0.{m}" for m in inside] + outside:
            rows, columns = shape_of(model, module)
            key = f"base_model.model.{module}.lora_"
            if module.endswith("embed_tokens"):
                tensors |= {f"{key}embedding_A": numbers(4, rows), f"{key}embedding_B": numbers(columns, 4)}
            else:
                tensors |= {f"{key}A.weight": numbers(4, columns), f"{key}B.weight": numbers(rows, 4)}
        targets = sorted({m.split(".")[-1] for m in inside + outside})
        adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": name, "r": 4, "lora_alpha": 6, "target_modules": targets}
        (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=1) + "\n")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        written = folder / "converted.gguf"
        run = [sys.executable, converter / "convert_lora_to_gguf.py", "--base", folder, "--outfile", written, "--outtype", "f32", folder]
        done = subprocess.run([str(part) for part in run], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if not written.exists():
            print(name, "FAILED", done.stderr[-800:])
            continue
        reader = gguf.GGUFReader(written)
        metadata = {}
        for field in reader.fields.values():
            if not field.name.startswith("GGUF."):
                metadata[field.name] = json.dumps(field.contents())
        converted = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
        save_file(converted, folder / "converted.safetensors", metadata=metadata)
        written.unlink()
        print(name, len(converted), metadata)


main()
