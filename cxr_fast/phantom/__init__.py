"""A synthetic chest X-ray archive: drawn anatomy, eight planted findings, and their boxes.

``render`` makes one picture in memory; ``write_archive`` writes a folder with the layout of
ChestX-ray14.
"""

from cxr_fast.phantom.archive import write_archive
from cxr_fast.phantom.picture import Phantom, render
from cxr_fast.phantom.settings import PhantomSettings, Study, study_of

__all__ = ["Phantom", "PhantomSettings", "Study", "render", "study_of", "write_archive"]
