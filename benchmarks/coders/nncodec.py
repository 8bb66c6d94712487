"""NNCodec 2.1.3, the software of ISO/IEC 15938-17 (Neural Network Coding), tuned for each network.

Three ways to hand it a network, all of them its own, the length of its bitstream counted:
    exact     integer tensors, lossless: indices of the codebooks (which are added, 4 bytes a value)
    codebook  its codebook mode: indices and codebook in the stream, values on the grid of a quantization parameter (QP)
    uniform   its uniform quantizer, with dependent (trellis-coded) quantization or without, weighted by rate or not
QP, Lagrangian weight and the unary part of the binarization are searched; then QP is searched again for each tensor.
Names are cut to a character and all vectors go in one, since a unit of its stream takes about 17 bytes by itself.

Not used: sparsification (the networks are pruned by training, and the weighted quantizer drops more); batch norm
folding (there is none); temporal contexts (for updates of a known network); local scaling and fine-tuning, which train.

Becking et al. 2023, "NNCodec: an open source software implementation of the Neural Network Coding ISO/IEC standard".
"""

import contextlib
import io
import sys
import types
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.coders import Coded, codebook_of

INSTALL = "pip install --no-deps nncodec==2.1.3 (it asks for numpy<2, and runs with later ones)"
DENSITY = 3  # quantization steps grow by about 2**(1 / 8) from one QP to the next
FINE, COARSE = -88, 0  # QP; steps of 2**-11 and 1
VECTORS = -44  # QP of the biases before each tensor's own is searched: steps of 2**-5.5
UNARY = (2, 5, 10)
MODES = {  # quantizer, dependent quantization, Lagrangian weight in NNCodec's own units
    "codebook": ("codebook", False, 0.0),
    "uniform": ("uniform", False, 0.0),
    "uniform, weighted": ("uniform", False, 1.0),
    "dependent": ("uniform", True, 0.0),
    "dependent, lightly weighted": ("uniform", True, 0.25),
    "dependent, weighted": ("uniform", True, 1.0),
}
QUICK = ("codebook", "uniform", "uniform, weighted")


def load():
    """The module nncodec.nnc; None where it is not installed.

    Its package imports everything that its training examples need (OpenCV, HDF5, …), though compressing a dict of
    arrays needs NumPy alone: empty modules stand in for those.
    """
    try:
        import nncodec  # noqa: F401
    except ImportError:
        return None
    stand_in = types.ModuleType("nncodec.framework")
    stand_in.pytorch_model = stand_in.tensorflow_model = stand_in.use_case_init = None
    sys.modules.setdefault("nncodec.framework", stand_in)
    from nncodec import nnc

    return nnc


def stream(tensors, **options):
    """Bitstream of a dict of float32 or int32 arrays, and the arrays decoded from it."""
    nnc = load()
    options = {"use_dq": False, "row_skipping": True, "qp_density": DENSITY} | options
    with contextlib.redirect_stdout(io.StringIO()):
        blob = nnc.compress(tensors, bitstream_path=None, return_bitstream=True, **options)
        return len(blob), nnc.decompress(blob)


@dataclass(frozen=True)
class Plan:
    """One way to code a network: a key of MODES, QP of all weights, of single tensors, tensors to transpose."""

    mode: str
    qp: int
    own: dict = field(default_factory=dict)
    turned: frozenset = frozenset()
    unary: int = 10

    def __str__(self):
        told = [self.mode, f"QP {self.qp}"]
        told += [f"its own for {len(self.own)} tensors"] if self.own else []
        return ", ".join([*told, f"{len(self.turned)} transposed"] if self.turned else told)


def exact(tensors):
    """A network without loss: the smallest of several orders of the indices, each matrix the way that is smaller."""
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2]
    plans = [
        (rank, frozenset(name for name in matrices if _smaller_turned(tensors[name], rank)), unary)
        for rank in (_by_value, _by_count)
        for unary in UNARY
    ]
    return min((_exact(tensors, *plan) for plan in plans), key=lambda coded: coded.bytes)


def tuned(tensors, good, modes=tuple(MODES), rounds=2):
    """The smallest stream whose decoded tensors are `good`; None where none is.

    tensors  name -> float32 array
    good     function of decoded tensors: True where they are accurate enough
    modes    keys of MODES to try
    rounds   how often QP is searched for each tensor, from the best plan of all modes
    """
    found = [one for one in (_coarsest(tensors, good, mode) for mode in modes) if one is not None]
    if not found:
        return None
    return _refined(tensors, good, *min(found, key=lambda one: one[1].bytes), rounds)


def coded(tensors, plan):
    """A network coded as `plan` says."""
    quantizer, dependent, weight = MODES[plan.mode]
    named, undo = _joined(_turned(tensors, plan.turned))
    qps = {name: plan.own.get(name, VECTORS if name == "b" else plan.qp) for name in named}
    count, decoded = stream(
        named,
        qp=plan.qp,
        qp_per_tensor={name: np.int32(qp) for name, qp in qps.items()},
        codebook_mode=2 if quantizer == "codebook" else 0,
        use_dq=dependent,
        lambda_scale=weight,
        cabac_unary_length_minus1=plan.unary,
    )
    return Coded(count, _turned(undo(decoded), plan.turned), str(plan))


