"""Writes tests/fuzz/corpus: small inputs for the fuzz targets, each of a kind that once took gigabytes, hung, or was read wrongly.

Run with any Python 3: python3 scripts/fuzz_corpus.py
"""

import json
import struct
from pathlib import Path

HOME = Path(__file__).parent.parent / "tests/fuzz/corpus"


def header(text: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16), **more) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


SAFETENSORS = {
    "good": header(json.dumps({"__metadata__": {"format": "pt"}, "a.weight": entry()}), bytes(16)),
    "empty_header": header("{}"),
    "objects": header('{"a":' + '{"x":' * 60 + "1" + "}" * 60 + "}"),
    "long_shape": header(json.dumps({"a": entry(shape=[1] * 200, offsets=(0, 4))}), bytes(4)),
    "empty_tensors": header(json.dumps({f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(40)})),
    "overlap": header(json.dumps({"a": entry(), "b": entry(offsets=(8, 24))}), bytes(24)),
    "gap": header(json.dumps({"a": entry(), "b": entry(offsets=(20, 36))}), bytes(36)),
    "twice": header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "key_twice": header('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "overflow": header(json.dumps({"a": entry(shape=(2**40, 2**40))})),
    "half_bytes": header(json.dumps({"a": entry(dtype="F4", shape=(3,), offsets=(0, 1))}), b"x"),
    "not_utf8": header(b'{"a\xff":1}'),
    "not_utf8_ignored": header(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":"\xff"}}', b"x"),
    "too_long": header("{}", length=2**63),
    "metadata_numbers": header('{"__metadata__":{"a":3}}'),
    "trailing": header("{} x"),
    "offsets_beyond_u64": header('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}}'),
    "long_name": header(json.dumps({"n" * 5000: entry()}), bytes(16)),
    "control": header(json.dumps({"a\n\x1b[2J\u009b": entry()}), bytes(16)),
}


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def gguf(tensors=(), keys=(), version=3, count=None, key_count=None, data=b"") -> bytes:
    out = b"GGUF" + struct.pack("<I", version)
    out += struct.pack("<QQ", len(tensors) if count is None else count, len(keys) if key_count is None else key_count)
    for key, kind, value in keys:
        out += text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        out += struct.pack("<IQ", kind, offset)
    return out + bytes(-len(out) % 32) + data if data else out


ARCHITECTURE = ("general.architecture", 8, text("llama"))
GGUF = {
    "good": gguf([("token_embd.weight", (4, 2), 0, 0)], [ARCHITECTURE], data=bytes(32)),
    "many_tensors": gguf(count=2**60),
    "many_keys": gguf(key_count=2**60),
    "version_0": gguf(version=0),
    "big_endian": gguf(version=3 << 24),
    "unknown_type": gguf([("a", (4,), 99, 0)], data=bytes(32)),
    "no_whole_blocks": gguf([("a", (33,), 2, 0)], data=bytes(64)),
    "alignment_u64": gguf(keys=[("general.alignment", 10, struct.pack("<Q", 32))]),
    "alignment_text": gguf(keys=[("general.alignment", 8, text("32"))]),
    "alignment_0": gguf(keys=[("general.alignment", 4, struct.pack("<I", 0))]),
    "key_not_utf8": gguf(keys=[(b"\xff\xfe", 4, struct.pack("<I", 0))]),
    "key_twice": gguf(keys=[ARCHITECTURE, ARCHITECTURE]),
    "value_type": gguf(keys=[("a", 13, b"")]),
    "list_overflow": gguf(keys=[("a", 9, struct.pack("<IQ", 10, 2**62))]),
    "deep_lists": gguf(keys=[("a", 9, struct.pack("<IQ", 9, 1) * 10)]),
    "many_dimensions": gguf([("a", (1,) * 9, 0, 0)]),
    "overflow": gguf([("a", (2**40, 2**40), 0, 0)]),
    "cut": gguf([ARCHITECTURE and ("a", (4,), 0, 0)])[:40],
    "name_twice": gguf([("a", (8,), 0, 0), ("a", (8,), 0, 32)], data=bytes(64)),
}

CONFIGS = {
    "good": {"model_type": "qwen3", "hidden_size": 64, "tie_word_embeddings": True},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "block_0": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}},
    "block_huge": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2**63, 2**63]}},
    "compressed": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32},
                }
            },
            "ignore": ["lm_head", "re:.*gate$"],
        }
    },
    "symmetric_text": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 4, "type": "int", "symmetric": "false", "strategy": "group", "group_size": 32},
                }
            },
        }
    },
    "patterns": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "dense",
            "ignore": [f"re:(x{{99}}){{99}}{i}" for i in range(8)],
        }
    },
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 17, "group_size": 0}},
    "nested": {"text_config": {"model_type": "x", "quantization_config": {"quant_method": "mxfp4"}}},
    "unknown": {"quantization_config": {"quant_method": "\u001b[2J\n"}},
    "list": [],
    "number": 5,
}

