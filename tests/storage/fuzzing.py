"""Mutated .clab files, each made from a seed and its number, and what loading them does: a model, or CorruptFileError.

    python -m tests.storage.fuzzing --files 200000 --seed 0

Counts the files that load and those that are refused, with the worst time and memory. Ends with an error after any
other exception, any load of more than 2 s of processor time or 64 MiB above what the file declares, and any changed
file that loads as another model without its checksum having been made anew. With NUMBA_BOUNDSCHECK=1 (and, as
NUMBA_CACHE_DIR, an empty folder) an index out of bounds in compiled code is an error too.
"""

import argparse
import contextlib
import copy
import json
import random
import time
import tracemalloc
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

import compresslab as cl
from compresslab.storage import CorruptFileError, container, file, header
from compresslab.storage.coder import Allowance
from tests.storage import claims
from tests.storage.samples import pool

SECONDS, MEMORY, TRACED = 2.0, 2**26, 16  # of a load; bytes above the declared ones; one in so many is traced
LOOP = 0.06  # seconds, on two cores of a laptop


@cache
def parts():
    """Those files' parts."""
    return [container.unpack(blob) for blob in pool()]


ODD = [
    *(None, True, 0, 1, -1, 2, 64, 2**31, 2**62, 2**63, 10**30, 1.5, 1e300, "", "a", [], {}, [[]]),
    *("Sequential", "Linear", "LSTM", "Module", "num_layers", "node", "float32", "bool", "complex128", "operator.add"),
    *({"same": ""}, {"same": "0"}, {"float": "inf"}, {"node": 0}, {"node": 99}, {"module": ["ReLU"]}, {"list": [1]}),
    *({"dict": [[1, 2]]}, {"slice": [1, 2, 3]}, {"dtype": "float16"}, {"ellipsis": None}, ["ReLU"], ["Transformer"]),
    ["LSTM", {"input_size": 3, "hidden_size": 4, "num_layers": 5000}],
    ["Linear", {"in_features": 10**9, "out_features": 10**9}],
    *(["InputGrid", {"bits": 4, "low": 0, "high": 15}], [0, 4, 0, 15], [0, 4, 0, 15, [30, 1], True], [2, "bfloat16"]),
    *([0, 99, 0, 15], [0, 4, 15, 0], [1, 0], "InputGrid", "frozen", "bfloat16", "float64", ["0.input", ["InputGrid"]]),
    *([0, True], [1, False, True], "tensors", "masked", "os.system", "__class__", "__reduce__"),
]
SIZES = [0, 1, 2, 3, 7, 100, 1000, 4096, 2**13, 10**4, 2**16, 2**20, 2**24, 2**26, 2**31, 2**40, 2**61, 10**30]


def signed(body):
    """A file whose checksum is right."""
    return body + container.checksum(body)


def unsigned(blob):
    """A file without its checksum."""
    return blob[: -container.CHECKSUM_BYTES]


def remade(parts, head=None, data=None, coded=None):
    """A file with some of its parts replaced."""
    head, data = parts.header if head is None else head, parts.data if data is None else data
    return container.pack(head, data, parts.coded if coded is None else coded)