def _coarsest(tensors, good, mode):
    """(Plan, Coded) of the largest QP that is good, by bisection and a look beyond; None where the finest is not."""
    low, high, best = FINE - 1, COARSE, None
    while high - low > 1:
        middle = (low + high + 1) // 2
        plan = Plan(mode, middle)
        one = coded(tensors, plan)
        if good(one.tensors):
            low, best = middle, (plan, one)
        else:
            high = middle
    for further in range(low + 2, low + 5) if best else ():
        plan = Plan(mode, further)
        one = coded(tensors, plan)
        if one.bytes < best[1].bytes and good(one.tensors):
            best = plan, one
    return best


def _refined(tensors, good, plan, best, rounds):
    """Coded, after each change to one tensor that made the stream smaller and stayed good."""
    for _ in range(rounds):
        before = best.bytes
        for other in _changes(tensors, plan):
            one = coded(tensors, other(plan))
            if one.bytes < best.bytes and good(one.tensors):
                plan, best = other(plan), one
        if best.bytes == before:
            break
    return best


def _changes(tensors, plan):
    """Functions of a plan that change one thing: the unary part, a matrix's direction, a tensor's QP."""
    yield from (lambda plan, unary=unary: replace(plan, unary=unary) for unary in UNARY)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            yield lambda plan, name=name: replace(plan, turned=plan.turned ^ {name})
    for name in _joined(tensors)[0]:
        start = VECTORS if name == "b" else plan.qp
        for step in (8, 4, 2, 1):
            yield lambda plan, name=name, start=start, step=step: replace(
                plan, own=plan.own | {name: plan.own.get(name, start) + step}
            )


def _joined(tensors):
    """Tensors under names of a character, the one-dimensional ones in one; and what makes the old ones of those."""
    others = {name: tensor for name, tensor in tensors.items() if tensor.ndim != 1}
    vectors = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 1}
    short = {name: chr(65 + number) for number, name in enumerate(others)}
    named = {short[name]: np.ascontiguousarray(tensor) for name, tensor in others.items()}
    if vectors:
        named["b"] = np.concatenate(list(vectors.values()))
    ends = np.cumsum([len(tensor) for tensor in vectors.values()])[:-1]

    def undo(decoded):
        parts = dict(zip(vectors, np.split(decoded["b"], ends), strict=True)) if vectors else {}
        return {name: parts[name] if name in parts else decoded[short[name]] for name in tensors}

    return named, undo


def _turned(tensors, names):
    return {name: tensor.T if name in names else tensor for name, tensor in tensors.items()}


def _exact(tensors, rank, turned, unary):
    """Indices as integers, 0 for 0; of tensors with hardly a value twice, the numbers themselves are counted."""
    books = {name: codebook_of(tensor) for name, tensor in tensors.items()}
    plain = {name for name, (values, _) in books.items() if 2 * len(values) > tensors[name].size}
    ranks = {name: rank(*book) for name, book in books.items() if name not in plain}
    whole = {name: ranks[name][books[name][1]] for name in ranks}
    named, undo = _joined(_turned(whole, turned))
    count, decoded = stream(named, cabac_unary_length_minus1=unary, qp=0)
    decoded = _turned(undo(decoded), turned)
    kept = {name: _looked_up(books[name][0], ranks[name], decoded[name]) for name in ranks}
    values = sum(np.count_nonzero(books[name][0]) for name in ranks) + sum(tensors[name].size for name in plain)
    found = {name: kept.get(name, tensors[name]) for name in tensors}
    return Coded(
        count + 4 * int(values), found, f"indices {rank.__name__[1:].replace('_', ' ')}, {len(turned)} transposed"
    )


def _looked_up(values, ranks, whole):
    """The values that the integers stand for."""
    order = np.argsort(ranks)
    return values[order][np.searchsorted(ranks[order], whole)]


def _smaller_turned(tensor, rank):
    """True where the indices of a matrix take less when it is transposed."""
    values, index = codebook_of(tensor)
    whole = rank(values, index)[index]
    return stream({"A": np.ascontiguousarray(whole.T)}, qp=0)[0] < stream({"A": whole}, qp=0)[0]


def _by_value(values, index):
    """Integers of the values of a codebook, in their order, 0 for 0: …, -2, -1, 0, 1, …"""
    positive = np.cumsum(values > 0)
    negative = np.cumsum(values[::-1] < 0)[::-1]
    return np.where(values > 0, positive, -negative).astype(np.int32)


def _by_count(values, index):
    """Integers of the values of a codebook, of their sign: small ones for those that occur often."""
    counts, ranks = np.bincount(index.ravel(), minlength=len(values)), np.zeros(len(values), dtype=np.int32)
    for sign in (1, -1):
        own = np.flatnonzero(np.sign(values) == sign)
        ranks[own[np.argsort(-counts[own], kind="stable")]] = sign * np.arange(1, len(own) + 1)
    return ranks
