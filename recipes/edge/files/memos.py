"""What took minutes to find out, kept as long as it would be found again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from recipes.edge.files.provenance import code_digest, code_versions
from recipes.edge.files.publishing import write_whole


class Memo:
    """A file of what was found out, with what it was made of.

    Make one before the work: the code is summed up as it lies then.

    Args:
        file: Where it is written.
        made_of: What it follows from, beside the code; its ``repr`` says all of it.
    """

    def __init__(self, file: Path, made_of: object) -> None:
        """Sum up what is given, and the code."""
        made = repr((code_digest(), code_versions(), made_of))
        self._file, self._key = file, hashlib.sha256(made.encode()).hexdigest()

    def keep(self, found: Any) -> None:
        """Write down what was found, as far as JSON knows it."""
        write_whole(self._file, json.dumps({"made_of": self._key, "found": found}))

    def recall(self) -> Any:
        """Read what was found before, lists for tuples.

        Returns:
            What ``keep`` wrote; None if that was made of anything else or by other
            code, or cannot be read.
        """
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return kept["found"] if kept["made_of"] == self._key else None
        except (OSError, ValueError, TypeError, KeyError):
            return None
