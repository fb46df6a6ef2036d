"""Turn the files of a run into one page that opens from disk."""

from torchplug.errors import require_extra

require_extra(("jinja2", "matplotlib"), extra="report", purpose="a report")

from torchplug.reporting.page import write_report as write_report

__all__ = ["write_report"]
