"""A study as one HTML file that needs no server, no network and no other file."""

from dualscale_mamba.report.html.page import PAGE, write_page

__all__ = ["PAGE", "write_page"]
