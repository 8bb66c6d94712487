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

from compresslab import bars, checks, measure
from compresslab.data import Data
from compresslab.experiments import sweep
from compresslab.experiments.journal import Journal
from compresslab.experiments.trial import load_subject

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
    table    DataFrame, a row for each candidate: bits, dtype, activations (as in the setting), accuracy, low, high (95%
             interval; fractions, validation images), points (percentage points lost against the model as it is),
             p_value and verdict (McNemar's test against it), file_bytes, compression_ratio, meets (every constraint)
    """

    verdict: str
    met: bool
    setting: Mapping
    model: nn.Module
    table: pd.DataFrame


@bars.quiet()
def data_type(
    model: nn.Module | str, data: Data | str, points: float | None = None, kib: float | None = None, *,
    candidates: list[Mapping] | None = None, steps: int = 0, seed: int = 0,
    journal: Journal | str | bool | None = False, bar: bool = True,
) -> Decision:  # fmt: skip
    """Choose the data type that meets a constraint, from measured evidence.

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
    kib = math.inf if kib is None else checks.real("kib", kib, 0, math.inf)
    if kib == 0:
        raise ValueError("kib is 0; give a number above 0")
    model, data, _ = load_subject(model, data)
    settings = _check_candidates(candidates)
    rows, compressed = [], []
    for setting in tqdm(settings, desc="data types", leave=False, disable=not bar):
        trial = sweep.Trial("quantization", {"activations": "fp32"} | setting, steps=steps, seed=seed)
        *_, last = sweep.stages(trial, model, data, journal)
        rows.append(_make_row(setting, last.model, last.result.file_bytes, model, data.validation))
        compressed.append(last.model)
    table = pd.DataFrame(rows, index=pd.Index(map(name_of, settings), name="data type"))
    table = table.astype({"bits": "Int64", "activations": "Int64"})
    table["compression_ratio"] = measure.sizes(model).dense_bytes / table["file_bytes"]
    table["meets"] = (table["points"] <= points) & (table["file_bytes"] <= kib * KIB)
    chosen = _choose_row(table, points, kib)
    met, verdict = bool(table["meets"].iloc[chosen]), _write_verdict(table, chosen, points, kib)
    return Decision(verdict, met, settings[chosen], compressed[chosen], table)


def name_of(setting: Mapping) -> str:
    """Name a setting: "float32", "fp16", "4 bits", "8 bits, activations 8 bits", other parameters behind."""
    setting = dict(setting)
    dtype, bits, inputs = setting.pop("dtype", None), setting.pop("bits", None), setting.pop("activations", None)
    name = dtype or ("float32" if bits == 32 else f"{bits} bit{'s' * (bits != 1)}")
    parts = [name] + ([f"activations {inputs} bits"] if inputs not in (None, "fp32") else [])
    return ", ".join([*parts, *(f"{key}={value}" for key, value in setting.items())])


def _check_candidates(candidates):
    candidates = CANDIDATES if candidates is None else candidates
    if not isinstance(candidates, list | tuple) or not candidates:
        value = "empty" if isinstance(candidates, list | tuple) else checks.words(candidates)
        raise ValueError(f"candidates is {value}; give a list of settings, [{{'bits': 8}}, {{'dtype': 'fp16'}}]")
    for setting in candidates:
        if not isinstance(setting, Mapping):
            raise ValueError(f"candidates has {checks.words(setting)}; each is a dict, such as {{'bits': 8}}")
        if not {"bits", "dtype"} & set(setting):
            raise ValueError(f"candidates has {dict(setting)}; each needs bits or dtype")
    return [dict(setting) for setting in candidates]


def _make_row(setting, candidate, file_bytes, model, split):
    interval, test = measure.accuracy_interval(candidate, split), measure.mcnemar(model, candidate, split)
    verdicts = {"a is better": "worse", "b is better": "better", "can't tell": "can't tell"}
    return {name: setting.get(name) for name in ("bits", "dtype", "activations")} | {
        "accuracy": interval.accuracy,
        "low": interval.low,
        "high": interval.high,
        "points": 100 * (test.only_a - test.only_b) / len(split),
        "p_value": test.p_value,
        "verdict": verdicts[test.verdict],
        "file_bytes": file_bytes,
    }


def _choose_row(table, points, kib):
    """Find the row that meets the constraints best, or comes nearest."""
    rows, order = table.reset_index(drop=True), ["file_bytes", "points"]
    small = rows[rows["file_bytes"] <= kib * KIB]
    if rows["meets"].any():
        rows, order = rows[rows["meets"]], order[::-1] if points == math.inf else order
    elif len(small):
        rows, order = small, order[::-1]
    return int(rows.sort_values(order, kind="stable").index[0])


def _write_verdict(table, chosen, points, kib):
    row, name = table.iloc[chosen], table.index[chosen]
    lost = row["points"]
    change = "no point lost"
    if lost:
        change = f"{abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}"
        change += ", a difference that may be chance" * (row["verdict"] == "can't tell")
    facts = f"{row['file_bytes'] / KIB:.1f} KiB, accuracy {100 * row['accuracy']:.2f}%, {change}"
    wanted = [f"at most {points:g} points lost"] * (points < math.inf) + [f"at most {kib:g} KiB"] * (kib < math.inf)
    if row["meets"]:
        return f"{name}: {facts} ({' and '.join(wanted)} asked for)."
    return f"Nothing measured meets {' and '.join(wanted)}; the nearest is {name}: {facts}."
