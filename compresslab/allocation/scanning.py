"""The sensitivity scan: each layer compressed alone, and the whole network measured.

Source: Li et al. 2017, arXiv:1608.08710, section 3.2 (sensitivity, layer by layer).
"""

import itertools
import warnings

import pandas as pd
from tqdm.auto import tqdm

from compresslab import bars, checks, measure, models, storage, sweep
from compresslab import data as datasets
from compresslab import layers as network
from compresslab.allocation.layerwise import layerwise, parameter_of
from compresslab.trial import checked

VALUES = {  # what is scanned unless told otherwise
    "sparsity": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "energy": (0.99, 0.95, 0.9, 0.8, 0.6, 0.4),
    "rank": (1, 2, 4, 8, 16, 32, 64),
    "bits": (8, 6, 5, 4, 3, 2, 1),
}


@bars.quiet()
def scan(
    model,
    data,
    technique="zero_pruning",
    values=None,
    layers=None,
    parameter=None,
    *,
    setting=None,
    steps=0,
    seed=0,
    journal=None,
    bar=True,
):
    """How sensitive each layer is: it alone is compressed, at each value, and the whole network measured.

    model      an nn.Module, or the name of a pretrained network;  data  a Data, or the name of a data set
    technique  a technique's name, or a Technique of your own, whose function has a parameter `layers`
    values     of the parameter, a list or one; None for those in VALUES
    layers     names of layers, as in model.named_modules(); None for all that hold weights
    parameter  of the technique; None for the first that it declares as a number (sparsity, rank, bits)
    setting    what else the technique is called with, as a dict
    steps      of retraining before a layer is measured, 0 for none;  seed  of that retraining and of the technique
    journal    as in `sweep.run`: what it holds comes at once
    bar        show a tqdm bar
    returns    DataFrame with a row for each layer and value, in columns layer; the parameter's name; accuracy (fraction
               of the validation images); points (lost against the model as it is, in percentage points); file_bytes
               (before retraining, which moves the bytes of all layers); saved (bytes of this layer alone, so that what
               it saves does not depend on the others: a file leaves out neurons whose outputs nobody reads); dense_file
               (bytes of the model's file as it is); zeros (fraction of the layer's weights that are zero). Of a
               technique that takes numbers away, saved is the whole file's and zeros 0
    raises     ValueError for names and values that technique, model or data do not have
    warns      UserWarning that names layers and values which the technique refuses; they have no row
    """
    technique = layerwise(technique)
    parameter = parameter_of(technique, parameter)
    data = datasets.load(data) if isinstance(data, str) else data
    model = models.pretrained(model, data.name) if isinstance(model, str) else model
    chosen, values = _chosen(model, layers), _values(parameter, values)
    options = {"seed": seed, "journal": journal, "bar": False}
    results, sizes, refused = {}, {}, {}
    for name, value in tqdm(list(itertools.product(chosen, values)), desc="layers", leave=False, disable=not bar):
        one = {**(setting or {}), parameter: value, "layers": [name]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what became of the layer stands in its row
                results[name, value] = [
                    next(sweep.run(technique, model, data, [one], steps=length, **options))
                    for length in dict.fromkeys((0, steps))
                ]
                sizes[name, value] = _own_bytes(sweep.Trial(technique, one, steps=0, seed=seed), name, model, data)
        except ValueError as error:
            refused[name, value] = error
    _report(refused, results)
    return _frame(results, sizes, chosen, model, data, parameter)


def _own_bytes(trial, name, model, data):
    """Bytes of one layer as a file of its own, after a Trial."""
    with sweep.alone():
        compressed = sweep.compress(checked(trial, data), model, data)
        return storage.file_bytes(compressed.get_submodule(name))


def _chosen(model, names):
    """Name of a layer -> how many of its weights are not zero."""
    checks.module("model", model, also=" or the name of a pretrained network")
    found = {one.names[0]: int(one.value.count_nonzero()) for one in network.distinct_weights(model, names)}
    if not found:
        raise ValueError(f"layers is {checks.words(names)}; the model has no such layer with weights (Linear, Conv)")
    return found


def _values(parameter, values):
    if values is None and parameter not in VALUES:
        raise ValueError(f"values is None; give the values of {parameter} to scan, as a list")
    found = [one["values"] for one in sweep.settings({"values": VALUES[parameter] if values is None else values})]
    return list(dict.fromkeys(one.item() if hasattr(one, "item") else one for one in found))


def _report(refused, results):
    """Raise what was refused if nothing was measured; else warn of it, once."""
    if refused and not results:
        raise next(iter(refused.values()))
    if refused:
        told = ", ".join(f"{name} at {value!r}" for name, value in refused)
        first = next(iter(refused.values()))
        warnings.warn(f"scan leaves out {told}; the first because {first}", UserWarning, stacklevel=3)


def _frame(results, sizes, weights, model, data, parameter):
    """The DataFrame of a scan.

    results  (layer, value) -> its Results, one-shot first;  sizes  (layer, value) -> bytes of the layer itself
    weights  layer -> how many were not zero
    """
    with sweep.alone():
        accuracy, whole = measure.accuracy(model, data.validation), storage.file_bytes(model)
        before = {name: storage.file_bytes(model.get_submodule(name)) for name in weights}
    parameters, nonzeros, rows = network.count_parameters(model), network.count_nonzeros(model), []
    for (name, value), found in results.items():
        first, last = found[0], found[-1]
        masked = first.parameters == parameters
        saved = before[name] - sizes[name, value] if masked else whole - first.file_bytes
        zeros = (nonzeros - first.nonzeros) / max(1, weights[name]) if masked else 0.0
        points = 100 * (accuracy - last.accuracy)
        rows.append((name, value, last.accuracy, points, first.file_bytes, saved, whole, zeros))
    columns = ["layer", parameter, "accuracy", "points", "file_bytes", "saved", "dense_file", "zeros"]
    return pd.DataFrame(rows, columns=columns)
