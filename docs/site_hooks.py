"""Pages of the site that live outside docs/, and links that lead to them.

The same files read well in a checkout, where links name files of the repository, and on the site, where those files are pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "recipes/README.md": "recipes.md",
    "benchmarks/results/worlds_ablation.csv": "results/worlds_ablation.csv",
    "benchmarks/results/data_loading_cpu.csv": "results/data_loading_cpu.csv",
    "benchmarks/results/generation_windows_shapes_cpu.csv": "results/generation_windows_shapes_cpu.csv",
    "benchmarks/results/generation_cpu.csv": "results/generation_cpu.csv",
    "benchmarks/results/training_throughput_cpu.csv": "results/training_throughput_cpu.csv",
}
"""Path in the repository -> path on the site."""
LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the files of OUTSIDE."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    target = page.file.src_uri
    source = next((path for path, uri in OUTSIDE.items() if uri == target), f"docs/{target}")

    def moved(match: re.Match[str]) -> str:
        if "://" in match[2]:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if path not in OUTSIDE and not path.startswith("docs/"):
            raise PluginError(
                f"{source} links to {path}, which is not on the site; expected docs/ or OUTSIDE in docs/site_hooks.py"
            )
        uri = OUTSIDE.get(path) or path.removeprefix("docs/")
        return match[1] + posixpath.relpath(uri, posixpath.dirname(target) or ".") + match[3]

    return LINK.sub(moved, markdown)
