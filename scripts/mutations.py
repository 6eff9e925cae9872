"""What mutate.py does to files: changes that break them, and gentle ones after which most of them are still what they should be."""

import json
import random
import struct

NASTY = ["", "../x", "/etc/passwd", "a\nb", "\x1b[2J", "\u009b31m", "a" * 5000, "..", "\u202ee", "'; touch x; '", "`x`", "%s", "\\", "é"]
NUMBERS = [0, 1, -1, 2, 7, 127, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1e308, 1e-320, 0.5, -0.0]


def mutate_bytes(rng: random.Random, data: bytes, where: range | None = None) -> bytes:
    data, where = bytearray(data), where or range(len(data))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        if not data:
            break
        at = min(rng.choice(where), len(data) - 1) if len(where) else 0
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B])
            case 2:
                del data[at : at + rng.choice([1, 2, 8, 64])]
            case 3:
                data[at:at] = bytes(rng.choice([0, 0xFF, 0x20, 0x39]) for _ in range(rng.choice([1, 8, 64])))
            case 4:
                data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**20, 2**32, 2**63, 2**64 - 1]))
            case 5:
                data = data[:at]
    return bytes(data)


def any_value(rng: random.Random):
    return rng.choice([None, True, False, [], {}, rng.choice(NUMBERS), rng.choice(NASTY), [rng.choice(NUMBERS)] * rng.choice([1, 2, 40])])


