"""Data as JavaScript files: a page that is opened from the disk may load scripts, but not fetch JSON.

Each file calls ``cxrReport.receive(name, value)`` once.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt

# Inside a script element, or before one, these could end it.
_ESCAPED = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
_TYPES = {"uint8", "uint16", "uint32", "float32"}


def script(name: str, value: Any) -> bytes:
    """The file that gives ``value`` to the page under ``name``: ASCII, whatever text is in it.

    ValueError for a number that is not finite; those go into columns.
    """
    text = json.dumps([name, value], allow_nan=False, separators=(",", ":")).translate(_ESCAPED)
    return f"cxrReport.receive(...{text});\n".encode("ascii")


def column(values: npt.ArrayLike, kind: str) -> dict[str, str]:
    """Numbers of one type (uint8, uint16, uint32, float32) in base64, little-endian.

    ValueError for another type.
    """
    if kind not in _TYPES:
        raise ValueError(f"a column must be of {', '.join(sorted(_TYPES))}, but is of {kind}")
    array = np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<"))
    return {"type": kind, "data": base64.b64encode(array.tobytes()).decode("ascii")}
