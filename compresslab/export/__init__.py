"""Write compressed models for other runtimes, and say layer by layer what of the saving survives.

    report = cl.export.onnx(net, "net.onnx", data.test.images[:256])
    report.to_frame()
    cl.export.safetensors(net, "net")
    cl.export.torch_export(net, "net.pt2", data.test.images[:256])

Needs the extra `export` (onnx, onnxscript, onnxruntime): pip install "compresslab[export]".
"""

from compresslab.export.onnx_file import onnx
from compresslab.export.report import LayerReport, Report
from compresslab.export.runtime import OnnxModel, list_kernels, open_session, run_onnx
from compresslab.export.torch_files import read_safetensors, safetensors, torch_export

__all__ = ["LayerReport", "OnnxModel", "Report", "list_kernels", "onnx", "open_session", "read_safetensors"]
__all__ += ["run_onnx", "safetensors", "torch_export"]
