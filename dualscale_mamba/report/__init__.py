"""Results read back from their files: tables on the console, Markdown, CSV and pictures."""

from dualscale_mamba.report.compare import write_comparison
from dualscale_mamba.report.picture import write_figure
from dualscale_mamba.report.tables import show_run, show_sites

__all__ = ["show_run", "show_sites", "write_comparison", "write_figure"]
