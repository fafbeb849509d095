"""Models for programs that have no torch: ONNX files, and torch.export programs.

``metadata`` says what an exported file is and needs neither torch nor onnx; ``command`` writes files.
"""

from cxr_fast.export.metadata import ExportMetadata, InputContract

__all__ = ["ExportMetadata", "InputContract"]
