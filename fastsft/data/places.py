"""Where prepared data and what was proved of tokenizers are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """fastsft's folder among the user's caches."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "fastsft"
