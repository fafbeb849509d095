"""cxr_fast: disease locations mined from chest X-ray archives that have image-level labels only.

``cxr_fast.ops`` has the operators for torch tensors, ``cxr_fast.runtime`` the same for numpy arrays,
``cxr_fast.reference`` the same in plain PyTorch; the command is ``cxr-fast``. Importing this package
imports nothing else.
"""

__version__ = "0.1.0"
