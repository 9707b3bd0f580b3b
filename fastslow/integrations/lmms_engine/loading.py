"""Passes over the data: none is empty, and none goes on when the run is over."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(kw_only=True)
class WatchedLoader:
    """lmms-engine's loader, as its loop uses it.

    Attributes:
        loader: What lmms-engine made.
        is_over: Whether the run is over, so that no further batch is taken: the state
            of the loader, which is saved then, would have passed it by.
        given: Batches of this pass so far.
        goes_on: Whether the next pass began before a restart.
    """

    loader: Any
    is_over: Callable[[], bool]
    given: int = 0
    goes_on: bool = False

    @property
    def sampler(self) -> Any:
        """What chooses the samples."""
        return self.loader.sampler

    @property
    def ends_pass(self) -> bool:
        """Whether the last batch of a pass was given, where its length is known."""
        known = hasattr(self.loader.dataset, "__len__")
        return known and self.given == len(self.loader)

    def __len__(self) -> int:
        """Count the batches of a pass, where that is known."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Go once through the data; what is left of a pass may be nothing.

        Raises:
            ValueError: If there is no batch: lmms-engine would try again, for ever.
        """
        passes, self.goes_on = 2 if self.goes_on else 1, False
        for _ in range(passes):
            found = False
            for batch in self.loader:
                found, self.given = True, self.given + 1
                yield batch
                if self.is_over():
                    return
            self.given = 0
            if found:
                return
        raise ValueError(
            "the data of this process give no batch; what was skipped is named above, "
            "and dataloader_drop_last drops a batch that is not full"
        )

    def state_dict(self) -> dict[str, Any]:
        """Say where the pass is."""
        return {"loader": self.loader.state_dict(), "given": self.given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where a pass was.

        Raises:
            ValueError: If the state is of lmms-engine's loader alone.
        """
        if "loader" not in state:
            raise ValueError(
                "the checkpoint's dataloader_state was saved by a trainer that did not "
                "watch the passes over its data; it says no place to go on from, so "
                "start the run anew"
            )
        self.loader.load_state_dict(state["loader"])
        self.given, self.goes_on = state["given"], True
