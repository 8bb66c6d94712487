"""Which data type? Answered by measuring: every candidate is made, stored, run on held-out images, and compared.

A rule of thumb ("int8 is enough") holds for a model and a data set or it does not; here it is looked at. What is not
looked at is speed: PyTorch computes a grid's weights in float32, and a runtime for integers is another measurement.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from compresslab import bars, checks, measure, models, sweep
from compresslab import data as datasets

CANDIDATES = (
    {"bits": 32},
    {"dtype": "fp16"},
    {"dtype": "bf16"},
    *({"bits": bits} for bits in (8, 6, 5, 4, 3, 2, 1)),
    {"bits": 8, "activations": 8},
    {"bits": 4, "activations": 8},
)
KIB = 1024


@dataclass(frozen=True)
class Decision:
    """An answer and what it rests on.

    verdict  one sentence;  met  whether the chosen setting meets every constraint
    setting  of `quantization.quantize`: the chosen one, or the nearest where none meets the constraints
    model    the model quantized so (and retrained, if asked for)
    table    DataFrame, a row for each candidate, its name the index: bits, dtype, activations (as in the setting),
             accuracy, low, high (95% interval; fractions, validation images), points (percentage points lost against
             the model as it is), p_value and verdict (McNemar's test against it), file_bytes, compression_ratio
             (dense bytes / file_bytes), meets (every constraint)
    """

    verdict: str
    met: bool
    setting: Mapping
    model: nn.Module
    table: pd.DataFrame


@bars.quiet()
def data_type(model, data, points=None, kib=None, *, candidates=None, steps=0, seed=0, journal=False, bar=True):
    """The data type for a model, a data set and a constraint, from measured evidence.

    model       an nn.Module, or the name of a pretrained network;  data  a Data, or the name of a data set
    points      percentage points of validation accuracy that may be lost at most, 0 or more
    kib         size that the .clab file may have at most, in KiB
    candidates  settings of `quantization.quantize` to measure; None for CANDIDATES, float32 among them
    steps       training steps after quantizing, 0 for none;  seed  of that training
    journal     as in `sweep.stages`: False records nothing
    bar         show a tqdm bar
    returns     Decision: of the candidates that meet the constraints the one with the smallest file; the most accurate
                where the file's size alone is constrained
    raises      ValueError without a constraint, for one out of range, and for settings that `quantize` does not take
    """
    if points is None and kib is None:
        raise ValueError("points and kib are None; give a constraint: points=0.2 (accuracy that may be lost), kib=100")
    points = math.inf if points is None else checks.real("points", points, 0, 100)
    kib = math.inf if kib is None else _positive("kib", kib)
    data = datasets.load(data) if isinstance(data, str) else data
    model = models.pretrained(model, data.name) if isinstance(model, str) else model
    checks.module("model", model, also=" or the name of a pretrained network")
    settings, dense = _settings(candidates), measure.sizes(model).dense_bytes
    rows, made = [], []
    for setting in tqdm(settings, desc="data types", leave=False, disable=not bar):
        candidate, size = _made(setting, model, data, steps, seed, journal)
        rows.append(_row(setting, candidate, size, dense, model, data.validation))
        made.append(candidate)
    table = pd.DataFrame(rows, index=pd.Index(map(name_of, settings), name="data type"))
    table = table.astype({"bits": "Int64", "activations": "Int64"})
    table["meets"] = (table["points"] <= points) & (table["file_bytes"] <= kib * KIB)
    chosen = _choose(table, points, kib)
    return Decision(
        _sentence(table, chosen, points, kib), bool(table["meets"].iloc[chosen]), settings[chosen], made[chosen], table
    )


def name_of(setting):
    """A setting's name: "float32", "fp16", "4 bits", "8 bits, activations 8 bits", other parameters behind."""
    setting = dict(setting)
    dtype, bits, inputs = setting.pop("dtype", None), setting.pop("bits", None), setting.pop("activations", None)
    name = dtype or ("float32" if bits == 32 else f"{bits} bit{'s' * (bits != 1)}")
    parts = [name] + ([f"activations {inputs} bits"] if inputs not in (None, "fp32") else [])
    return ", ".join([*parts, *(f"{key}={value}" for key, value in setting.items())])


def _settings(candidates):
    candidates = CANDIDATES if candidates is None else candidates
    if not isinstance(candidates, list | tuple):
        raise ValueError(f"candidates is {checks.words(candidates)}; give a list of settings, such as [{{'bits': 8}}]")
    if other := [one for one in candidates if not isinstance(one, Mapping)]:
        raise ValueError(f"candidates has {checks.words(other[0])}; each is a dict, such as {{'bits': 8}}")
    settings = [dict(one) for one in candidates]
    if not settings:
        raise ValueError("candidates is empty; give settings of quantize, such as [{'bits': 8}, {'dtype': 'fp16'}]")
    if bare := [one for one in settings if not {"bits", "dtype"} & set(one)]:
        raise ValueError(f"candidates has {bare[0]}; each needs bits or dtype")
    return settings


def _made(setting, model, data, steps, seed, journal):
    """The model in one data type, and the bytes of its file, as a sweep makes and measures them."""
    trial = sweep.Trial("quantization", {"activations": "fp32"} | setting, steps=steps, seed=seed)
    for event in sweep.stages(trial, model, data, journal):
        last = event
    return last.model, last.result.file_bytes


def _row(setting, candidate, size, dense, model, split):
    interval, test = measure.accuracy_interval(candidate, split), measure.mcnemar(model, candidate, split)
    verdicts = {"a is better": "worse", "b is better": "better", "can't tell": "can't tell"}
    asked = {name: setting.get(name) for name in ("bits", "dtype", "activations")}
    return asked | {
        "accuracy": interval.accuracy,
        "low": interval.low,
        "high": interval.high,
        "points": 100 * (test.only_a - test.only_b) / len(split),
        "p_value": test.p_value,
        "verdict": verdicts[test.verdict],
        "file_bytes": size,
        "compression_ratio": dense / size,
    }


def _choose(table, points, kib):
    """Position of the row that meets the constraints best, or comes nearest to them."""
    good = table.reset_index(drop=True)
    if good["meets"].any():
        good = good[good["meets"]]
        order = ["points", "file_bytes"] if points == math.inf else ["file_bytes", "points"]
        return int(good.sort_values(order, kind="stable").index[0])
    small = good[good["file_bytes"] <= kib * KIB]
    if len(small):
        return int(small.sort_values(["points", "file_bytes"], kind="stable").index[0])
    return int(good.sort_values(["file_bytes", "points"], kind="stable").index[0])


def _sentence(table, chosen, points, kib):
    row, name = table.iloc[chosen], table.index[chosen]
    told = f"{row['file_bytes'] / KIB:.1f} KiB, accuracy {100 * row['accuracy']:.2f}%, {_change(row)}"
    wanted = [f"at most {points:g} points lost"] * (points < math.inf) + [f"at most {kib:g} KiB"] * (kib < math.inf)
    if row["meets"]:
        return f"{name}: {told} ({' and '.join(wanted)} asked for)."
    return f"Nothing measured meets {' and '.join(wanted)}; the nearest is {name}: {told}."


def _change(row):
    """The loss in points, and whether it can be told from chance."""
    points = row["points"]
    told = "no point lost" if points == 0 else f"{abs(points):.2f} points {'lost' if points > 0 else 'gained'}"
    doubt = "" if row["verdict"] != "can't tell" else ", a difference that may be chance"
    return told + (doubt if points else "")


def _positive(name, value):
    if checks.real(name, value, 0, math.inf) == 0:
        raise ValueError(f"{name} is {value!r}; give a number above 0")
    return float(value)
