"""Grids: parametrizations that keep numbers on few evenly spaced values while a model trains on.

    code = clamp(round(w * (1 / step)) + zero_point, low, high)        value = (code - zero_point) * step

Computed as torch.fake_quantize_per_tensor_affine and per_channel_affine compute it, bit for bit. The gradient is
straight-through: that of the identity where a number lies inside the grid's range, 0 where the range cuts it off.

Jacob et al. 2018, arXiv:1712.05877 (scale and zero point); Bengio et al. 2013, arXiv:1308.3432 (straight-through);
Esser et al. 2020, arXiv:1902.08153 (learned step size).
"""

import torch
from torch import nn

from compresslab import checks
from compresslab.weights.masks import InputRounding, Rounding

MOST_BITS = 16
HALVES = (torch.float16, torch.bfloat16)


class _Steps(nn.Module):
    """The integer grid behind `Grid` and `InputGrid`: scale, zero point, range; see there."""

    def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int, bits: int, learned=False):
        super().__init__()
        self.bits = checks.integer("bits", bits, 1, MOST_BITS)
        self.low, self.high = checks.integer("low", low, -(2**31)), checks.integer("high", high, low, 2**31 - 1)
        if self.high - self.low >= 2**self.bits:
            raise ValueError(f"low is {low} and high is {high}; {bits} bits have room for {2**bits} codes")
        for name, tensor in (("scale", scale), ("zero_point", zero_point)):
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.float64):
                actual = tensor.dtype if isinstance(tensor, torch.Tensor) else repr(tensor)
                raise ValueError(f"{name} is {actual}; give a float32 tensor")
            if not tensor.isfinite().all() or (name == "scale" and (tensor < 0).any()):
                hint = "a negative scale; give finite ones, 0 or more"
                raise ValueError(f"{name} has values that are not finite, or {hint}")
        if scale.shape != zero_point.shape:
            shapes = f"zero_point has shape {tuple(zero_point.shape)} and scale {tuple(scale.shape)}"
            raise ValueError(f"{shapes}; give one shape")
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.register_parameter("growth", nn.Parameter(torch.zeros_like(scale)) if learned else None)
        self._settle()

    @property
    def step_size(self) -> torch.Tensor:
        """Return the distance between two values, of the shape of `scale`."""
        return self.scale if self.growth is None else self.scale * self.growth.exp()

    def codes(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the codes of the values nearest to a tensor, int32 of its shape."""
        with torch.no_grad():
            return self._free(numbers, self.step_size).clamp_(self.low, self.high).to(torch.int32)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values of codes, in the precision of `scale`, exactly as `forward` makes them."""
        return (codes - self.zero_point) * self.step_size.detach()

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Round numbers to the grid."""
        if torch.is_grad_enabled() and (numbers.requires_grad or self.growth is not None):
            return _Straight.apply(numbers, self.step_size, self)
        step = self.step_size
        codes = self._free(numbers, step).clamp_(self.low, self.high)
        return codes.sub_(self.zero_point).mul_(step).to(numbers.dtype)

    def extra_repr(self) -> str:
        """Describe the grid beside its tensors."""
        learned = "" if self.growth is None else ", learned=True"
        return f"bits={self.bits}, low={self.low}, high={self.high}, scale={tuple(self.scale.shape)}{learned}"

    def share(self, numbers: torch.Tensor) -> float:
        """Count the numbers for each entry of `scale`: the gradient's factor."""
        return numbers.numel() / max(1, self.scale.numel())

    def _free(self, numbers, step):
        """Return codes before the range cuts them off, as floats in memory of their own."""
        wide = numbers.to(step.dtype)
        scaled = wide / step if self._tiny else wide * step.reciprocal()
        if self._empty:
            scaled.nan_to_num_(0.0)
        if self._whole:
            return scaled.round_().add_(self.zero_point)  # the sum makes +0 of -0
        first = self.zero_point + 0.5  # the code above a number of 0
        return scaled.add_(first - first.floor()).floor_().add_(first.floor())

    def _settle(self):
        """Note properties of the tensors, so that `forward` need not look at them."""
        self._whole = bool((self.zero_point == self.zero_point.round()).all())
        self._tiny = bool((self.scale.reciprocal().isinf() & (self.scale != 0)).any())
        self._empty = bool((self.scale == 0).any())

    def _load_from_state_dict(self, *arguments, **keywords):
        super()._load_from_state_dict(*arguments, **keywords)
        self._settle()

    def _apply(self, change, recurse=True):
        """Move to a device or dtype with the model, but never to 16 bits."""
        before = dict(self._buffers)
        super()._apply(change, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype in HALVES:
                self._buffers[name] = before[name].to(buffer.device)
        return self


class Grid(_Steps, Rounding):
    """Parametrization that rounds a weight to an integer grid: (codes - zero_point) * scale.

    scale       float32 (float64 for float64 weights), shape () or broadcastable to the weight (channels, 1, …): above
                0, or 0 for a channel of zeros on a grid that has no zero
    zero_point  of the same shape and dtype: the code that stands for 0, a whole number. Not whole: no code stands for
                0, and a value lies above each step between two codes instead (at 0.5 and 1 bit: -scale/2, scale/2)
    low, high   smallest and largest code, whole numbers; high - low < 2**bits
    bits        width at which a code is stored, 1 to 16
    learned     make the step size a parameter: it is scale * e**growth, growth 0 at first. arXiv:1902.08153
    raises      ValueError for tensors that do not fit one another or are not finite, and codes that do not fit `bits`
    """


class InputGrid(_Steps, InputRounding):
    """Module that rounds the activations that pass through it to an integer grid; the arguments as of `Grid`."""

    def share(self, numbers: torch.Tensor) -> float:
        """Count the numbers of one image for each entry of `scale`."""
        return super().share(numbers) / max(1, len(numbers) if numbers.dim() else 1)


class Half(Rounding):
    """Parametrization that rounds a float32 weight to a 16-bit float (`dtype`), and keeps it float32."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = checks.choice("dtype", dtype, HALVES)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Round a weight to 16 bits."""
        rounded = weight.detach().to(self.dtype).to(weight.dtype)
        if torch.is_grad_enabled() and weight.requires_grad:
            return rounded + (weight - weight.detach())  # the gradient of the identity
        return rounded

    def extra_repr(self) -> str:
        """Describe the rounding by its dtype."""
        return f"dtype={self.dtype}"


class _Straight(torch.autograd.Function):
    """Rounding to a grid with the straight-through gradient, and the learned step size's.

    d value / d number = 1 inside the range, 0 outside; d value / d step = code - number / step inside, the code (less
    the zero point) outside, times 1 / sqrt(numbers * largest code). arXiv:1902.08153, equation 3 and section 2.2.
    """

    @staticmethod
    def forward(ctx: object, numbers: torch.Tensor, step: torch.Tensor, grid: "Grid") -> torch.Tensor:
        """Round numbers to the grid."""
        free = grid._free(numbers, step)
        codes = free.clamp(grid.low, grid.high)
        inside = torch.eq(codes, free, out=torch.empty_like(free))  # floats: multiplying by bool takes 6 times as long
        steps = codes.sub_(grid.zero_point)
        ctx.grid = grid
        ctx.save_for_backward(inside, *((numbers, steps, step) if ctx.needs_input_grad[1] else ()))
        return (steps * step).to(numbers.dtype)

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple:
        """Return the gradients of the numbers and of the step."""
        inside, *rest = ctx.saved_tensors
        to_step = None
        if rest:
            numbers, steps, step = rest
            slope = steps - (numbers.to(step.dtype) / step).nan_to_num(0.0) * inside
            largest = torch.maximum(ctx.grid.zero_point - ctx.grid.low, ctx.grid.high - ctx.grid.zero_point)
            factor = (largest.clamp(min=1) * ctx.grid.share(numbers)).rsqrt()
            to_step = (gradient * slope).sum_to_size(step.shape) * factor
        return (gradient * inside).to(gradient.dtype) if ctx.needs_input_grad[0] else None, to_step, None
