"""Writes tests/fuzz/corpus: small inputs for the fuzz targets, each of a kind that once took gigabytes, hung, or was read wrongly.

Needs blake3: uv run --with blake3==1.0.11 scripts/fuzz_corpus.py
"""

import json
import struct
from pathlib import Path

from blake3 import blake3

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
EMBEDDING = ("token_embd.weight", (4, 2), 0, 0)


def model(*tensors, keys=(), data=bytes(32), **more) -> bytes:
    """A file that is taken but for what is said of it: each case is refused for its own mistake."""
    return gguf(tensors or [EMBEDDING], [ARCHITECTURE, *keys], data=data, **more)


GGUF = {
    "good": model(),
    "two_tensors": model(EMBEDDING, ("output.weight", (4, 2), 0, 32), data=bytes(64)),
    "alignment_64": model(keys=[("general.alignment", 4, struct.pack("<I", 64))], data=bytes(96)),
    "many_tensors": model(count=2**60),
    "many_keys": model(key_count=2**60),
    "no_architecture": gguf([EMBEDDING], data=bytes(32)),
    "version_0": model(version=0),
    "big_endian": model(version=3 << 24),
    "unknown_type": model(("a", (4,), 99, 0)),
    "no_whole_blocks": model(("a", (33,), 2, 0), data=bytes(64)),
    "alignment_u64": model(keys=[("general.alignment", 10, struct.pack("<Q", 32))]),
    "alignment_text": model(keys=[("general.alignment", 8, text("32"))]),
    "alignment_0": model(keys=[("general.alignment", 4, struct.pack("<I", 0))]),
    "key_not_utf8": model(keys=[(b"\xff\xfe", 4, struct.pack("<I", 0))]),
    "key_twice": model(keys=[ARCHITECTURE]),
    "value_type": model(keys=[("a", 13, b"")]),
    "list_type": model(keys=[("a", 9, struct.pack("<IQ", 13, 0))]),
    "list_overflow": model(keys=[("a", 9, struct.pack("<IQ", 10, 2**62))]),
    "deep_lists": model(keys=[("a", 9, struct.pack("<IQ", 9, 1) * 10)]),
    "many_dimensions": model(("a", (1,) * 9, 0, 0)),
    "overflow": model(("a", (2**40, 2**40), 0, 0)),
    "cut": model()[:70],
    "cut_data": model()[:-1],
    "name_twice": model(("a", (8,), 0, 0), ("a", (8,), 0, 32), data=bytes(64)),
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


def frame(*blocks: bytes | tuple[bytes, int], cut: int | None = None) -> bytes:
    """A zstd frame: bytes as they are, and one byte so many times."""
    pieces = []
    for block in blocks:
        if isinstance(block, bytes):
            pieces += [(0, len(block[at : at + 65536]), block[at : at + 65536]) for at in range(0, len(block), 65536)]
        else:
            byte, count = block
            pieces += [(1, min(131072, count - at), byte) for at in range(0, count, 131072)]
    pieces = pieces or [(0, 0, b"")]
    # A window of 1 MiB, no content size, no checksum.
    out = b"\x28\xb5\x2f\xfd\x00\x50"
    for at, (kind, size, content) in enumerate(pieces):
        out += struct.pack("<I", (at + 1 == len(pieces)) | kind << 1 | size << 3)[:3] + content
    return out[:cut]


def spectrum(**changes) -> bytes:
    line = {"module": "model.layers.0.self_attn.q_proj", "shape": [8, 8], "delta_norm": 1.5, "converged": 2, "singular_values": [1.2, 0.9, 0.1]}
    return json.dumps(line | changes).encode() + b"\n"


SPECTRA = {
    "good": frame(spectrum()),
    "no_lines": frame(),
    "one_long_line": frame(b'{"module":"', (b"x", 8 << 20)),
    "many_lines": frame((b"\n", 4 << 20)),
    "one_long_number": frame(b'{"module":"a","shape":[8,8],"delta_norm":', (b"1", 900_000), b"}\n"),
    "values_are_text": frame(spectrum(singular_values=["1"])),
    "values_infinite": frame(spectrum().replace(b"1.2", b"1e999")),
    "values_negative": frame(spectrum(singular_values=[-1.0, 5e-324], delta_norm=-1)),
    "values_rising": frame(spectrum(singular_values=[0.0, 1.0, 1e308])),
    "no_values": frame(spectrum(singular_values=[])),
    "shape_huge": frame(spectrum(shape=[2**63, 2**64 - 1], converged=2**64 - 1)),
    "shape_of_three": frame(spectrum(shape=[1, 2, 3])),
    "norm_null": frame(spectrum(delta_norm=None)),
    "control": frame(spectrum(module="a\n\x1b[2J\u009b\u202e")),
    "deep": frame(b"[" * 200),
    "not_zstd": spectrum(),
    "cut": frame(spectrum(), cut=30),
    "two_frames": frame(spectrum()) + frame(spectrum(module="b")),
    "trailing": frame(spectrum()) + b"x",
    "not_utf8": frame(spectrum().replace(b"q_proj", b"q\xff\xfe")),
    "empty": b"",
}


def journal(*records: dict | bytes, chain: bool = True, end: bytes = b"") -> bytes:
    before, out = b"trephine.journal", b""
    for record in records:
        text = record if isinstance(record, bytes) else json.dumps(record, separators=(",", ":")).encode()
        before = blake3(before + text).hexdigest()[:16].encode() if chain else b"0" * 16
        out += before + b" " + text + b"\n"
    return out + end


BEGIN = {"begin": {"command": "dequantize", "trephine": "0.1.0", "options": {"dtype": "bf16"}, "inputs": {}}}
FILE = {"name": "model-00001-of-00002.safetensors", "bytes": 5, "blake3": "0" * 64, "tensors": []}
JOURNALS = {
    "good": journal(BEGIN, {"file": FILE}),
    "empty": b"",
    "torn": journal(BEGIN, end=b"0123456789abcdef {"),
    "no_newline": journal(BEGIN)[:-1],
    "wrong_chain": journal(BEGIN, {"file": FILE}, chain=False),
    "twice": journal(BEGIN) * 2,
    "outside": journal(BEGIN, {"file": FILE | {"name": "../../victim/x"}}),
    "absolute": journal(BEGIN, {"file": FILE | {"name": "/etc/passwd"}}),
    "dots": journal(BEGIN, {"file": FILE | {"name": ".."}}),
    "control": journal(BEGIN, {"file": FILE | {"name": "a\n\x1b[2J\u009b"}}),
    "no_beginning": journal({"file": FILE}),
    "two_beginnings": journal(BEGIN, BEGIN),
    "unknown_record": journal(BEGIN, {"other": FILE}),
    "bytes_huge": journal(BEGIN, {"file": FILE | {"bytes": 2**64 - 1}}),
    "bytes_negative": journal(BEGIN, {"file": FILE | {"bytes": -1}}),
    "digest_short": journal(BEGIN, {"file": FILE | {"blake3": "0"}}),
    "tensors_deep": journal(BEGIN, b'{"file":{"name":"a","tensors":' + b"[" * 200),
    "not_json": journal(b"no JSON"),
    "not_utf8": journal(b'{"begin":"\xff"}'),
    "blank_lines": b"\n" * 64,
    "of_zeros": bytes(256),
}

DIGEST = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
SUMS = {
    "good": f"{DIGEST}  a\n".encode(),
    "with_a_dot": f"{DIGEST}  ./a\n".encode(),
    "escaped": f"\\{DIGEST}  a\\nb\n".encode(),
    "wrong_escape": f"\\{DIGEST}  a\\x\n".encode(),
    "outside": f"{DIGEST}  ../a\n".encode(),
    "absolute": f"{DIGEST}  /etc/passwd\n".encode(),
    "inside_and_out": f"{DIGEST}  b/../../a\n".encode(),
    "uppercase": f"{DIGEST.upper()}  a\n".encode(),
    "short": f"{DIGEST[:-1]}  a\n".encode(),
    "one_space": f"{DIGEST} a\n".encode(),
    "star": f"{DIGEST} *a\n".encode(),
    "no_newline": f"{DIGEST}  a".encode(),
    "carriage_return": f"{DIGEST}  a\r\n".encode(),
    "twice": f"{DIGEST}  a\n{DIGEST}  ./a\n".encode(),
    "no_name": f"{DIGEST}  \n".encode(),
    "nul": f"{DIGEST}  a\0b\n".encode(),
    "not_utf8": f"{DIGEST}  a".encode() + b"\xff\n",
    "control": f"{DIGEST}  a\x1b[2J\u009b\n".encode(),
    "blank_lines": b"\n" * 64,
    "empty": b"",
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
        "spectra": SPECTRA,
        "journal": JOURNALS,
        "checksums": SUMS,
    }
    for target, cases in targets.items():
        folder = HOME / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in cases.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
