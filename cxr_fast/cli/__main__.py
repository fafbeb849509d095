"""``python -m cxr_fast.cli``."""

from cxr_fast.cli import main

main()
