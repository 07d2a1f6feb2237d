"""A notebook as a page: text as it is, code, and what the code printed and drew when it ran."""

from __future__ import annotations

import base64
import json
from typing import Any


def page(text: str, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook's page as Markdown, and the pictures that it shows, by file name.

    Args:
        text: The file.
        name: What the names of its pictures begin with.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above drew]({file})")
            else:
                parts.append(f'```text title="output"\n{_text(output, data)}\n```')
    return "\n\n".join(parts) + "\n", pictures


def _text(output: dict[str, Any], data: dict[str, Any]) -> str:
    return "".join(output.get("text") or data["text/plain"]).rstrip("\n")
