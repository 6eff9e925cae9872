#!/usr/bin/env python3
"""Exports what Trephine knows of module trees: src/checkpoint/module_tree/renames.tsv and kinds.tsv, from the installed transformers.

    PYTHON scripts/export_renames.py --zoo DIR [--only CLASS ...]

Facts only. For every class that the zoo can build in a tiny form: the name that each parameter has in a file as it is published
(transformers' own conversion reverted) and in the model that PEFT wraps; what of a name differs is a line `from TAB to`. A matrix
that holds the rows of several layers has all of them after the TAB, with `~` before them where their rows are in another order
there; two layers that are one in the model stand both before it. And what the modules are that are no linear layers, by the
shortest ending of their names that tells. Numbers are written as #.
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
from peft import LoraConfig, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from sweep import cases, config_of
from transformers.conversion_mapping import _MODEL_TO_CONVERSION_PATTERN as PATTERNS, get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.pytorch_utils import Conv1D

OUT = Path(__file__).resolve().parent.parent / "src/checkpoint/module_tree"
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()


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


def made_otherwise(model_class, config):
    """What is no tensor of its own in a file: layers within a matrix, or of two of them, by their values; and the paths of experts."""
    torch.manual_seed(0)
    model = model_class(config)
    state = dict(model.state_dict(keep_vars=True))
    with torch.no_grad():
        for tensor in {id(t): t for t in state.values() if t.is_floating_point()}.values(): tensor.normal_()
    reverted = revert_weight_conversion(model, dict(state))
    own, kept = {id(t) for t in state.values()}, {id(t) for t in reverted.values()}
    lone = {name: t.detach() for name, t in state.items() if id(t) not in kept}
    files = {name: t.detach() for name, t in reverted.items() if id(t) not in own}
    row = lambda t: t.contiguous().view(torch.uint8).numpy().tobytes()
    places = {row(line): (name, at) for name, t in files.items() if t.dim() == 2 for at, line in enumerate(t)}
    layers, joins, paths, stacks = collections.defaultdict(dict), {}, {}, collections.defaultdict(set)
    for name, t in lone.items():
        if t.dim() == 3 and name.endswith(("experts.down_proj", "experts.up_proj")):
            found = places.get(row(t[0][0]))
            if found and ".experts." in found[0]: stacks[re.sub(r"(\.experts)\.\d+\..*", r"\1.x", found[0])].add(name.rsplit(".", 1)[0] + ".x")
        if t.dim() != 2 or not name.endswith(".weight"): continue
        found = [places.get(row(line)) for line in t]
        if None in found: continue
        sources = list(dict.fromkeys(name for name, _ in found))
        stem = lambda name: name.removesuffix(".weight")
        if len(sources) == 1: layers[stem(sources[0])][stem(name)] = [at for _, at in found]
        elif [name for name, _ in found] == sorted((name for name, _ in found), key=sources.index) and len(sources) == 2:
            joins[tuple(map(stem, sources))] = stem(name)
    for path, owners in stacks.items():
        # Of experts that are several stacks in the model, the names that they are joined under: with the owner of each.
        for owner in owners: paths[path if len(owners) == 1 else path.replace(".experts.x", f".{owner.split('.')[-3]}.experts.x")] = owner
    splits = {}
    for whole, parts in layers.items():
        ordered = sorted(parts, key=lambda name: min(parts[name]))
        flat = [at for name in ordered for at in parts[name]]
        equal = len({len(at) for at in parts.values()}) == 1
        splits[whole] = ["" if flat == list(range(len(flat))) and equal else "~", *ordered]
    return dict(splits=splits, joins=[[*files, layer] for files, layer in joins.items()], paths=paths)


def keyed_as_files(model, names):
    """Whether PEFT takes an adapter's keys for names in files, and renames again those that are the model's."""
    linear = {path: names.get(f"{path}.weight") for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    key = lambda name: f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
    def loaded(keys):
        state = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), {k: torch.zeros(1, 1) for k in keys})
        return set(state) if isinstance(state, dict) else set()
    linear = {path: stored for path, stored in linear.items() if stored and "experts" not in path.split(".")}
    want = set(map(key, linear))
    return loaded(want) != want and loaded(set(map(key, linear.values()))) == want


def refused_by_peft(model):
    """Whether PEFT cannot wrap the model at all."""
    linear = next((path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)), None)
    try:
        if linear: get_peft_model(model, LoraConfig(r=2, target_modules=[linear]))
    except NotImplementedError: return True
    except Exception: pass
    return False


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


def rules_of(pairs, paths):
    """The fewest (from, to) that turn every stored name, and every path of experts, into its module's."""
    rules = {}
    pairs = pairs | paths
    wrong = sorted((s, m) for s, m in pairs.items() if s != m)
    if not wrong: return {}
    for s, m in wrong:
        a, b = heads(s, m)
        # A rule for a whole tensor speaks of its module.
        rules.setdefault(plain(a), plain(b))
    def own_names_stay():
        for to in sorted(set(rules.values())):
            if to and not any(plain(s).startswith(to + ".") for s, m in pairs.items() if s != m): rules.setdefault(to, to)
    own_names_stay()
    for _ in range(8):
        off = sorted((s, m) for s, m in pairs.items() if apply(rules, s) != m)
        if not off: break
        for s, m in off:
            a, b = s.split("."), m.split(".")
            # The longest `from` that is still the same module's: all but the parameter.
            shared = 1 if a[-1] == b[-1] else 0
            rules[plain(".".join(a[:len(a) - shared]))] = plain(".".join(b[:len(b) - shared]))
    # A path of experts holds for all in it, but for a tensor whose whole name has a rule.
    if any(apply(rules, s) != m for s, m in paths.items()):
        rules |= {plain(s).removesuffix(".x"): plain(m).removesuffix(".x") for s, m in paths.items()}
        rules |= {plain(s): plain(m) for s, m in pairs.items() if apply(rules, s) != m}
    # Where the numbers themselves tell.
    for s, m in sorted(pairs.items()):
        if apply(rules, s) != m:
            a, b = s.split("."), m.split(".")
            shared = 1 if a[-1] == b[-1] else 0
            rules[".".join(a[:len(a) - shared])] = ".".join(b[:len(b) - shared])
    own_names_stay()
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
            converters = [c for c in get_model_conversion_mapping(model, add_legacy=False) if isinstance(c, WeightConverter)]
            experts = sorted({target for c in converters for target in c.target_patterns if target.endswith("gate_up_proj")})
            split_experts = any("experts" in c.target_patterns[0].split(".") and len(c.target_patterns) > 1 for c in converters)
            seen[name] = dict(model_type=model.config.model_type, pairs=pairs, kinds=kinds(model), experts=experts, split_experts=split_experts, as_files=keyed_as_files(model, names),
                              generates=hasattr(model, "prepare_inputs_for_generation"), refused=refused_by_peft(model))
            # Only the values tell where no tensor is that of a file.
            lone = any(not stored and model.get_parameter_or_buffer(module).dim() > 1 for module, stored in names.items())
            if lone: seen[name] |= made_otherwise(getattr(transformers, name), config_of(model_type, name))
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__} {str(error)[:80]}")
    return seen, failed


