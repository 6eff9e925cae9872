#!/usr/bin/env python3
"""Exports what Trephine knows of module trees: src/checkpoint/module_tree/renames.tsv and kinds.tsv, from the installed transformers.

    PYTHON scripts/export_renames.py --zoo DIR [--only CLASS ...]

Facts only. For every class that the zoo can build in a tiny form: the name that each parameter has in a file as it is published
(transformers' own conversion reverted) and in the model that PEFT wraps; what of a name differs is a line `from TAB to`. And what
the modules are that are no linear layers, by the shortest ending of their names that tells. Numbers are written as #.
"""
import argparse, collections, json, os, re, sys, warnings
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
parser = argparse.ArgumentParser()
parser.add_argument("--zoo", required=True, help="a folder with sweep.py: cases() and config_of() of tiny models")
parser.add_argument("--only", nargs="*")
parser.add_argument("--seen", help="a JSON file of what was seen of the classes: written, or read where it is there")
arguments = parser.parse_args()
sys.path.insert(0, arguments.zoo)
sys.argv = sys.argv[:1]
import torch, transformers
from sweep import cases, config_of
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN as PATTERNS, get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.pytorch_utils import Conv1D

OUT = Path(__file__).resolve().parent.parent / "src/checkpoint/module_tree"
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()


# Where the path of experts is renamed and no tensor of them keeps its form, so that no pair of names tells.
PATHS = {"PhimoeForCausalLM": {"model.layers.0.block_sparse_moe.experts.x": "model.layers.0.mlp.experts.x"}}


def plain(name):
    return ".".join("#" if part.isdigit() else part for part in name.split("."))


def kinds(model):
    """Parameter -> what a LoRA may take it for."""
    def of(call):
        try: return call()
        except Exception: return None
    inputs, outputs = of(model.get_input_embeddings), of(model.get_output_embeddings)
    found = {}
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{path}.{own}" if path else own
            if parameter.dim() >= 3: found[name] = "stack" if "expert" in name and not isinstance(module, torch.nn.modules.conv._ConvNd) else "other"
            elif parameter.dim() != 2: continue
            elif isinstance(module, torch.nn.Linear): found[name] = "head" if module is outputs else "linear"
            elif isinstance(module, Conv1D): found[name] = "conv1d"
            elif isinstance(module, torch.nn.Embedding): found[name] = "embedding" if module is inputs else "table"
            else: found[name] = "parameter"
    return found


def stored_names(model):
    """Module name -> name in a published file; None where the file holds it within another tensor, or in parts."""
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    reverted = revert_weight_conversion(model, dict(state))
    by_tensor = collections.defaultdict(list)
    for name, tensor in reverted.items(): by_tensor[id(tensor)].append(name)
    def shared(a, b): return len(os.path.commonprefix([a[::-1], b[::-1]]))
    # Tied weights are one tensor under several names.
    return {name: max(by_tensor[id(tensor)], key=lambda s: (s == name, shared(s, name)), default=None) for name, tensor in state.items()}


def heads(stored, module):
    """What is left of both names without the end that they share."""
    a, b = stored.split("."), module.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a.pop(), b.pop()
    return ".".join(a), ".".join(b)


def apply(rules, name):
    """As src/checkpoint/module_tree/renames.rs does."""
    parts = name.split(".")
    numbers = [part for part in parts if part.isdigit()]
    flat = plain(name).split(".")
    for count in range(len(parts), -1, -1):
        # With its numbers as they are, else whatever they are.
        to = rules.get(".".join(parts[:count]), rules.get(".".join(flat[:count])))
        if to is None: continue
        used = sum(part == "#" for part in flat[:count])
        numbers = numbers[:used]
        out = [numbers.pop(0) if part == "#" and numbers else part for part in to.split(".") if part]
        return ".".join(out + parts[count:])
    return name


def rules_of(pairs):
    """The fewest (from, to) that turn every stored name into its module's."""
    rules = {}
    wrong = sorted((s, m) for s, m in pairs.items() if s != m)
    if not wrong: return {}
    for s, m in wrong:
        a, b = heads(s, m)
        # A rule for a whole tensor speaks of its module.
        rules.setdefault(plain(a), plain(b))
    for to in sorted(set(rules.values())):
        if to and not any(plain(s).startswith(to + ".") for s, m in pairs.items() if s != m): rules.setdefault(to, to)
    for _ in range(8):
        off = sorted((s, m) for s, m in pairs.items() if apply(rules, s) != m)
        if not off: break
        for s, m in off:
            a, b = s.split("."), m.split(".")
            # The longest `from` that is still the same module's: all but the parameter.
            shared = 1 if a[-1] == b[-1] else 0
            rules[plain(".".join(a[:len(a) - shared]))] = plain(".".join(b[:len(b) - shared]))
    # Where the numbers themselves tell.
    for s, m in sorted(pairs.items()):
        if apply(rules, s) != m:
            a, b = s.split("."), m.split(".")
            shared = 1 if a[-1] == b[-1] else 0
            rules[".".join(a[:len(a) - shared])] = ".".join(b[:len(b) - shared])
    bad = [(s, m, apply(rules, s)) for s, m in pairs.items() if apply(rules, s) != m]
    if bad: print("   not exact:", len(bad), bad[:2], file=sys.stderr)
    # transformers writes this where older files, which it reads as well, have one `model` less.
    for key in [key for key in rules if key.endswith(".model.model")]: rules.setdefault(key.removesuffix(".model"), rules[key])
    # What another rule does anyway is left out.
    for key in sorted(rules, key=lambda k: -k.count(".")):
        if key.endswith(".model") and f"{key}.model" in rules: continue
        less = {k: v for k, v in rules.items() if k != key}
        if all(apply(less, s) == m for s, m in pairs.items()) and all(apply(less, m) == m or apply(rules, m) != m for m in pairs.values()): rules = less
    return rules