def flipped(blob, chance):
    """A few bytes of `blob` changed, cut out, put in, copied, or all to the end replaced."""
    blob = bytearray(blob)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at, action = chance.randrange(len(blob) + 1), chance.randrange(6)
        if action == 0 and at < len(blob):
            blob[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            blob[at : at + 1] = chance.choice([b"\0", b"\x7f", b"\x80", b"\xff"])
        elif action == 2:
            del blob[at : at + chance.choice([1, 8, 10**6])]
        elif action == 3:
            blob[at:at] = chance.randbytes(chance.choice([1, 8, 300]))
        elif action == 4:
            blob[at : at + 8] = blob[chance.randrange(len(blob) + 1) :][:8]
        elif chance.random() < 0.2:
            blob[at:] = chance.choice([b"\0", b"\xff"]) * chance.choice([len(blob) - at, 10**4])
    return bytes(blob)


def places(value, path=()):
    """Paths of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from places(inner, (*path, key))


def rewritten(head, chance):
    """A header in which a value was replaced, removed, doubled or copied from elsewhere."""
    head = copy.deepcopy(head)
    for _ in range(chance.choice([1, 1, 2])):
        known = list(places(head))
        *path, last = chance.choice(known)
        parent = at(head, path)
        action = chance.randrange(5)
        if action < 3:
            parent[last] = copy.deepcopy(chance.choice(ODD) if action else at(head, chance.choice(known)))
        elif action == 3:
            del parent[last]
        elif isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]))
        if not head:
            break
    return head


def at(value, path):
    """What is at a path inside a JSON value."""
    for key in path:
        value = value[key]
    return value


def enlarged(head, chance):
    """A header in which some whole numbers are others, some of them enormous."""
    head = copy.deepcopy(head)
    numbers = [path for path in places(head) if type(at(head, path)) is int]
    for *path, last in chance.sample(numbers, min(len(numbers), chance.choice([1, 2, 4]))):
        at(head, path)[last] = chance.choice(SIZES)
    return head


def _flipped(chance):
    return flipped(chance.choice(pool()), chance)


def _signed(chance):
    return signed(flipped(unsigned(chance.choice(pool())), chance))


def _sections(chance):
    one = chance.choice(parts())
    return remade(one, data=flipped(one.data, chance), coded=flipped(one.coded, chance))


def _rewritten(chance):
    one = chance.choice(parts())
    return remade(one, rewritten(one.header, chance))


def _spliced(chance):
    one, other, third = (chance.choice(parts()) for _ in range(3))
    return remade(one, data=other.data, coded=chance.choice([other, third]).coded)


def _enlarged(chance):
    one = chance.choice(parts())
    return remade(one, enlarged(one.header, chance), coded=one.coded + chance.choice([b"", chance.randbytes(500)]))


def _claimed(chance):
    return container.pack(*claims.file(chance))


KINDS = (_flipped, _signed, _sections, _rewritten, _spliced, _enlarged, _claimed)


def mutated(seed, number):
    """A kind of mutation (its name) and a file of that kind, the same for the same seed and number."""
    chance, make = random.Random(f"{seed} {number}"), KINDS[number % len(KINDS)]
    return make.__name__[1:], make(chance)


def outcome(blob, **keywords):
    """ "loaded", "corrupt" or "tensors only"; any other error goes on to the caller."""
    return _loaded(blob, **keywords)[0]


def _loaded(blob, **keywords):
    try:
        return "loaded", cl.storage.loads(blob, **keywords)
    except CorruptFileError as error:
        if str(error.__cause__) == "index is out of bounds":  # numba's words, where NUMBA_BOUNDSCHECK=1
            raise IndexError("compiled code reads or writes out of bounds") from error
        return "corrupt", None
    except ValueError as error:
        if "tensors only" not in str(error):
            raise
        return "tensors only", None


def peak(blob, **keywords):
    """Outcome, and most bytes that were held while loading (numpy's and Python's; torch holds numpy's)."""
    tracemalloc.start()
    try:
        return outcome(blob, **keywords), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def declared(blob):
    """Bytes of the tensors that a file says it holds; 0 if it may not hold so many."""
    try:
        entries = file._build(container.unpack(blob), Allowance(len(blob)))[0]
        header.check_size(entries, 2**26 + 1024 * len(blob))
        return sum(entry.size for entry in entries if entry.tied is None)
    except Exception:
        return 0


def resident(field):
    """Bytes of memory that this process has, "VmRSS", or had at most, "VmHWM"; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def measured(blob, traced=False):
    """Outcome, model or None, seconds of processor time (as on a quick machine), and bytes of memory, of a load."""
    if traced:
        found, held = peak(blob)
        return found, None, 0.0, held
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most that it had is from now on
    before, start = resident("VmRSS"), time.process_time()
    found, model = _loaded(blob)
    seconds, memory = time.process_time() - start, resident("VmHWM") - before
    return found, model, seconds if seconds <= SECONDS else seconds / slowness(), memory


def slowness():
    """How many times slower this machine is now than one that runs this loop in LOOP seconds; 1 or more."""
    start, total = time.process_time(), 0
    for number in range(10**6):
        total += number * number % 7
    return max(1.0, (time.process_time() - start) / LOOP)


@cache
def _numbers(blob):
    found, model = _loaded(blob)
    return found == "loaded" and [(key, one.tolist()) for key, one in model.state_dict().items()]


def same(blob, model):
    """Whether a model is that of one of the pool's files."""
    numbers = [(key, one.tolist()) for key, one in model.state_dict().items()]
    return any(repr(numbers) == repr(_numbers(one)) for one in pool())


@dataclass
class Tally:
    """What was seen: outcomes by kind, the worst time and memory, and what must not be."""

    seen: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    wrong: list = field(default_factory=list)

    def add(self, seed, number):
        """Load the mutated file of that number, and note how it went."""
        kind, blob = mutated(seed, number)
        try:
            found, model, seconds, memory = measured(blob, number // len(KINDS) % TRACED == 0)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.wrong.append((number, kind, repr(error)[:200]))
            return
        self.seen[kind, found] += 1
        above = memory - declared(blob) if memory > MEMORY // 2 else 0
        self.seconds, self.memory = max(self.seconds, seconds), max(self.memory, above)
        if seconds > SECONDS or above > MEMORY:
            self.wrong.append((number, kind, f"{found}: {seconds:.2f} s, {above / 2**20:.0f} MiB"))
        if kind == "flipped" and model is not None and not same(blob, model):
            self.wrong.append((number, kind, "loaded as another model"))


def run(files, seed=0, start=0, bar=True):
    """A Tally of so many mutated files."""
    tally = Tally()
    for blob in pool():
        outcome(blob)  # what is compiled at first takes its time
    for number in tqdm(range(start, start + files), disable=not bar):
        tally.add(seed, number)
    return tally


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tally = run(options.files, options.seed, options.start)
    print(json.dumps({f"{kind}, {found}": count for (kind, found), count in sorted(tally.seen.items())}, indent=4))
    for number, kind, what in tally.wrong:
        print(f"file {number} ({kind}): {what}")
    totals = Counter()
    for (_, found), count in tally.seen.items():
        totals[found] += count
    print(
        f"{options.files} files: {dict(totals)}, {len(tally.wrong)} wrong; worst {tally.seconds:.2f} s of processor",
        end="",
    )
    print(f" time, {tally.memory / 2**20:.1f} MiB above the declared size")
    raise SystemExit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
