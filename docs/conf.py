"""The documentation as a site: `make docs` (Sphinx and MyST, warnings are errors). Every page is Markdown that also
reads well where it lies."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "Refit"
author = "the Refit team"
copyright = "Apache-2.0"
extensions = ["myst_parser", "refit_docs"]
exclude_patterns = ["_ext", "_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
html_theme = "furo"
html_title = "Refit"
html_show_sphinx = False
html_copy_source = False
