"""
The pages of docs/reference that are made from the source: limits and errors.

``python tests/docs/generated.py`` writes them; a test fails when they are stale.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tallybook.errors
import tallybook.limits
import tallybook_server.limits

DOCS = Path(__file__).parents[2] / "docs" / "reference"


def limits_of(module: object) -> Iterator[tuple[str, str, str]]:
    """(name, value, reason) of each limit in *module*; a section's name has no value."""
    path = Path(str(getattr(module, "__file__", "")))
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    body = ast.parse(source).body
    seen = 0
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        for line in lines[seen : node.lineno]:
            if line.startswith("# -- "):
                yield line.strip("# -"), "", ""
        seen = node.lineno
        if node.target.id.startswith("_") or node.value is None:
            continue
        reason = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            reason = " ".join(str(following.value.value).split())
        value = getattr(module, node.target.id)
        yield node.target.id, f"{value:,}" if isinstance(value, int) else str(value), reason


def limits_page() -> str:
    """docs/reference/limits.md."""
    parts = [
        "# Limits\n",
        "Everything that could grow has a limit: a name, a unit (last in the name), a value, a "
        "reason.\nThis page is made from the source; a test compares the two.\n",
    ]
    for title, module in (
        ("The SDK and the formats: `tallybook.limits`", tallybook.limits),
        ("The server: `tallybook_server.limits`", tallybook_server.limits),
    ):
        parts.append(f"## {title}\n")
        table = False
        for name, value, reason in limits_of(module):
            if not value:
                parts.append(("\n" if table else "") + f"### {name.capitalize()}\n")
                table = False
                continue
            if not table:
                parts.append("| limit | value | why |\n|---|---|---|")
                table = True
            parts.append(f"| `{name}` | {value} | {reason} |")
        parts.append("")
    return "\n".join(parts)


def errors_page() -> str:
    """docs/reference/errors.md."""
    doc = (tallybook.errors.__doc__ or "").strip()
    intro, _, rest = doc.partition("\n\n")
    tree, _, closing = rest.partition("\n\nA message")
    parts = [
        "# Errors\n",
        intro + "\n",
        "This page is made from the source; a test compares the two.\n",
        "```text\n"
        + "\n".join(line.removeprefix("    ") for line in tree.splitlines())
        + "\n```\n",
        "A message" + closing.replace("\n", " ") + "\n",
    ]
    for name in tallybook.errors.__all__:
        kind = getattr(tallybook.errors, name)
        text = "\n".join(line.strip() for line in (kind.__doc__ or "").strip().splitlines())
        text = text.replace("Attributes:\n", "Attributes:\n\n").replace("``", "`")
        parts.append(f"## {name}\n\n{text}\n")
    return "\n".join(parts)


PAGES = {"limits.md": limits_page, "errors.md": errors_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