def gather():
    """Class -> what was seen of it."""
    seen, failed = {}, []
    for _, model_type, name in cases():
        if arguments.only and name not in arguments.only: continue
        try:
            with torch.device("meta"):
                model = getattr(transformers, name)(config_of(model_type, name))
            names = stored_names(model)
            pairs = {stored: module for module, stored in names.items() if stored}
            experts = sorted({target for c in get_model_conversion_mapping(model, add_legacy=False) if isinstance(c, WeightConverter)
                              for target in c.target_patterns if target.endswith("gate_up_proj")})
            seen[name] = dict(model_type=model.config.model_type, pairs=pairs, kinds=kinds(model), experts=experts)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__} {str(error)[:80]}")
    return seen, failed


def write_renames(seen, file):
    groups = collections.defaultdict(list)
    for name, of in seen.items():
        groups[tuple(sorted(rules_of(of["pairs"] | PATHS.get(name, {})).items()))].append(name)
    for rules, classes in sorted(groups.items(), key=lambda item: (not item[0], item[1])):
        file.write("= " + " ".join(f"{seen[c]['model_type']}:{c}" for c in sorted(classes)) + "\n")
        for a, b in rules: file.write(f"{a}\t{b}\n")
    # PEFT adds "mixtral" itself to this list, and not "qwen2_moe".
    families = {base: {k for k, v in PATTERNS.items() if v == base} for base in ("mixtral", "qwen2_moe")}
    families["mixtral"].add("mixtral")
    file.write("* " + " ".join(sorted({of["model_type"] for of in seen.values() if "conv1d" in of["kinds"].values()})) + "\n")
    heads = collections.defaultdict(list)
    for name, of in seen.items():
        stored = {module: s for s, module in of["pairs"].items()}
        for module, what in of["kinds"].items():
            head = stored.get(module, module).removesuffix(".weight")
            if what == "head" and not head.endswith("lm_head"): heads[head].append(name)
    for head, classes in sorted(heads.items()): file.write(f"% {head} " + " ".join(classes) + "\n")
    families["other"] = {of["model_type"] for of in seen.values() if of["experts"]} - families["mixtral"] - families["qwen2_moe"]
    # Stacks of experts without a gate, whose keys PEFT does not turn.
    families["none"] = {of["model_type"] for of in seen.values() if any(k.endswith("experts.up_proj") and v == "stack" for k, v in of["kinds"].items())}
    for base, types in families.items():
        file.write(f"@ {base} " + " ".join(sorted(types)) + "\n")


def write_kinds(seen, file):
    """What an ending mostly is, where its own shorter ending is something else; the whole name and the model's type where names do not tell."""
    known = collections.defaultdict(dict)
    for name, of in seen.items():
        stored = {module: s for s, module in of["pairs"].items()}
        for module, what in of["kinds"].items():
            # A head that is not the class's own output is one all the same.
            if module.endswith("lm_head.weight"): what = "head"
            if module.endswith(".weight") and what not in ("stack", "other"):
                for spelled in {module, stored.get(module, module)}:
                    known[plain(spelled.removesuffix(".weight"))][of["model_type"]] = what
    lines = []

    def say(end, paths, otherwise, count):
        votes = collections.Counter(what for path in paths for what in known[path].values())
        most = max(sorted(votes), key=lambda what: votes[what])
        if most != otherwise: lines.append(f"{end}\t{most}")
        if len(votes) == 1: return
        whole = known[end] if end in paths else {}
        if len(set(whole.values())) == 1: lines.extend([f"^{end}\t{next(iter(whole.values()))}"] * (most not in whole.values()))
        else: lines.extend(f"{end}\t{what}\t{kind}" for kind, what in sorted(whole.items()) if what != most)
        longer = collections.defaultdict(list)
        for path in paths:
            if path != end: longer[".".join(path.split(".")[-count - 1:])].append(path)
        for end, paths in sorted(longer.items()): say(end, paths, most, count + 1)

    ends = collections.defaultdict(list)
    for path in known: ends[path.split(".")[-1]].append(path)
    for end, paths in sorted(ends.items()): say(end, paths, "linear", 1)
    for line in lines: file.write(line + "\n")


def main():
    if arguments.seen and Path(arguments.seen).exists(): seen, failed = json.load(open(arguments.seen)), []
    else: seen, failed = gather()
    if arguments.seen: json.dump(seen, open(arguments.seen, "w"))
    source = f"# From transformers {transformers.__version__} by scripts/export_renames.py: "
    with open(OUT / "renames.tsv", "w") as file:
        file.write(source + "names in files, and in the models that load them.\n")
        write_renames(seen, file)
    with open(OUT / "kinds.tsv", "w") as file:
        file.write(source + "modules that are no linear layers, by how their names end.\n")
        write_kinds(seen, file)
    print(len(seen), "classes;", len(failed), "failed:", *failed, sep="\n  ")


if __name__ == "__main__":
    main()
