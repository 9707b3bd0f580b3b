"""A model for lmms-eval: its tasks ask, our preprocessing, schedule and mask answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lmms_eval.api.instance import Instance  # type: ignore[import-not-found]
from lmms_eval.api.model import lmms  # type: ignore[import-not-found]
from loguru import logger  # type: ignore[import-not-found]
from PIL.Image import Image

from recipes.edge.data.archives import CACHE, ArchiveStore
from recipes.edge.data.conversations import Kind, Turn
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample, write_index
from recipes.edge.data.sample_set import plan_samples
from recipes.edge.data.samples import clip_settings
from recipes.edge.evaluation.answers import answer_prompts, find_settings, load_model
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import probe_video
from recipes.edge.ranks.distributed import choose_device
from recipes.edge.weights.loading import find_weights
from recipes.edge.weights.pretrained import read_tokenizer

KNOWN = {
    *("max_new_tokens", "until"),
    *("do_sample", "num_beams", "temperature", "top_k", "top_p"),
}
"""Generation settings that are obeyed; where answers are greedy, most say nothing."""


class FastSlow(lmms):  # type: ignore[misc]
    """What ``--model fastslow`` of lmms-eval stands for.

    Args:
        pretrained: Folder of a ``model-N``, or any checkpoint of transformers.
        config: YAML file of settings; by default those of the run.
        device: Where it computes; by default the GPU of ``LOCAL_RANK``, or the CPU.
        batch_size: Accepted without effect; prompts share rows, see ``pack_prompts``.

    Raises:
        ValueError: If something else is given: nothing is ignored.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        config: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        """Load the weights."""
        super().__init__()
        if others:
            raise ValueError(
                f"model_args has {', '.join(sorted(others))}; it takes pretrained, "
                "config and device"
            )
        self.device = torch.device(device) if device else choose_device()
        self.batch_size = batch_size
        self._checkpoint = find_weights(pretrained)
        settings = find_settings(self._checkpoint, Path(config) if config else None)
        self._model = load_model(self._checkpoint, settings, self.device)
        self._settings = clip_settings(
            settings, self._model.family, pad_rows=self.device.type == "cuda"
        )
        self._ignored = set[str]()

    @property
    def rank(self) -> int:
        """This process."""
        return int(self._rank)

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self._world_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answer requests; those of one set of generation settings share rows.

        Settings that are not obeyed are logged, once. A request that cannot be asked is
        logged, and its answer is empty.

        Raises:
            ValueError: If sampling is asked for.
        """
        answers = [""] * len(requests)
        groups = dict[tuple[int, tuple[str, ...]], list[int]]()
        for number, request in enumerate(requests):
            groups.setdefault(_how(request.args[1]), []).append(number)
        self._log_ignored(request.args[1] for request in requests)
        with TemporaryDirectory() as folder:
            for (most, stops), numbers in groups.items():
                asked = [requests[number] for number in numbers]
                said = self._answer(asked, most, stops, Path(folder))
                for number, text in zip(numbers, said, strict=True):
                    answers[number] = text
                    hook = self.cache_hook
                    hook.add_partial("generate_until", requests[number].args, text)
        return answers

    def _log_ignored(self, settings: Iterable[Mapping[str, Any]]) -> None:
        """Name the generation settings without effect that were not named before."""
        given = {name for each in settings for name in _given(each)}
        ignored = given - KNOWN - self._ignored
        if ignored and self.rank == 0:  # every process is asked alike
            self._ignored |= ignored
            logger.warning(
                f"generation_kwargs has {', '.join(sorted(ignored))}, which has no "
                f"effect; known are {', '.join(sorted(KNOWN))}"
            )

    def _answer(
        self,
        requests: Sequence[Instance],
        max_new_tokens: int,
        stop_texts: tuple[str, ...],
        folder: Path,
    ) -> list[str]:
        """Answer requests of one set of generation settings."""
        store = ArchiveStore(CACHE)
        samples = self._samples(requests, folder)
        index = write_index(folder / "prompts.arrow", samples)
        tokenizer = read_tokenizer(self._checkpoint)
        prompts, bad = plan_samples(index, self._settings, tokenizer, store)
        for each in bad:
            _log_empty(requests[_number(each.source)], each.reason)
        answers = answer_prompts(
            self._model,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_texts=stop_texts,
        )
        texts = [""] * len(requests)
        for answer in answers:
            number = _number(index[prompts.numbers[answer.number]].source)
            texts[number] = answer.text
            if answer.error:
                _log_empty(requests[number], answer.error)
        return texts

    def _samples(self, requests: Sequence[Instance], folder: Path) -> Iterator[Sample]:
        """Write requests as conversations, but for those whose clips are broken."""
        for number, request in enumerate(requests):
            try:
                yield self._sample(request, number, folder)
            except ValueError as error:
                _log_empty(request, str(error))

    def _sample(self, request: Instance, number: int, folder: Path) -> Sample:
        """Write a request as a conversation that shows everything first."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        shown = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        clips = [
            _clip(each, folder / f"{number}-{place}.png")
            for place, each in enumerate(shown)
        ]
        places = "".join(f"<{clip.kind}>\n" for clip in clips)
        text = context.replace("<image>", "").replace("<video>", "").lstrip("\n")
        return Sample(
            sample_id=str(doc_id),
            source=f"{task}/{split}/{number}",
            turns=(Turn(role="user", text=places + text),),
            clips=tuple(clips),
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse: no task about videos needs it."""
        raise NotImplementedError("fastslow answers; it does not score given answers")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse: no task about videos needs it."""
        raise NotImplementedError("fastslow answers a single question at a time")


def _number(source: str) -> int:
    """Give the number of the request that a sample says it is from."""
    return int(source.rpartition("/")[2])


def _log_empty(request: Instance, reason: str) -> None:
    """Name a request that is answered with nothing."""
    *_, document, task, split = request.args
    logger.error(
        f"document {document} of {task}/{split} is answered with nothing: {reason}"
    )


def _clip(shown: Any, picture: Path) -> Clip:
    """Give what a task shows: the path of a video, or a picture."""
    kind: Kind = "video"
    if isinstance(shown, Image):
        try:
            pixels = shown.convert("RGB")
        except OSError as error:
            raise ValueError(f"a picture cannot be read: {error}") from error
        pixels.save(picture)
        kind, shown = "image", picture
    if not isinstance(shown, str | Path):
        raise ValueError(
            f"the task shows a {type(shown).__name__}; it must be a picture or the "
            "path of a video"
        )
    file = Path(shown)
    return Clip(kind=kind, source=str(file), info=probe_video(MediaFile(path=file)))


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that are not null: null stands for the default."""
    return {name: value for name, value in settings.items() if value is not None}


def _how(settings: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    r"""Read how a request wants to be answered.

    A stop of ``"\n\n"`` is lmms-eval's own, for tasks that name none. It would end an
    answer that reasons after its first paragraph, so it is dropped, as lmms-eval's
    models of the Qwen family do; and an empty stop would leave no answer.
    """
    given = _given(settings)
    samples = given.get("do_sample", given.get("temperature", 0) > 0)
    if samples or given.get("num_beams", 1) != 1:
        raise ValueError(f"generation_kwargs is {settings}; answers are greedy")
    until = given.get("until", ())
    stops = (until,) if isinstance(until, str) else until
    used = tuple(stop for stop in stops if stop not in ("", "\n\n"))
    return int(given.get("max_new_tokens", 1024)), used
