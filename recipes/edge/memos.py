"""What took minutes to find out, kept as long as it was made of the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

from recipes.edge.provenance import code_digest, code_versions
from recipes.edge.publishing import write_whole


def keep(file: Path, made_of: object, found: Any) -> None:
    """Write down what was found.

    Args:
        file: Where to; an existing file is replaced.
        made_of: What it follows from, beside the code; its ``repr`` says all of it.
        found: What JSON knows.
    """
    write_whole(file, json.dumps({"made_of": _key(made_of), "found": found}))


def recall(file: Path, made_of: object) -> Any:
    """Read what was found before.

    Args:
        file: Where it was written.
        made_of: What it would follow from now.

    Returns:
        What ``keep`` wrote, lists for tuples; None if it was made of anything else or
        by other code, or cannot be read.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["found"] if kept["made_of"] == _key(made_of) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _key(made_of: object) -> str:
    """Sum up what something was made of, and by which code."""
    made = repr((code_digest(), code_versions(), made_of))
    return hashlib.sha256(made.encode()).hexdigest()