def mutate_json(rng: random.Random, value, depth: int = 0):
    """One change somewhere in a value."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        value, key = dict(value), rng.choice(list(value))
        match rng.randrange(6) if depth else rng.randrange(5):
            case 0:
                del value[key]
            case 1:
                value[rng.choice(NASTY)] = value[key]
            case _:
                value[key] = mutate_json(rng, value[key], depth + 1)
        return value
    if isinstance(value, list) and value and rng.random() < 0.8:
        value, at = list(value), rng.randrange(len(value))
        if rng.random() < 0.2:
            value.insert(at, any_value(rng))
        else:
            value[at] = mutate_json(rng, value[at], depth + 1)
        return value
    if isinstance(value, bool):
        return rng.choice([not value, "false", 0, None])
    if isinstance(value, (int, float)) and rng.random() < 0.6:
        return rng.choice([value + 1, value - 1, value * 2, -value, str(value), rng.choice(NUMBERS)])
    if isinstance(value, str) and rng.random() < 0.6:
        return rng.choice([value + "x", value.upper(), value[:-1], value + "\n", "re:" + value, "(" + value, rng.choice(NASTY)])
    return any_value(rng)


def mutate_text(rng: random.Random, text: bytes) -> bytes:
    """Either JSON with another value, or JSON with another byte."""
    if rng.random() < 0.75:
        value = json.loads(text)
        for _ in range(rng.choice([1, 1, 2, 3])):
            value = mutate_json(rng, value)
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, text)


# --- safetensors -----------------------------------------------------------------------------------------------------------------

# Bits of an element.
DTYPES = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
DTYPES |= {"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}


def shaped(rng: random.Random, count: int) -> list[int]:
    """A shape of so many elements."""
    shape = []
    while count > 1 and len(shape) < 4:
        side = rng.choice([side for side in range(1, min(count, 64) + 1) if count % side == 0])
        shape.append(side)
        count //= side
    shape += [count] if count > 1 or not shape or rng.random() < 0.2 else []
    return rng.sample(shape, len(shape)) if rng.random() < 0.5 else shape


def gentle_header(rng: random.Random, header: dict, data: bytes) -> tuple[bytes, bytes]:
    """A header of other tensors over the same bytes, written in another way; sometimes with a small mistake."""
    metadata = header.get("__metadata__")
    entries = [[name, dict(entry)] for name, entry in header.items() if name != "__metadata__"]
    for _ in range(rng.choice([1, 2, 4])):
        at = rng.randrange(len(entries))
        name, entry = entries[at]
        start, end = entry["data_offsets"]
        match rng.randrange(14):
            case 0 | 1 | 2:  # other elements over the same bytes
                dtype = rng.choice(list(DTYPES))
                if (end - start) * 8 % DTYPES[dtype] == 0:
                    entry.update(dtype=dtype, shape=shaped(rng, (end - start) * 8 // DTYPES[dtype]))
            case 3:
                entry["shape"] = shaped(rng, (end - start) * 8 // DTYPES.get(entry["dtype"], 8))
            case 4:  # two tensors where one was
                middle = start + rng.randrange(0, end - start + 1, 8)
                for label, low, high in [(name, start, middle), (name + ".2", middle, end)]:
                    entries.append([label, {"dtype": "U8", "shape": shaped(rng, high - low) if high > low else [0], "data_offsets": [low, high]}])
                del entries[at]
            case 5:  # nothing, somewhere
                where = rng.choice([start, end, 0, len(data), start + 1])
                entries.append([f"empty.{rng.random()}", {"dtype": rng.choice(list(DTYPES)), "shape": rng.choice([[0], [8, 0], [0, 2**40]]), "data_offsets": [where, where]}])
            case 6:
                entry[rng.choice(["extra", "Shape", "device", "offset"])] = any_value(rng)
            case 7:
                entries[at][0] = rng.choice([name + rng.choice(NASTY), rng.choice(NASTY), name.replace("weight", "bias"), name + "\u0000"])
            case 8:
                metadata = rng.choice([None, {}, {"format": "pt", "é\n": "\u202e"}, {"n": 3}, {"n": None}, [], {"format": "x" * 3000}])
            case 9:  # one byte too many or too few
                entry["data_offsets"] = [start + rng.choice([0, 0, 1]), end + rng.choice([-1, 1, 4])]
            case 10:
                shape = entry["shape"]
                entry["shape"] = rng.choice([[*map(float, shape)], [*map(str, shape)], [*shape, 1], [*shape, -1], [1] * 20])
            case 11:
                entry["dtype"] = rng.choice([str(entry["dtype"]).lower(), "F8", "FLOAT", "", None, 5])
            case 12:
                data = rng.choice([data + b"\0", data[:-1], data])
            case 13:
                entries.append([name, dict(entry)])
    rng.shuffle(entries)
    value = [("__metadata__", metadata)] if metadata is not None else []
    value += [(name, dict(rng.sample(list(entry.items()), len(entry)))) for name, entry in entries]
    # Written by hand: a dictionary has no key twice.
    style = {"ensure_ascii": rng.random() < 0.5, "separators": rng.choice([(",", ":"), (", ", ": ")])}
    text = "{" + ",".join(f"{json.dumps(name, **style)}:{json.dumps(entry, **style)}" for name, entry in value) + "}"
    text = rng.choice(["", "", "", "", " "]) + text + " " * rng.choice([0, 0, -len(text) % 8, 100]) + rng.choice([""] * 12 + ["\n", "\0", "x"])
    return text.encode("utf-8", "surrogatepass"), data


# --- GGUF ------------------------------------------------------------------------------------------------------------------------

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


def gguf_text(text: str | bytes) -> bytes:
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return struct.pack("<Q", len(text)) + text


def gguf_value(rng: random.Random, kind: int, depth: int = 0) -> bytes:
    if kind in SCALARS:
        size = struct.calcsize(SCALARS[kind])
        return rng.choice([bytes(size), b"\x01" + bytes(size - 1), rng.randbytes(size) if kind != 7 else b"\x01"])
    if kind == 8:
        return gguf_text(rng.choice(["", "llama", "q", "x" * 5000, *NASTY]))
    inner = rng.choice([*SCALARS, 8, 8] + ([9] if depth < 2 else []))
    count = rng.choice([0, 1, 3, 100])
    return struct.pack("<IQ", inner, count) + b"".join(gguf_value(rng, inner, depth + 1) for _ in range(count))


def gguf_file(rng: random.Random, sizes: dict[int, tuple[int, int]]) -> bytes:
    """A GGUF file of some tensors of any types (`sizes`: values and bytes of a block, by type); sometimes with a small mistake."""
    mistake = rng.random() < 0.5
    alignment = rng.choice([None, None, 8, 32, 64, 4096]) if not mistake or rng.random() < 0.8 else rng.choice([0, 1, 3, 24, 2**21])
    keys = [("general.architecture", 8, gguf_text(rng.choice(["llama", "qwen3", "gemma3"]) if rng.random() < 0.95 else rng.choice(NASTY)))]
    keys += [(f"llama.attention.head_count{end}", 4, struct.pack("<I", 1)) for end in ["", "_kv"] if rng.random() < 0.8]
    keys += [("general.alignment", 4 if rng.random() < 0.95 else 10, b"")] if alignment is not None else []
    keys += [(f"llama.{rng.choice(['block_count', 'x', 'attention.head_count', 'y' * 40])}{i}", kind, gguf_value(rng, kind)) for i in range(rng.randrange(6)) for kind in [rng.choice([*SCALARS, 8, 9])]]
    rng.shuffle(keys)
    if mistake and rng.random() < 0.1:
        keys.append(rng.choice(keys))
    names = [f"blk.{i}.{kind}.weight" for i in range(2) for kind in ["attn_q", "attn_k", "ffn_up", "attn_norm", "other"]]
    tensors, end = [], 0
    align = alignment or 32
    for name in rng.sample(names, rng.randrange(1, 6)):
        kind = rng.choice(list(sizes))
        values, block = sizes[kind]
        shape = [values * rng.choice([1, 2, 3])] + rng.choice([[], [2], [5], [3, 2], [1, 1, 1]])
        if mistake and rng.random() < 0.1:
            shape = rng.choice([shape + [1, 1, 1], [shape[0] + 1, *shape[1:]], [2**40, *shape[1:]], [0, *shape[1:]]])
        size = block
        for side in shape:
            size *= side
        size //= values
        offset = end + (rng.choice([8, align, -align, 1]) if mistake and rng.random() < 0.1 else 0)
        tensors.append((name, shape, kind, max(offset, 0)))
        end = -(-(end + min(size, 1 << 20)) // align) * align
    if mistake and rng.random() < 0.1:
        tensors.append(tensors[0])
    rng.shuffle(tensors)
    version = 3 if rng.random() < 0.8 else rng.choice([2, 2, 1, 4, 3 << 24])
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, kind, value in keys:
        number = "<I" if kind == 4 else "<Q"
        value = struct.pack(number, alignment) if key == "general.alignment" else value
        out += gguf_text(key) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        out += gguf_text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side) for side in shape)
        out += struct.pack("<IQ", kind if not mistake or rng.random() < 0.95 else rng.choice([4, 5, 36, 99]), offset)
    out += bytes(-len(out) % max(align, 1)) + rng.randbytes(256) * (end // 256) + bytes(end % 256)
    return out + rng.choice([b""] * 8 + [b"\0"]) if not mistake or rng.random() < 0.9 else out[: -rng.randrange(1, 64)]


# --- sums ------------------------------------------------------------------------------------------------------------------------


def gentle_sums(rng: random.Random, text: str) -> bytes:
    """The same sums in another order or another spelling."""
    lines = text.splitlines()
    rng.shuffle(lines)
    end = "\n"
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(len(lines))
        digest, _, name = lines[at].partition("  ")
        match rng.randrange(10):
            case 0 | 1:
                lines[at] = f"{digest}  ./{name}"
            case 2:
                lines[at] = f"\\{digest}  {name}"
            case 3:
                lines[at] = f"{digest.upper()}  {name}"
            case 4:
                lines[at] = rng.choice([f"{digest} *{name}", f"{digest} {name}", f" {digest}  {name}", f"{digest}  {name} ", f"{digest}  {name}\r", f"{digest[:-1]}  {name}"])
            case 5:
                lines.insert(at, rng.choice(["", "# a comment", lines[at]]))
            case 6:
                lines[at] = f"{digest}  {rng.choice(['../in/', 'sub/../', './/', ''])}{name}"
            case 7:
                end = rng.choice(["", "\r\n", "\n\n"])
            case 8:
                del lines[at]
                if not lines:
                    break
            case 9:
                lines[at] = f"{digest[:-1]}{rng.choice('0123456789abcdefg')}  {name}"
    return ("\n".join(lines) + end).encode()


# --- adapters --------------------------------------------------------------------------------------------------------------------

KEYS = ["q_proj", "layers.0.self_attn.k_proj", "self_attn", "layers.1", r"layers\.[01]\..*v_proj", ".*", "model.layers.0.self_attn.q_proj", "q.proj"]
KEYS += [r"[qk]_proj", r"\w+_proj", r".*\.0\..*", "(q|v)_proj", r"layers\.\d+\.self_attn\.[^.]+", "q_proj$", r"^model\.layers\.0.*", "q_proj|k_proj"]
KEYS += ["(?i:Q_PROJ)", r"q_proj\b", r"model\..*(k|v)_proj", "proj", "", "k_pro[j]", "layers.0", r"(.*\.)?v_proj", "q_proj.", "Q_proj", r"\Aq_proj", r"(?:q_pro){1}j"]


def gentle_adapter(rng: random.Random, value: dict) -> dict:
    """Other scales, by keys of any kind."""
    value = dict(value)
    some = lambda values: {rng.choice(KEYS): rng.choice(values) for _ in range(rng.randrange(4))}
    value["alpha_pattern"] = some([1, 2, 8, 0.5, 64, 3.25])
    value["rank_pattern"] = some([1, 2, 3, 5])
    value["use_rslora"] = rng.random() < 0.3
    value["lora_alpha"] = rng.choice([1, 4, 2.5, 16])
    value["r"] = rng.choice([1, 2, 4])
    for key in ["alpha_pattern", "rank_pattern"]:
        match rng.randrange(8):
            case 0:
                value[key] = None
            case 1:
                del value[key]
    return value
