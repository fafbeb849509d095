"""The paper's tables, as printed (Cai et al., MICCAI 2018): what a reproduction is held against.

Figures have the two digits of the paper; columns are the findings of ``BOXED_FINDINGS``.

- ``TABLE1``: Acc at T(IoU) 0.3 over all of B, by set-up of multi-scale aggregation (input size and
  upsampling; ``baseline`` is ResNet-50 without it): ``TABLE1["512-bilinear"]["Nodule"]`` is 0.24.
- ``TABLE2``: Acc and AFP, by T(IoU) and method: ``ref.`` is Wang et al. (CVPR 2017), whose AFP is the
  bound for the other two, ``base.`` the first step alone, ``ours`` the paper's method:
  ``TABLE2[0.1]["ref."]["Nodule"]`` is ``Cell(acc=0.14, afp=0.61)``. AFP 1.40 of Atelectasis at T(IoU)
  0.3 breaks the order of its neighbours (0.98, 1.08) and is likely a slip of the pen for 1.04; it is
  kept as printed.
- ``TABLE3``: Acc over all of B, by T(IoU) and variant, the number of steps (``t=1`` to ``t=3``) or the
  kind of knowledge preservation (``KP`` is ``t=3``): ``TABLE3[0.3]["KP-Vanilla"]["Mass"]``. The text
  says which half is 0.1 and which 0.3, the table does not.
"""

from __future__ import annotations

from typing import NamedTuple

from cxr_fast.config import BOXED_FINDINGS


class Cell(NamedTuple):
    """A cell of Table 2: share of boxes found, false positives an image."""

    acc: float
    afp: float


