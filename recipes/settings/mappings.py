"""Settings of a run as mappings: read from YAML, filled in, compared."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from recipes.settings.values import by_dotted_name, convert, nearest

_Settings = TypeVar("_Settings")

MOST_BYTES = 2**17
"""Bytes of a settings file at most."""


def read_settings(file: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Plain words are read by the core schema of YAML 1.2: ``2e-5`` is a number, and
    ``yes``, ``010`` and ``1:30`` are not more than they look like.

    Args:
        file: A mapping of settings; a file without any changes nothing.

    Returns:
        The mapping.

    Raises:
        ValueError: If the file is no YAML or no file, too long, no mapping, has a key
            twice, or an alias, in which a short file can say anything any number of
            times.
    """
    try:
        content = yaml.load(_read(file), Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML that can be read: {error}") from error
    return check_mapping("the file", {} if content is None else content)


def _read(file: Path) -> str:
    """Read a file that is one, and not too long."""
    if file.exists() and not file.is_file():
        raise ValueError("it is no regular file")
    with file.open("rb") as content:
        text = content.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    return text.decode()


def settings_as_yaml(config: Any) -> str:
    """Give a dataclass of settings in the form that ``read_settings`` reads.

    Args:
        config: A dataclass of numbers, words, paths and such dataclasses.

    Returns:
        The text of a file.
    """
    settings = settings_as_json(config)
    return str(yaml.dump(settings, Dumper=_Dumper, sort_keys=False))


def fill_settings(
    config: _Settings, settings: Mapping[str, Any], *, within: str = ""
) -> _Settings:
    """Change some fields of a dataclass by name.

    Args:
        config: A frozen dataclass, whose fields may be such dataclasses.
        settings: Values by name, as YAML gives them.
        within: Name of the settings that it is part of.

    Returns:
        The changed dataclass.

    Raises:
        ValueError: If a name is unknown or a value is of another type.
    """
    kinds = get_type_hints(type(config))
    check_known(settings, setting_names(type(config)), within=within)
    changes: dict[str, Any] = {}
    for name, value in settings.items():
        whole = f"{within}.{name}" if within else name
        if dataclasses.is_dataclass(kinds[name]):
            inner = check_mapping(whole, value)
            changes[name] = fill_settings(getattr(config, name), inner, within=whole)
        else:
            changes[name] = convert(whole, value, kinds[name])
    changed: _Settings = dataclasses.replace(config, **changes)  # type: ignore[type-var]
    return changed


def setting_names(kind: Any) -> tuple[str, ...]:
    """Give the names of the settings that a dataclass has."""
    return tuple(field.name for field in dataclasses.fields(kind))


def check_mapping(name: str, value: Any) -> dict[str, Any]:
    """Refuse what is no mapping.

    Raises:
        ValueError: If ``value`` is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}; it must be a mapping of settings")
    return dict(value)


def check_known(
    settings: Mapping[Any, Any], known: Collection[str], *, within: str = ""
) -> None:
    """Refuse names that nothing reads.

    Args:
        settings: Values by name.
        known: The names that there are.
        within: Name of the settings that they are part of.

    Raises:
        ValueError: If a name is unknown; the message names the nearest known one.
    """
    for name in settings:
        if name not in known:
            where = f"{within}." if within else ""
            raise ValueError(
                f"{where}{name} is no setting; the nearest one is "
                f"{where}{nearest(str(name), known)}"
            )


def settings_as_json(config: Any) -> dict[str, Any]:
    """Give a dataclass of settings in the form that a checkpoint keeps.

    Args:
        config: A dataclass of numbers, words and paths.

    Returns:
        Its fields by name; paths become text, and tuples lists.
    """
    settings: dict[str, Any] = json.loads(
        json.dumps(dataclasses.asdict(config), default=str)
    )
    return settings


def changed_settings(
    before: Mapping[str, Any], config: Any
) -> dict[str, tuple[Any, Any]]:
    """Find the settings that are not what they were.

    Args:
        before: What ``settings_as_json`` gave then.
        config: The settings now.

    Returns:
        For each that differs, by dotted name, what it was (None where it was not there)
        and what it is.
    """
    settings_before = dict(by_dotted_name(before))
    return {
        name: (settings_before.get(name), now)
        for name, now in by_dotted_name(settings_as_json(config))
        if settings_before.get(name) != now
    }


def check_same_settings(
    before: Mapping[str, Any], config: Any, *, free: Collection[str]
) -> None:
    """Refuse to go on with other settings than a run began with.

    Args:
        before: What ``settings_as_json`` gave when the run began.
        config: The settings now.
        free: Names that may differ; dots lead into settings of settings.

    Raises:
        ValueError: If any other setting differs; the message names it.
    """
    for name, (then, now) in changed_settings(before, config).items():
        if name not in free:
            raise ValueError(
                f"{name} is {now!r} but the run began with {then!r}; it "
                "goes on with the settings that it began with, or in another output_dir"
            )


_CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""What plain words stand for in YAML 1.2: tag, form and first characters."""


class _Loader(yaml.SafeLoader):
    """Reads plain data, no objects or aliases, by the core schema, no key twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Read a value; refuse one that stands elsewhere."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor} is an alias", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Read a value; refuse one that is not what its tag says."""
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise yaml.constructor.ConstructorError(
                None, None, f"{node.value!r} is no {kind}", node.start_mark
            ) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping; refuse a key that stands twice."""
        seen = set[str]()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if repr(key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands twice", key_node.start_mark
                )
            seen.add(repr(key))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes plain data; quotes what either version of YAML takes for no text."""


for _tag, _form, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}",
            re.compile(rf"(?:{_form})\Z", re.ASCII),
            [*_first, *([""] if _tag == "null" else [])],
        )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda loader, node: int(str(node.value))
)
