"""Exact coding of one tensor: its numbers as words of bits, all of them or the kept ones and where they are.

    word      the bits of a number (see `words`)
    keep      not left out: what a mask keeps (it may be 0), or without a mask what is not zero
    dense     every word;  sparse  positions, and the words there
    unrolled  a convolution written as a matrix (see `unrolled`)

docs/format.md, section 4.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch

from compresslab.storage import binary_words, positions, unrolled
from compresslab.storage.coder import CHUNK, Reader, Writer
from compresslab.storage.container import CorruptFileError
from compresslab.storage.contexts import SIDES
from compresslab.storage.layouts import choose_layout, code_layout

DENSE, SPARSE, UNROLLED = range(3)
SMALL = 4096  # words up to which both forms are tried; above, the share of zeros decides what is worth the time
FEW, MANY = 1 / 256, 1 / 8


@dataclass(frozen=True)
class Type:
    """How a dtype is stored: `size` bytes a word, `kind` as in `words`; `real` is the dtype of complex parts."""

    dtype: torch.dtype
    size: int
    kind: str
    real: str | None = None


def _list_types():
    floats = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz".split()
    types = {name: Type(getattr(torch, name), getattr(torch, name).itemsize, "float") for name in floats}
    for bits in (8, 16, 32, 64):
        types[f"int{bits}"] = Type(getattr(torch, f"int{bits}"), bits // 8, "signed")
        types[f"uint{bits}"] = Type(getattr(torch, f"uint{bits}"), bits // 8, "unsigned")
    types["bool"] = Type(torch.bool, 1, "unsigned")
    for name, real in (("complex32", "float16"), ("complex64", "float32"), ("complex128", "float64")):
        types[name] = Type(getattr(torch, name), getattr(torch, name).itemsize, "float", real)
    return types


TYPES = _list_types()
NAMES = {stored.dtype: name for name, stored in TYPES.items()}


def write(writer: Writer, tensor: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Write a tensor in its cheapest form.

    tensor  dense, of a dtype in TYPES;  mask  bool tensor of its shape: what it keeps, the rest being zero, or None
    raises  ValueError for a tensor whose values cannot be read (sparse, quantized, on the meta device)
    """
    if tensor.is_complex():
        mask = None if mask is None else mask.unsqueeze(-1).expand(*mask.shape, 2)
        write(writer, torch.view_as_real(tensor.detach().resolve_conj()), mask)
        return
    stored, shape = TYPES[NAMES[tensor.dtype]], tuple(tensor.shape)
    numbers = get_words(tensor, stored)
    if len(shape) == 2 and mask is None:
        convolution, kernel = unrolled.find(numbers.reshape(shape))
        if convolution is not None:
            with writer.counting("values"):
                writer.uint(UNROLLED)
                unrolled.code(writer, convolution, *shape)
            write(writer, make_tensor(kernel.reshape(-1), stored, convolution.kernel_shape))
            _count_rows(writer, numbers != 0, shape)
            return
    present = numbers != 0 if mask is None else mask.detach().cpu().contiguous().numpy().reshape(-1)  # -0 is a number
    zeros, trials = len(present) - int(np.count_nonzero(present)), []
    small, many = len(present) <= SMALL, zeros >= MANY * len(present)
    if mask is not None or zeros and (small or many or stored.kind == "float" and zeros > FEW * len(present)):
        trials.append((Writer(writer), present))
    if mask is None and (not trials or small or not many or stored.kind == "signed"):
        trials.append((Writer(writer), None))
    for trial, keep in trials:
        _code_numbers(trial, DENSE if keep is None else SPARSE, numbers, keep, stored.kind, shape)
    trial, keep = min(trials, key=lambda candidate: candidate[0].size)
    writer.append(trial)
    _count_rows(writer, keep, shape)


