"""What `mkdocs` needs besides docs/: pages that lie elsewhere in the repository, and links that lead to them."""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Path in the repository → page of the site."""
EXAMPLES, COMMANDS = "examples.md", "commands.md"
GENERATED = ROOT / "build" / COMMANDS
"""What `make docs` lets typer write about the command line."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    pages = {page: _at_home((ROOT / path).read_text(encoding="utf-8"), path) for path, page in ELSEWHERE.items()}
    pages[EXAMPLES] = examples()
    pages[COMMANDS] = _commands(GENERATED.read_text(encoding="utf-8"))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def _commands(text: str) -> str:
    """What typer wrote, with its colours and indents as Markdown has them."""
    text = re.sub(r"<span [^>]*>(.*?)</span>", r"**\1**", text)
    return re.sub(r"^  (fxfactor .*)$", r"    \1", text, flags=re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of docs/ that lead out of it into links to pages."""
    own = page.file.src_uri
    known = {*ELSEWHERE.values(), EXAMPLES, COMMANDS}
    return markdown if own in known else _at_home(markdown, f"docs/{own}")


def _at_home(text: str, path: str) -> str:
    """The text of a file of the repository with links that work on the site; what has no page there is named without one."""

    def lead(found: re.Match[str]) -> str:
        words, link = found.groups()
        target, _, anchor = link.partition("#")
        if not target or "://" in target:
            return found[0]
        place = _place_of(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        if place is None:
            return words
        here = posixpath.dirname(path.removeprefix("docs/")) if path.startswith("docs/") else ""
        return f"[{words}]({posixpath.relpath(place, here or '.')}{'#' * bool(anchor)}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", lead, text)


def _place_of(target: str) -> str | None:
    """Where a path of the repository is on the site."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return EXAMPLES if target.startswith("examples") else ELSEWHERE.get(target)


def examples() -> str:
    """All examples: what each shows, and its code."""
    parts = ["# Examples\n\nEach runs in a minute or two, and all are run by the tests.\n"]
    for path in sorted((ROOT / "examples").glob("[0-9]*.py")):
        text = path.read_text(encoding="utf-8")
        module = ast.parse(text)
        said = str(ast.get_docstring(module)).partition("\n")[0]
        code = "\n".join(text.splitlines()[module.body[0].end_lineno :]).strip("\n")
        parts.append(f"\n## {path.stem}\n\n{said}\n\n    python examples/{path.name}\n\n````python\n{code}\n````\n")
    return "".join(parts)