# Columns: AT CM PE Infiltrat. Mass Nodule PNA PTx.
_TABLE1 = """
512-baseline  0.21 0.81 0.37 0.37 0.21 0.04 0.38 0.35
512-bilinear  0.21 0.62 0.34 0.54 0.35 0.24 0.37 0.29
512-deconv.   0.28 0.55 0.35 0.50 0.32 0.20 0.35 0.27
1024-baseline 0.21 0.19 0.33 0.37 0.35 0.09 0.23 0.09
1024-bilinear 0.11 0.10 0.30 0.30 0.15 0.22 0.05 0.08
1024-deconv.  0.07 0.10 0.23 0.40 0.13 0.01 0.05 0.03
"""
_TABLE2 = """
0.1 ref.  0.69-0.89 0.94-0.59 0.66-0.83 0.71-0.62 0.40-0.67 0.14-0.61 0.63-1.02 0.38-0.49
0.1 base. 0.55-0.88 0.99-0.08 0.57-0.82 0.47-0.61 0.36-0.65 0.25-0.59 0.73-1.01 0.42-0.48
0.1 ours  0.68-0.88 0.97-0.18 0.65-0.82 0.52-0.61 0.56-0.65 0.46-0.59 0.65-1.01 0.43-0.48
0.2 ref.  0.47-0.98 0.68-0.72 0.45-0.91 0.48-0.68 0.26-0.69 0.05-0.62 0.35-1.08 0.23-0.52
0.2 base. 0.36-0.97 0.99-0.08 0.33-0.90 0.22-0.67 0.26-0.68 0.09-0.61 0.48-1.07 0.36-0.50
0.2 ours  0.51-0.97 0.90-0.28 0.52-0.90 0.44-0.67 0.47-0.68 0.27-0.61 0.54-1.07 0.24-0.50
0.3 ref.  0.24-1.40 0.46-0.78 0.30-0.95 0.28-0.72 0.15-0.71 0.04-0.62 0.17-1.11 0.13-0.53
0.3 base. 0.22-1.38 0.96-0.12 0.18-0.93 0.13-0.71 0.19-0.69 0.04-0.61 0.31-1.09 0.21-0.52
0.3 ours  0.33-1.38 0.85-0.35 0.34-0.93 0.28-0.71 0.33-0.69 0.11-0.61 0.39-1.09 0.16-0.52
0.4 ref.  0.09-1.08 0.28-0.81 0.20-0.97 0.12-0.75 0.07-0.72 0.01-0.62 0.07-1.12 0.07-0.54
0.4 base. 0.12-1.06 0.92-0.15 0.05-0.95 0.02-0.73 0.12-0.71 0.03-0.61 0.17-1.11 0.12-0.53
0.4 ours  0.23-1.06 0.73-0.47 0.18-0.95 0.20-0.73 0.18-0.71 0.03-0.61 0.23-1.11 0.11-0.53
0.5 ref.  0.05-1.09 0.18-0.84 0.11-0.99 0.07-0.76 0.01-0.72 0.01-0.62 0.03-1.13 0.03-0.55
0.5 base. 0.06-1.07 0.68-0.39 0.02-0.97 0.02-0.74 0.06-0.71 0.01-0.61 0.06-1.12 0.08-0.53
0.5 ours  0.11-1.07 0.60-0.60 0.10-0.97 0.12-0.74 0.07-0.71 0.03-0.61 0.17-1.12 0.08-0.53
0.6 ref.  0.02-1.09 0.08-0.85 0.05-1.00 0.02-0.76 0.00-0.72 0.01-0.62 0.02-1.13 0.03-0.55
0.6 base. 0.01-1.08 0.48-0.60 0.00-0.99 0.02-0.75 0.04-0.71 0.01-0.61 0.03-1.12 0.06-0.53
0.6 ours  0.03-1.08 0.44-0.76 0.05-0.99 0.06-0.75 0.05-0.71 0.01-0.61 0.05-1.12 0.07-0.53
0.7 ref.  0.01-1.10 0.03-0.86 0.02-1.01 0.00-0.77 0.00-0.72 0.00-0.62 0.01-1.13 0.02-0.55
0.7 base. 0.00-1.08 0.18-0.84 0.00-0.99 0.01-0.75 0.01-0.71 0.00-0.61 0.01-1.12 0.01-0.53
0.7 ours  0.01-1.08 0.17-0.84 0.01-0.99 0.02-0.75 0.01-0.71 0.00-0.61 0.02-1.12 0.02-0.53
"""
_TABLE3 = """
0.1 t=1        0.57 0.96 0.84 0.78 0.58 0.65 0.66 0.68
0.1 t=2        0.65 0.97 0.82 0.77 0.60 0.61 0.72 0.72
0.1 t=3        0.68 0.97 0.83 0.79 0.62 0.57 0.73 0.72
0.3 t=1        0.34 0.73 0.47 0.40 0.36 0.33 0.33 0.30
0.3 t=2        0.32 0.82 0.47 0.40 0.34 0.25 0.42 0.36
0.3 t=3        0.33 0.85 0.48 0.42 0.34 0.20 0.44 0.38
0.1 w/o_KP     0.67 1.00 0.48 0.58 0.54 0.47 0.70 0.71
0.1 KP-Vanilla 0.65 0.97 0.78 0.87 0.61 0.48 0.73 0.72
0.1 KP         0.68 0.97 0.83 0.79 0.62 0.57 0.73 0.72
0.3 w/o_KP     0.22 0.99 0.11 0.20 0.20 0.06 0.29 0.34
0.3 KP-Vanilla 0.26 0.73 0.41 0.46 0.32 0.10 0.42 0.36
0.3 KP         0.33 0.85 0.48 0.42 0.34 0.20 0.44 0.38
"""


def _by_finding(values: list[str]) -> dict[str, float]:
    return dict(zip(BOXED_FINDINGS, map(float, values), strict=True))


def _cells(values: list[str]) -> dict[str, Cell]:
    pairs = (value.split("-") for value in values)
    return {
        finding: Cell(float(acc), float(afp))
        for finding, (acc, afp) in zip(BOXED_FINDINGS, pairs, strict=True)
    }


TABLE1: dict[str, dict[str, float]] = {}
TABLE2: dict[float, dict[str, dict[str, Cell]]] = {}
TABLE3: dict[float, dict[str, dict[str, float]]] = {}
for _line in _TABLE1.split("\n")[1:-1]:
    _method, *_values = _line.split()
    TABLE1[_method] = _by_finding(_values)
for _line in _TABLE2.split("\n")[1:-1]:
    _threshold, _method, *_values = _line.split()
    TABLE2.setdefault(float(_threshold), {})[_method] = _cells(_values)
for _line in _TABLE3.split("\n")[1:-1]:
    _threshold, _method, *_values = _line.split()
    TABLE3.setdefault(float(_threshold), {})[_method.replace("_", " ")] = _by_finding(_values)