def write_renames(seen, file):
    groups = collections.defaultdict(list)
    for name, of in seen.items():
        rules = rules_of(of["pairs"], of.get("paths", {}))
        rules |= {plain(whole): layers[0] + " ".join(map(plain, layers[1:])) for whole, layers in of.get("splits", {}).items()}
        rules |= {plain(first) + " " + plain(second): plain(layer) for first, second, layer in of.get("joins", [])}
        groups[tuple(sorted(rules.items()))].append(name)
    for rules, classes in sorted(groups.items(), key=lambda item: (not item[0], item[1])):
        file.write("= " + " ".join(f"{seen[c]['model_type']}:{c}" for c in sorted(classes)) + "\n")
        for a, b in rules: file.write(f"{a}\t{b}\n")
    as_files = sorted(name for name, of in seen.items() if of["as_files"])
    if as_files: file.write("! " + " ".join(as_files) + "\n")
    silent = sorted(name for name, of in seen.items() if name.endswith(("ForCausalLM", "ForConditionalGeneration")) and not of["generates"])
    if silent: file.write("~ " + " ".join(silent) + "\n")
    refused = sorted(name for name, of in seen.items() if of["refused"])
    if refused: file.write("? " + " ".join(refused) + "\n")
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
    # Stacks whose keys PEFT does not turn: of experts without a gate, and those that are several of the model's.
    families["none"] = {of["model_type"] for of in seen.values() if of["split_experts"] or any(k.endswith("experts.up_proj") and v == "stack" for k, v in of["kinds"].items())}
    families["other"] -= families["none"]
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