def weights(**files) -> dict:
    return {"weight_map": files}


# A checkpoint of one file, `model.safetensors`, that holds `a.weight`.
INDEXES = {
    "good": {"metadata": {"total_size": 16}} | weights(**{"a.weight": "model.safetensors"}),
    "without_the_tensor": weights(),
    "another_file": weights(**{"a.weight": "model.safetensors", "b": "model-00002-of-00002.safetensors"}),
    "another_tensor": weights(**{"a.weight": "model.safetensors", "b.weight": "model.safetensors"}),
    "outside": weights(**{"a.weight": "../model.safetensors"}),
    "absolute": weights(**{"a.weight": "/etc/passwd"}),
    "empty_name": weights(**{"a.weight": ""}),
    "dots": weights(**{"a.weight": ".."}),
    "control": weights(**{"a\n\x1b[2J": "b\u009b.safetensors"}),
    "number": weights(**{"a.weight": 1}),
    "nested": weights(**{"a.weight": [[{"x": [1, 2.5, None, True]}]]}),
    "null": {"weight_map": None},
    "list_of_files": {"weight_map": ["model.safetensors"]},
    "no_map": {},
    "list": [],
}

ADAPTERS = {
    "good": {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
    "patterns": {"r": 8, "rank_pattern": {"q_proj": 4, r"layers\.[12]\..*_proj": 6}, "alpha_pattern": {"^x": 1.5}},
    "many": {"r": 8, "rank_pattern": {f"(x{{99}}){{99}}{i}": 1 for i in range(8)}},
    "no_regex": {"rank_pattern": {"(": 1}},
    "look_around": {"rank_pattern": {"(?!x)a": 1}},
    "text_rank": {"r": "8"},
    "huge_rank": {"r": 2**63, "lora_alpha": 1e308},
    "negative": {"r": -8, "lora_alpha": -1},
    "targets_pattern": {"r": 8, "target_modules": "(a{50}){50}|.*q_proj"},
    "targets_object": {"target_modules": {"a": 1}},
    "other_type": {"peft_type": "LOHA"},
    "null": {"r": None, "lora_alpha": None, "rank_pattern": None, "alpha_pattern": None},
    "list": [1],
}


def main() -> None:
    as_json = lambda cases: {name: json.dumps(case).encode() for name, case in cases.items()}
    targets = {
        "safetensors_header": SAFETENSORS,
        "gguf_header": GGUF,
        "config_json": as_json(CONFIGS) | {"deep": b"[" * 200, "cut": b'{"a', "lfs": b"version https://git-lfs"},
        "index_json": as_json(INDEXES)
        | {"twice": b'{"weight_map": {"a.weight": "x", "a.weight": "model.safetensors"}}', "deep": b'{"weight_map": {"a":' + b"[" * 200, "cut": b'{"w'},
        "adapter_config": as_json(ADAPTERS)
        | {"pattern_list": b'{"rank_pattern": [1]}', "twice": b'{"r": 1, "r": 2}', "cut": b'{"r'},
    }
    for target, cases in targets.items():
        folder = HOME / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in cases.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
