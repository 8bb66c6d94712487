"""The same network as our file and as other people's: NNCodec, Deep Compression's layout, zstd, xz; bytes and accuracy.

    python -m benchmarks.peers [--networks FILE.clab …] [--data mnist] [--quick]

Without --networks: the files in data/records, and a set made on the spot (minutes): LeNet-300-100 and LeNet-5,
pruned gradually, their weights shared, the shared values trained. Every coder gets the tensors that our file decodes
to, and its own stream is decoded and measured on the validation and the test images.

"exact" coders give the same numbers back, which is checked. NNCodec's quantizers do not: their settings are searched
for the least bytes with at most 0.05 points less than ours on the validation images, beginning with our numbers and,
in the set made here, with the pruned network before its weights were shared. What NNCodec rounded is then written as
our file too: two streams of exactly the same accuracy. Of the others' streams only the numbers are needed, not names
and architecture; our file has those too, and NNCodec's the shapes.

NNCodec needs: pip install --no-deps nncodec==2.1.3 (it asks for numpy<2, and runs with later ones).
"""

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

import compresslab as cl
from benchmarks.coders import Coded, deep_compression, general, nncodec, same

POINTS = 0.0005  # validation accuracy that a quantizer may lose beside ours, as a fraction
PART = 1000  # images at a time
SHARE = 0.75  # the target: ours, of NNCodec's bytes
SET = {  # network -> training, the same once more after each level; sparsity -> bits of a weight
    "lenet_300_100": ({"steps": 1000, "batch_size": 256, "precision": "fp32"}, {0.9: 5, 0.97: 4, 0.985: 3}),
    "lenet_5": ({"steps": 400, "batch_size": 128, "precision": "fp32+channels_last"}, {0.97: 4, 0.99: 3}),
}
SHARING = {"steps": 150, "lr": 5e-4}  # training of the shared values
QUICK_LEVELS = (0.97,)
ROUNDED = "ours, of what that rounded"
REFERENCE = "NNCodec, the reference"
RECORDS = Path(__file__).parent.parent / "data" / "records"


@dataclass(frozen=True)
class Network:
    """What all coders get: our file's length, the model and tensors that it decodes to, and how long that took.

    before     tensors of the same names before they were rounded, for coders that round by themselves; or None
    reference  the same of the network as it was first, trained and nothing else; or None
    """

    name: str
    bytes: int
    model: torch.nn.Module
    data: cl.data.Data
    before: dict | None = None
    reference: dict | None = None
    seconds: float = 0.0

    @property
    def tensors(self):
        """Name -> float32 array."""
        return arrays(self.model)

    def holding(self, tensors):
        """The model with other tensors."""
        twin = cl.layers.duplicate(self.model)
        twin.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})
        return twin


def arrays(model):
    """The tensors of a model as coders see them: what is computed with, float32.

    raises ValueError for tensors of whole numbers, which not all coders take
    """
    state = cl.layers.effective_state(model)
    odd = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if odd:
        raise ValueError(f"model has {odd[0]} of {state[odd[0]].dtype}; give a network of floats")
    return {name: tensor.float().contiguous().numpy() for name, tensor in state.items()}


def network(name, model, data, before=None, reference=None):
    """A Network of any model: through our file, and back."""
    start = time.process_time()
    blob = cl.storage.dumps(model)
    decoded = cl.layers.plain(cl.storage.loads(blob))
    seconds = time.process_time() - start
    before, reference = (None if other is None else arrays(other) for other in (before, reference))
    return Network(name, len(blob), decoded, data, before, reference, seconds)


def made(quick=False):
    """The set: one Network after another, MNIST."""
    data = cl.data.load("mnist")
    for name, (training, levels) in SET.items():
        levels = {level: bits for level, bits in levels.items() if not quick or level in QUICK_LEVELS}
        dense = cl.models.pretrained(name, "mnist")
        for one in cl.zero_pruning.gradual(dense, data, levels=list(levels), bar=False, **training):
            pruned = cl.train.finetune(one.model, data.train, bar=False, **training)
            shared = cl.weight_sharing.share(pruned, bits=levels[one.sparsity], biases=3)
            shared = cl.train.finetune(shared, data.train, bar=False, **training | SHARING)
            told = f"{name} {one.sparsity:.1%} pruned, {2 ** levels[one.sparsity]} values"
            yield network(told, shared, data, pruned, dense)


