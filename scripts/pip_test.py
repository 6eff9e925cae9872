"""Tries the Python module on the pair in this repository. scripts/pip_test.sh installs it first."""

import tempfile
from pathlib import Path

import trephine

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def fails(code, words, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except trephine.TrephineError as error:
        assert error.code == code and words in str(error), (error.code, str(error))
        return error
    raise AssertionError(f"{call.__name__} did not fail")


def main():
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        pair = {"base": DATA / "base", "tuned": DATA / "tuned"}
        outcome = trephine.extract(**pair, out=home / "adapter", rank=8, include=["q_proj", "v_proj"])
        assert outcome["version"] == 1 and outcome["rank"] == 8 and len(outcome["modules"]) == 9, outcome["rank"]
        assert 0 < outcome["total"]["captured_energy"] < 1
        assert trephine.verify(home / "adapter")["checksums"] == []
        merged = trephine.merge(DATA / "base", home / "adapter", home / "merged")
        assert Path(merged["out"]).is_dir() and merged["computed"] == 9, merged["computed"]
        assert trephine.dequantize(DATA / "base-fp8", home / "dense")["computed"] == 21
        assert trephine.probe(DATA / "base-fp8")["model_type"] == "qwen3"
        assert trephine.doctor(**pair, out=home)["checks"]
        fails(2, "are they swapped?", trephine.extract, DATA / "tuned", DATA / "base-fp8", home / "x")
        fails(3, "no such file or folder", trephine.autopsy, home / "nowhere/at/all")
        found = fails(4, "something is wrong", trephine.autopsy, DATA / "base", limit="mean=0.0001")
        assert found.result["total"]["errors"] > 0
        fails(2, "unexpected argument", trephine.run, "extract", no_such_option=1)
    print("the Python module works")


main()
