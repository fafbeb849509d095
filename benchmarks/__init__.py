"""The races: every operator, and what is built of them, beside other ways to compute the same.

Installed as ``cxr_fast.benchmarks`` and run by ``cxr-fast bench``; pytest collects ``bench_*.py``.
"""
