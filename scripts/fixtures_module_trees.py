#!/usr/bin/env python3
"""Writes tests/fixtures/module_trees.json: what PEFT calls the factors of every linear layer, for tiny models of many architectures.

    PYTHON scripts/fixtures_module_trees.py --zoo DIR

For each class: the little of its config that names it; its tensors by the names of a published file, with shapes; its modules by their
names in the model, with their types; and the keys that PEFT's own adapter of all linear layers but the head is saved with.
"""
import argparse, json, os, sys, warnings
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
parser = argparse.ArgumentParser()
parser.add_argument("--zoo", required=True, help="a folder with sweep.py: cases() and config_of() of tiny models")
arguments = parser.parse_args()
sys.path.insert(0, arguments.zoo)
sys.argv = sys.argv[:1]
warnings.simplefilter("ignore")
import torch, transformers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from sweep import cases, config_of
from transformers.core_model_loading import revert_weight_conversion

transformers.logging.set_verbosity_error()
CLASSES = """LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM
 GPTNeoXForCausalLM FalconForCausalLM OPTForCausalLM BloomForCausalLM MptForCausalLM NemotronForCausalLM ApertusForCausalLM ArceeForCausalLM
 CohereForCausalLM OlmoForCausalLM Olmo2ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM GlmForCausalLM Glm4ForCausalLM GraniteForCausalLM
 SmolLM3ForCausalLM Exaone4ForCausalLM Ernie4_5ForCausalLM HunYuanDenseV1ForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM
 LlavaForConditionalGeneration Gemma3ForConditionalGeneration Mistral3ForConditionalGeneration PaliGemmaForConditionalGeneration
 InternVLForConditionalGeneration MllamaForConditionalGeneration AyaVisionForConditionalGeneration Qwen2VLForConditionalGeneration
 Qwen2_5_VLForConditionalGeneration Qwen3VLForConditionalGeneration Qwen2AudioForConditionalGeneration VoxtralForConditionalGeneration
 Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration GotOcr2ForConditionalGeneration Llama4ForConditionalGeneration
 T5ForConditionalGeneration BartForConditionalGeneration WhisperForConditionalGeneration BertForMaskedLM RobertaForMaskedLM
 ModernBertForMaskedLM AlbertForMaskedLM MambaForCausalLM FalconH1ForCausalLM NomicBertModel NomicBertForMaskedLM GteForMaskedLM
 JinaEmbeddingsV3ForMaskedLM QianfanOCRForConditionalGeneration""".split()
# Of these PEFT wraps experts as parameters, by target_parameters.
STACKS = """JetMoeForCausalLM DbrxForCausalLM Llama4ForCausalLM NemotronHForCausalLM InklingForCausalLM Step3p7ForConditionalGeneration GptOssForCausalLM
 Llama4ForConditionalGeneration Ernie4_5_VLMoeForConditionalGeneration GraniteMoeForCausalLM Qwen3VLMoeForConditionalGeneration AriaForConditionalGeneration""".split()
SMALL = {"vocab_size": 32}


def of(model_type, name):
    K = getattr(transformers, name)
    config = config_of(model_type, name)
    model = K(config).to(torch.bfloat16)
    state = dict(model.state_dict(keep_vars=True))
    reverted = revert_weight_conversion(model, dict(state))
    seen, tensors = set(), {}
    for key, tensor in reverted.items():
        if id(tensor) in seen: continue        # tied: the file holds it once
        seen.add(id(tensor))
        tensors[key] = list(tensor.shape)
    head = None
    try: head = model.get_output_embeddings()
    except Exception: pass
    kinds = {}
    for path, module in model.named_modules():
        if not path: continue
        if isinstance(module, (torch.nn.Linear, transformers.pytorch_utils.Conv1D)): kinds[path] = "head" if module is head else "linear"
        else: kinds[path] = "other"
    linear = [path for path, kind in kinds.items() if kind == "linear" and not path.endswith((".gate", ".router")) and ".router." not in path]
    if model_type.startswith(("mamba", "falcon_h1", "nemotron_h")): linear = [path for path in linear if not path.endswith("out_proj")]
    # the rows of these lie in another order in the files
    if model_type == "step3p7": linear = [path for path in linear if not path.startswith("model.vision_model.layers") or not path.endswith(("q_proj", "k_proj", "v_proj"))]
    stacks = [path for path, p in model.named_parameters() if name in STACKS and (p.dim() == 3 and "conv" not in path or ".experts.mlp." in path)]
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=linear, target_parameters=stacks or None))
    keys = {key: list(tensor.shape) for key, tensor in get_peft_model_state_dict(wrapped).items()}
    # A module under several names is stored, and adapted, under its first.
    def first(key): return key.removeprefix("base_model.model.").rsplit(".lora_", 1)[0].replace(".base_layer", "") in kinds
    keys = {key: shape for key, shape in keys.items() if first(key)}
    short = {"architectures": [name], "model_type": config.model_type, "tie_word_embeddings": bool(getattr(config, "tie_word_embeddings", True))}
    if getattr(config, "text_config", None) is not None: short["text_config"] = {"model_type": config.text_config.model_type}
    if stacks: short["hidden_size"] = getattr(config, "text_config", config).hidden_size
    return dict(config=short, tensors=tensors, keys=keys, modules=kinds) | (dict(parameters=stacks) if stacks else {})


found, failed = {}, []
for _, model_type, name in cases():
    if name not in CLASSES + STACKS or name in found: continue
    try: found[name] = of(model_type, name)
    except Exception as error: failed.append(f"{name}: {type(error).__name__} {str(error)[:100]}")
out = Path(__file__).resolve().parent.parent / "tests/fixtures/module_trees.json"
out.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(what, separators=(',', ':'))}" for name, what in sorted(found.items())) + "\n}\n")
print(len(found), "classes", out.stat().st_size, "bytes; failed:", *failed, sep="\n  ")