def read(paths, dataset):
    """Networks of .clab files, on the data that a records.json beside them names, or else on `dataset`."""
    for path in paths:
        told = path.with_name("records.json")
        of = json.loads(told.read_text()).get(path.stem) if told.exists() else None
        data = cl.data.load(of["data"] if of else dataset)
        reference = cl.models.pretrained(of["reference"], of["data"]) if of else None
        yield network(path.stem, cl.storage.loads(path.read_bytes()), data, reference=reference)


def records():
    """The files in data/records, and a line that says so where there are none."""
    found = sorted(RECORDS.glob("*.clab"))
    if not found:
        print("data/records holds no .clab file yet; only the set made here is measured")
    return found


def good(network, points=POINTS):
    """Function of tensors: True where validation accuracy is at most `points` below ours.

    The images that ours finds hardest come first: once more are wrong than may be, the rest need not be looked at.
    """
    images, labels = network.data.validation.images, network.data.validation.labels
    logits = cl.train.evaluate(network.model, network.data.validation)
    own = logits.gather(1, labels[:, None])
    rival = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    order = (own[:, 0] - rival).argsort()
    allowed = int((logits.argmax(1) != labels).sum()) + int(points * len(labels))

    def judged(tensors):
        model, wrong = network.holding(tensors), 0
        for part in order.split(PART):
            wrong += int((cl.train.evaluate(model, (images[part], labels[part])).argmax(1) != labels[part]).sum())
            if wrong > allowed:
                return False
        return True

    return judged


def quantized(network, quick=False):
    """NNCodec's smallest stream that is as accurate, from our numbers or from those before."""
    modes, judged = nncodec.QUICK if quick else tuple(nncodec.MODES), good(network)
    sources = {"our numbers": (network.tensors, modes)}
    if network.before is not None and not quick:
        sources["the numbers before"] = (network.before, [mode for mode in modes if mode != "codebook"])
    rounds = 1 if quick else 2
    found = {source: nncodec.tuned(tensors, judged, chosen, rounds) for source, (tensors, chosen) in sources.items()}
    found = {source: one for source, one in found.items() if one is not None}
    if not found:
        return None
    source, one = min(found.items(), key=lambda item: item[1].bytes)
    return Coded(one.bytes, one.tensors, f"{one.how}; from {source}")


def quantized_reference(network, quick=False):
    """NNCodec's smallest stream of the trained reference network that is as accurate as our file."""
    modes = [mode for mode in (nncodec.QUICK if quick else nncodec.MODES) if mode != "codebook"]
    return nncodec.tuned(network.reference, good(network), modes, rounds=1)


def coders(network, quick=False):
    """Name -> (function without arguments that gives Coded, whether it is exact, how to install it or None)."""
    tensors = network.tensors
    need = nncodec.INSTALL if nncodec.load() is None else None
    return {
        "ours": (lambda: Coded(network.bytes, tensors, "context coder, architecture included"), True, None),
        "NNCodec, exact": (lambda: nncodec.exact(tensors), True, need),
        "NNCodec, quantized": (lambda: quantized(network, quick), False, need),
        REFERENCE: (lambda: network.reference and quantized_reference(network, quick), False, need),
        "Deep Compression": (lambda: deep_compression.best(tensors), True, None),
        "zstd": (lambda: general.zstd(tensors), True, general.INSTALL if general.zstandard is None else None),
        "xz": (lambda: general.xz(tensors), True, None),
    }