def read(reader: Reader, name: str, shape: tuple) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Read a tensor, and a bool tensor of what it keeps (None if it is dense); name  a key of TYPES."""
    stored, shape = TYPES[name], tuple(shape)
    if stored.real is not None:
        value, keep = read(reader, stored.real, (*shape, 2))
        return torch.view_as_complex(value), None if keep is None else keep.any(dim=-1)
    form = reader.uint(None, UNROLLED)
    if form == UNROLLED:
        return _read_unrolled(reader, name, shape, stored), None
    numbers = np.empty(math.prod(shape), dtype=f"<u{stored.size}")
    keep = _code_numbers(reader, form, numbers, None, stored.kind, shape)
    _count_rows(reader, keep, shape)
    return make_tensor(numbers, stored, shape), None if keep is None else torch.from_numpy(keep).reshape(shape)


def _code_numbers(coder, form, numbers, present, kind, shape):
    """Code all numbers, DENSE, or those that are present and where, SPARSE; a Reader fills the array with them.

    returns  flat bool array of what is present, or None for all
    """
    layout, reading = None, isinstance(coder, Reader)
    with coder.counting("values" if form == DENSE else "positions"):
        if not reading:
            coder.uint(form)
            layout = choose_layout(numbers.view(f"<i{numbers.itemsize}") if present is None else present, shape)
        layout = code_layout(coder, layout, shape)
        if form == SPARSE:
            present = positions.code(coder, present, len(numbers), layout)
    if form == DENSE:
        binary_words.code(coder, numbers, kind, None, layout)
        return None
    # A Reader has the words that are present at the end of the array first.
    tail = numbers[len(numbers) - int(np.count_nonzero(present)) :] if reading else numbers[present]
    binary_words.code(coder, tail, kind, present, layout)
    if reading:
        _move_to_places(numbers, tail, present)
    return present


def _read_unrolled(reader, name, shape, stored):
    if len(shape) != 2:
        raise CorruptFileError(f"a tensor of shape {shape} is stored as a convolution's matrix")
    convolution = unrolled.code(reader, None, *shape)
    kernel = get_words(read(reader, name, convolution.kernel_shape)[0], stored).reshape(convolution.kernel_shape)
    numbers = unrolled.build(convolution, kernel, *shape).reshape(-1)
    _count_rows(reader, numbers != 0, shape)
    return make_tensor(numbers, stored, shape)


def _count_rows(coder, keep, shape):
    """Note in a Writer or Reader how many weights each unit keeps: it tells which inputs of the next layer matter.

    keep  flat bool array, or None for all. More units than contexts can code as inputs are not counted.
    """
    if len(shape) > 1 and all(shape):
        known = keep is not None and shape[0] <= SIDES
        coder.row_counts = np.count_nonzero(keep.reshape(shape[0], -1), axis=1) if known else None


def _move_to_places(numbers, tail, keep):
    """Move the kept words from the end of `numbers` to their places and zero the rest, in the same memory.

    Going forward never overwrites a word that is still to be moved: what is left of the tail fits behind.
    """
    used = 0
    for start in range(0, len(numbers), CHUNK):
        inside = keep[start : start + CHUNK]
        count = int(np.count_nonzero(inside))
        block = np.zeros(len(inside), dtype=numbers.dtype)
        block[inside] = tail[used : used + count]
        numbers[start : start + CHUNK] = block
        used += count


def find_memory_order(tensor: torch.Tensor) -> list[int] | None:
    """Return a tensor's dimensions from the widest strides to the narrowest; None where that is their order.

    Layers compute in other ways, and round otherwise, where their weights lie otherwise in memory (channels last, a
    transposed factor). A tensor that is not dense is taken for one in order.
    """
    order = sorted(range(tensor.dim()), key=lambda axis: (-tensor.stride(axis), tensor.shape[axis] == 1))
    usual = order == list(range(tensor.dim())) or tensor.stride() != _strides(tensor.shape, order)
    return None if usual or not tensor.numel() else order


def reorder_memory(tensor: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Return a tensor equal to this one, in memory as `find_memory_order` says."""
    return torch.empty_strided(tensor.shape, _strides(tensor.shape, order), dtype=tensor.dtype).copy_(tensor)


def _strides(shape, order):
    strides, below = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis], below = below, below * max(1, shape[axis])
    return tuple(strides)


def find_nonzeros(tensor: torch.Tensor) -> np.ndarray:
    """Tell which numbers of a tensor are not zero, as a bool array of its shape (torch takes ten times as long)."""
    stored = TYPES[NAMES[tensor.dtype]]
    if stored.real is not None:
        return find_nonzeros(torch.view_as_real(tensor.detach().resolve_conj())).any(axis=-1)
    return _are_nonzero(get_words(tensor, stored), stored).reshape(tensor.shape)


def _are_nonzero(numbers, stored):
    return (numbers << 1 if stored.kind == "float" else numbers) != 0


def get_words(tensor: torch.Tensor, stored: Type) -> np.ndarray:
    """Return the bits of a tensor as a flat unsigned little-endian array."""
    if sys.byteorder != "little":
        raise ValueError("this machine is big-endian; .clab files are written on little-endian ones")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise ValueError(f"tensor is {tensor.layout} on {tensor.device}; only dense tensors with values can be saved")
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().view(f"<u{stored.size}")


def make_tensor(numbers: np.ndarray, stored: Type, shape: tuple) -> torch.Tensor:
    """Return the tensor that has these words."""
    return torch.from_numpy(numbers.view(np.uint8)).view(stored.dtype).reshape(shape)
