"""For the site: links out of docs/ lead to the repository's file, which has to be there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    def outward(link: re.Match[str]) -> str:
        if not (ROOT / link[1]).exists():
            return link[0]  # mkdocs says that it leads nowhere
        return f"]({config.repo_url.rstrip('/')}/blob/main/{link[1]})"

    return re.sub(r"\]\(\.\./([^)#]+)\)", outward, markdown)