def rows(network, quick=False):
    """One row a coder."""
    for name, (code, exact, install) in coders(network, quick).items():
        if install:
            yield {"network": network.name, "coder": name, "how": f"not installed: {install}"}
            continue
        start = time.process_time()
        coded = code()
        seconds = time.process_time() - start if name != "ours" else network.seconds
        if coded is None:
            none = "no network before" if name == REFERENCE and not network.reference else "none is as accurate"
            yield {"network": network.name, "coder": name, "seconds": seconds, "how": none}
            continue
        if exact and not same(coded.tensors, network.tensors):
            raise RuntimeError(f"{name} gave other numbers back for {network.name}")
        yield measured(network, name, coded, seconds)
        if name == "NNCodec, quantized":
            yield measured(network, ROUNDED, *as_ours(network, coded.tensors))


def as_ours(network, tensors):
    """What another coder rounded, as our file: Coded, and the seconds of writing and reading it."""
    start = time.process_time()
    blob = cl.storage.dumps(network.holding(tensors))
    decoded = arrays(cl.storage.loads(blob))
    return Coded(len(blob), decoded, "the same accuracy by NNCodec's rounding"), time.process_time() - start


def measured(network, name, coded, seconds):
    """The row of one coder: bytes, our share of them, accuracies of what was decoded, seconds of its process."""
    model = network.holding(coded.tensors)
    return {
        "network": network.name,
        "coder": name,
        "bytes": coded.bytes,
        "ours / it": network.bytes / coded.bytes,
        "validation": cl.measure.accuracy(model, network.data.validation),
        "test": cl.measure.accuracy(model, network.data.test),
        "seconds": seconds,
        "how": coded.how,
    }


def shown(table):
    """The table for print: bytes whole, accuracies in percent; a dash where nothing was measured."""
    written = {"bytes": "{:,.0f}", "ours / it": "{:.3f}", "validation": "{:.2%}", "test": "{:.2%}", "seconds": "{:.1f}"}
    present = {name: form for name, form in written.items() if name in table}
    return table.assign(
        **{
            name: [form.format(value) if pd.notna(value) else "-" for value in table[name]]
            for name, form in present.items()
        }
    )


def verdicts(table):
    """Lines for each network: our share of NNCodec's smallest stream of it, ours as it is and with NNCodec's rounding;
    and our share of NNCodec's stream of the reference network."""
    for name, part in table[table.bytes.notna()].groupby("network", sort=False):
        bytes_of = dict(zip(part.coder, part.bytes, strict=True))
        reference = bytes_of.pop(REFERENCE, None)
        theirs = min([count for coder, count in bytes_of.items() if coder.startswith("NNCodec")], default=None)
        if theirs is not None:
            shares = {coder: bytes_of[coder] / theirs for coder in ("ours", ROUNDED) if coder in bytes_of}
            told = ", ".join(f"{coder} {share:.3f}" for coder, share in shares.items())
            yield f"{name}: of NNCodec's smallest of these weights: {told}; target {SHARE}: {_verdict(shares.values())}"
        if reference is not None:
            share = bytes_of["ours"] / reference
            yield f"{name}: of NNCodec's of the reference network: {share:.3f}; target {SHARE}: {_verdict([share])}"


def _verdict(shares):
    return "met" if min(shares) <= SHARE else "missed"


def main():
    """Print the table, network by network, and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", type=Path, help=".clab files to measure, and no others")
    parser.add_argument("--data", default="mnist", choices=cl.data.names(), help="of files not named after theirs")
    parser.add_argument("--quick", action="store_true", help="fewer networks and settings")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # what pruning leaves alone
    networks = [read(wanted.networks or records(), wanted.data), *([] if wanted.networks else [made(wanted.quick)])]
    found = []
    for one in tqdm((one for some in networks for one in some), desc="networks"):
        table = pd.DataFrame(list(rows(one, wanted.quick)))
        tqdm.write(f"\n{one.name}\n{shown(table.drop(columns='network')).to_string(index=False)}")
        found.append(table)
    print()
    print("\n".join(verdicts(pd.concat(found))) if found else "nothing measured")


if __name__ == "__main__":
    main()
