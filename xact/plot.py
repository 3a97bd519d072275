"""Figures of RDMs and scores, for papers and notebooks: matplotlib Axes in and out (extra `report`).

A figure that is made here is as large as `size` says, in millimetres, keeps its text as text in SVG and PDF, and has
colours that colour-blind readers tell apart (cividis; Okabe and Ito 2008). Axes that are given keep their own settings.
"""

from __future__ import annotations

from xact.analysis.figures.map import map
from xact.analysis.figures.profile import profile
from xact.analysis.figures.rdm import rdm

__all__ = ["map", "profile", "rdm"]
