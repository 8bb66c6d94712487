"""What an export is worth: its bytes, its difference to the torch model, and what became of each layer's saving."""

from dataclasses import asdict, dataclass, fields

import pandas as pd
import torch


@dataclass(frozen=True)
class LayerReport:
    """Say what became of one layer.

    layer         qualified name in the torch model
    shape         of its weight
    saving        what compression put on it: "8-bit grid, 90% zeros"; empty for none
    stored        what the file holds: "int8, a scale for each channel"
    bytes         of the weight in the file, its scales or codebook included
    fp32_bytes    of the same weight in fp32
    kernel        the operation that the runtime computes it with; empty where no runtime was asked
    size, speed   what of the saving survived, in words
    """

    layer: str
    shape: tuple
    saving: str
    stored: str
    bytes: int
    fp32_bytes: int
    kernel: str
    size: str
    speed: str


@dataclass(frozen=True)
class Report:
    """Hold the result of an export.

    path        the file or folder
    bytes       its length in all
    max_error   largest absolute difference to the torch model's outputs on the images of the export
    agreement   share of those images for which both have the same largest output, 0 to 1
    layers      a LayerReport for each layer, in module order
    """

    path: str
    bytes: int
    max_error: float
    agreement: float
    layers: tuple

    def to_frame(self) -> pd.DataFrame:
        """Return a table with a row for each layer."""
        columns = [field.name for field in fields(LayerReport)]
        return pd.DataFrame([asdict(layer) for layer in self.layers], columns=columns).set_index("layer")

    def __str__(self) -> str:
        """Describe the export: a line for each layer, the bytes and the check."""
        lines = [f"{layer.layer}: {layer.size}; {layer.speed}" for layer in self.layers]
        check = f"largest difference to torch {self.max_error:.2g}, same answer for {self.agreement:.1%} of the images"
        return "\n".join([*lines, f"{self.bytes:,} bytes, {check}"])


def compare_outputs(outputs: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return the largest absolute difference of two outputs, and the share of rows with the same largest entry.

    outputs, expected  float tensors of one shape, (N, …)
    """
    same = (outputs.flatten(1).argmax(1) == expected.flatten(1).argmax(1)).double().mean().item()
    return (outputs - expected).abs().max().item(), same
