"""A figure that is saved with the settings it was made with. This module alone imports matplotlib at its top."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.figure import Figure

from xact.analysis.figures.style import SETTINGS


class PaperFigure(Figure):
    """A figure whose text stays text: matplotlib reads `svg.fonttype` when a figure is saved, not when it is made."""

    def savefig(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  what matplotlib takes
        """Save the figure, as `matplotlib.figure.Figure.savefig` does, with SETTINGS."""
        with matplotlib.rc_context(SETTINGS):
            super().savefig(*args, **options)
