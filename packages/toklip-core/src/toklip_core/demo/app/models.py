"""The models of `toklip app`, loaded once for all visitors, and the pictures that it offers to try."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from toklip_core.config import Compute
from toklip_core.demo.app.settings import AppSettings
from toklip_core.demo.chapters import PHOTOGRAPH
from toklip_core.evaluation import Matcher, PictureIndex, load_matcher, pictures_to_search
from toklip_core.model import TokLIP
from toklip_core.plugins import ChatStarter, NamedModel, PictureModel, Registry, chat_loader, picture_loader
from toklip_core.scenes import Scenes

#: Numbers of the scenes that are offered to try.
_SCENES = (62, 4, 17, 23, 31)


@dataclass(frozen=True)
class AppModels:
    """Everything that the tabs compute with."""

    compute: Compute
    plugins: Registry
    #: Name and model of TokLIP's kind, and what is said of it.
    matcher: Matcher
    protocol: dict[str, str]
    #: What the tab of the search says it searches.
    where: str
    index: PictureIndex
    #: Name of the language model, and the function that starts a conversation with it; None: no package has one.
    language_model: str | None
    start: ChatStarter | None
    #: Whether the language model draws.
    draws: bool
    #: Name of the model that draws where the language model does not, and the model; None: there is none.
    generator: str | None
    drawer: PictureModel | None

    @property
    def introduction(self) -> str:
        """What each model does on the page, in one line."""
        parts = [f"`{self.protocol['model']}` compares"]
        if self.language_model is not None:
            parts.append(f"`{self.language_model}` reads{' and draws' if self.draws else ''}")
        if self.generator is not None:
            parts.append(f"`{self.generator}` draws")
        return f"Pictures as tokens. {', '.join(parts)}; on {self.compute.device}."

    @property
    def notes(self) -> list[str]:
        """A line for each thing that the page cannot do, which says what to install or name."""
        lines = []
        if self.start is None:
            lines.append("For a chat, install a package that has a language model: `pip install toklip-mllm`")
        elif not self.draws and self.drawer is None:
            lines.append("For drawing, install a package that has a generator: `pip install toklip-gen`")
        if not isinstance(self.matcher, TokLIP):
            lines.append(f"For tokens, name a TokLIP (`--toklip`); `{self.protocol['model']}` has none")
        return lines


def load_models(plugins: Registry, settings: AppSettings) -> AppModels:
    """Load the models of the app, each by its name or folder.

    Args:
        plugins: the plugins.
        settings: the models, and the pictures to search.

    Raises:
        FileNotFoundError: a model or a picture is not there.
        LookupError: there is no such model.
        ValueError: a model is of another kind, a generator has nothing to do, or there is no such device.
    """
    model, generator, compute = settings.model, settings.generator, settings.compute
    files = pictures_to_search(settings.pictures, compute)
    shipped = [one for one in plugins.models.values() if not one.source]
    if model is None:
        talkers = [one for one in shipped if one.chat is not None]
        # Preferably one that draws, unless a generator is named to draw.
        model = _first_name(sorted(talkers, key=lambda one: (one.load is None) == (generator is None)))
    start = None if model is None else chat_loader(model)(device=compute.device)
    draws = start is not None and start(0).draws
    if generator is not None and (start is None or draws):
        reason = "there is no language model to chat with: pip install toklip-mllm" if start is None else (
            f"the language model {model!r} draws its own pictures; leave --generator out, or name another --model"
        )
        raise ValueError(f"--generator {generator!r} has nothing to draw, because {reason}")
    if generator is None and start is not None and not draws:
        generator = _first_name([one for one in shipped if one.load is not None])
    matcher, protocol = load_matcher(settings.toklip, compute)
    return AppModels(
        compute=compute,
        plugins=plugins,
        matcher=matcher,
        protocol=protocol,
        where=" ".join(settings.pictures),
        index=PictureIndex(matcher, files, protocol=protocol, compute=compute, kept=True),
        language_model=model,
        start=start,
        draws=draws,
        generator=generator,
        drawer=None if generator is None else _load_drawer(generator, compute),
    )


def _first_name(models: Sequence[NamedModel]) -> str | None:
    return models[0].name if models else None


def _load_drawer(name: str, compute: Compute) -> PictureModel:
    loader = picture_loader(name)
    if loader is None:
        raise LookupError(f"no model that draws is named {name!r}, and no folder has one; `toklip models` lists them")
    return loader(device=compute.device, dtype=None)


def write_examples(folder: Path) -> list[str]:
    """Write pictures to try, scenes that no shipped model was trained on and a photograph; return their paths."""
    folder.mkdir()
    scenes = Scenes(max(_SCENES) + 1, seed=3, split="validation", background="plain")
    for number in _SCENES:
        Image.fromarray(scenes[number].rgb).save(folder / f"scene-{number}.png")
    with as_file(files("toklip_core.demo") / PHOTOGRAPH) as photograph:
        shutil.copy(photograph, folder / PHOTOGRAPH)
    return [*(str(folder / f"scene-{number}.png") for number in _SCENES), str(folder / PHOTOGRAPH)]
