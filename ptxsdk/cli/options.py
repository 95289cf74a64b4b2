"""Options that several commands take, and arguments that are paths."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Options = TypeVar("Options")


class Precision(str, Enum):
    """Arithmetic of the network."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


class Profile(str, Enum):
    """What results may show."""

    triage = "triage"
    cade = "cade"


def path(text: str) -> Path:
    """Return the path that an argument names.

    Raises
    ------
    typer.BadParameter
        It is empty, as a shell variable is that nobody set: pathlib would take it for the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty; the current folder is .")
    return Path(text)


path_option = functools.partial(typer.Option, parser=path)
path_argument = functools.partial(typer.Argument, parser=path)

EngineArgument = Annotated[Path | None, path_argument(metavar="[ENGINE]", help="Default: the one that ships.")]
EngineOption = Annotated[Path | None, path_option("--engine", help="A .ptxengine; default: the one that ships.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda[:N].")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, openvino, tensorrt or onnxruntime.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the network.")]
ProfileOption = Annotated[Profile, typer.Option("--profile", help="triage: never a location.")]
OperatingPointOption = Annotated[str | None, typer.Option("--operating-point", help="By name.")]
KeyOption = Annotated[
    Path | None, path_option("--key", metavar="PUB", help="Ed25519 public key, raw or PEM: refuse other engines.")
]
RollbackOption = Annotated[
    Path | None,
    path_option("--rollback", metavar="FILE", help="With --key: refuse engines older than this file knows."),
]
AuditOption = Annotated[
    Path | None, path_option("--audit", metavar="FILE", help="Append a record of every film, scored or not.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]


def takes(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of a dataclass as an option; it gets them as one object, before its own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = list(inspect.signature(options, eval_str=True).parameters.values())
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(options(**{option.name: given.pop(option.name) for option in shared}), **given)

        parameters = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in (*own, *shared)]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {option.name: option.annotation for option in parameters}
        return run

    return decorate
