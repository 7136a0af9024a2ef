"""The commands that use a TokLIP or a CLIP. Imports click only; the bodies import the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toklip_core.cli.group import registry_of
from toklip_core.cli.options import (
    COUNT,
    PathName,
    as_json,
    batch_size,
    compute_of,
    device,
    dtype,
    matcher_names,
    max_pixels,
    names_or_files,
    refuse_unused,
    toklip_names,
)
from toklip_core.cli.quotes import note_single_words, refuse_loose_words

if TYPE_CHECKING:
    from toklip_core.model import ModelSpec
    from toklip_core.plugins import NamedModel

_Command = Callable[..., None]

_MODEL = click.option(
    "--model",
    "name",
    default="toklip-tiny",
    show_default=True,
    shell_complete=names_or_files(matcher_names),
    help="Model: a name from `toklip models` that compares pictures with texts, a folder, an official .pt file, "
    "owner/name on the hub, open_clip:NAME/TAG, or NAME=PATH, a plugin's model with its weights.",
)
_BATCH = batch_size("pictures per batch")
_DTYPE = dtype("Precision of both towers; the VQ tokenizer always computes in float32.")


def _templates(usual: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--template",
        "templates",
        multiple=True,
        help="Text template with {} in place of the class name, or a set of open_clip's templates for ImageNet: openai "
        f"(80 templates) or simple (7). Repeatable; the text features of all templates are averaged. {usual}",
    )


@click.command()
@as_json
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the models that can be used by name.

    The list gives the size, source and licence of each model, and whether it is in the cache of the hub. Models marked
    "that draws" can be used with `toklip generate --model NAME`. Nothing is downloaded.
    """
    from toklip_core.model import models as specs

    rows = [*map(_row, specs().values()), *map(_plugin_row, registry_of(ctx).models.values())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        also = f" (also {', '.join(row['aliases'])})" if row["aliases"] else ""
        click.echo(f"{row['name']}{also}: {row['summary']}")
        kind = f"{row['kind']} that draws" if row["draws"] else row["kind"]
        click.echo(f"    {kind}, {size_text(row['size'])}, {row['status']}; {row['source'] or row['package']}")
        click.echo(f"    {row['licence']}")


@click.command()
@click.argument("file", type=PathName(), shell_complete=names_or_files(toklip_names))
@click.argument("out", type=PathName(path_type=Path))
@click.option(
    "--config",
    type=PathName(path_type=Path),
    help="Path of the model's config.json; required if its sizes match no published model.",
)
@click.option(
    "--text-tokenizer",
    "words",
    type=PathName(path_type=Path),
    help="Path of the text tower's tokenizer.json. [default: that of the published model, from the hub]",
)
@as_json
def convert(file: str, out: Path, config: Path | None, words: Path | None, as_json: bool) -> None:
    """Convert an official checkpoint FILE into the model folder OUT.

    All weights in the file, including the VQ tokenizer's, are written as safetensors. No code in the file is executed.
    FILE may also be a name from `toklip models`.
    """
    from toklip_core.config import validated
    from toklip_core.files import read_text
    from toklip_core.model import TOKENIZER_FILE, TextTokenizer, TokLIP, TokLIPConfig
    from toklip_core.pictures import refuse_output
    from toklip_core.weights import CONFIG_FILE, WEIGHTS_FILE, read_config

    if (out / CONFIG_FILE).exists():
        raise FileExistsError(f"{out} is a model folder already; name another one, or remove it")
    if out.is_dir():
        for name in (WEIGHTS_FILE, TOKENIZER_FILE):
            refuse_output(out / name, [path for path in (file, words) if path is not None], option="the folder of")
    settings = None if config is None else validated(TokLIPConfig, read_config(config), config)
    tokenizer = None if words is None else read_text(words)
    model = TokLIP.from_pretrained(file, config=settings)
    assert model.text is not None
    if tokenizer is not None:
        model.text.tokenizer = TextTokenizer(model.config.text, tokenizer)
    model.save_pretrained(out)
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    missing = [TOKENIZER_FILE] if model.text.tokenizer is None else []
    if as_json:
        click.echo(json.dumps({"folder": str(out), "files": files, "missing": missing}, indent=2))
        return
    for name, size in files.items():
        click.echo(f"{out / name}  {size / 1e6:,.1f} MB")
    if missing:
        click.echo(
            f"Missing: {out / TOKENIZER_FILE}, without which texts cannot be read; put the text tokenizer's there, or "
            "convert with --text-tokenizer",
            err=True,
        )


@click.command()
@click.argument("pictures", nargs=-1, required=True)
@click.option("--labels", help='Labels to choose from, separated by commas: "red circle,blue square".')
@click.option("--labels-file", type=PathName(), help="Text file with one label per line.")
@_templates("[default: {}, the label alone]")
@click.option("--top", type=COUNT, default=5, show_default=True, help="Number of labels to print per picture.")
@_MODEL
@max_pixels
@_BATCH
@device
@as_json
def classify(
    pictures: tuple[str, ...],
    labels: str | None,
    labels_file: str | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Classify pictures with labels of your choice.

    PICTURES are files, folders, globs, tars or scenes:SPLIT?count=N. The percentages are a softmax over the labels at
    the model's trained temperature. They say which of these labels fits best, not whether any of them fits.
    """
    from toklip_core.evaluation import classify_pictures, read_labels

    compute = compute_of(options)
    found = read_labels(labels, labels_file)
    report = classify_pictures(inputs=pictures, labels=found, compute=compute, **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if not as_json:
        click.echo("\n".join([*_unread(report.unreadable), str(report.protocol["probability"])]), err=True)


@click.command()
@click.argument("picture", type=PathName())
@click.argument("texts", nargs=-1, required=True)
@click.option(
    "--out",
    type=PathName(path_type=Path),
    help="Picture file to write. [default: the name of PICTURE with -explained.png, in the current folder]",
)
@click.option(
    "--relative",
    is_flag=True,
    help="Subtract each token's mean cosine over the texts, to show where the texts differ.",
)
@_MODEL
@max_pixels
@device
@as_json
def explain(
    picture: str,
    texts: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Draw heat maps of how well tokens match texts.

    PICTURE is a file, or one scene such as scenes:held-out?count=1&seed=7. Each of TEXTS gets a panel that shows, for
    every token of PICTURE, the cosine between the token, pooled by itself, and the text. All panels share one colour
    scale. With --json the cosines are printed, and a picture is written only if --out is given. Unless the model
    was trained with causal = false, a token depends only on its own patch, the rows above, and the patches to its left.
    """
    from toklip_core.evaluation import draw_explanation, explain_picture
    from toklip_core.pictures import WRITTEN_SUFFIXES, refuse_output, save_picture

    if out is None and not as_json:
        out = Path(f"{_stem_of(picture)}-explained.png")
    if out is not None:
        refuse_output(out, [picture], suffixes=WRITTEN_SUFFIXES)
    note_single_words(texts, "toklip explain PICTURE")
    explanation = explain_picture(picture=picture, texts=texts, compute=compute_of(options), **options)
    if out is not None:
        save_picture(draw_explanation(explanation), out)
        click.echo(f"written: {out}", err=True)
    if as_json:
        click.echo(json.dumps(explanation.as_json()))


def _stem_of(picture: str) -> str:
    """Return the name of a picture without its suffix; that of a scene is its key in a store."""
    from toklip_core.scenes import parse_scenes

    scenes = parse_scenes(picture)
    return Path(picture).stem if scenes is None else Path(scenes.key(0)).with_suffix("").as_posix().replace("/", "-")


@click.command()
@click.argument("where", nargs=-1, metavar="WHERE...")
@click.argument("text")
@click.option("--top", type=COUNT, default=5, show_default=True, help="Number of results.")
@click.option(
    "--out",
    type=PathName(path_type=Path),
    help="Also write a contact sheet of the results to this picture file.",
)
@_MODEL
@max_pixels
@_BATCH
@device
@as_json
@click.pass_context
def search(ctx: click.Context, /, out: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Search WHERE for the pictures that match TEXT best.

    WHERE is a set of pictures (files, folders, globs, tars, scenes:SPLIT?count=N) or one token store, which is searched
    by its ids or features alone. Prints one line per picture, best first: its cosine with the text, and its name. The
    cosines rank the pictures; they do not say whether any of them matches.
    """
    from toklip_core.evaluation import draw_search, search_pictures
    from toklip_core.pictures import WRITTEN_SUFFIXES, refuse_output, save_picture
    from toklip_core.store import part_paths

    if not options["where"]:
        raise click.UsageError(f"got {options['text']!r} alone; name pictures or a token store, and after them a text")
    refuse_loose_words(options["where"], 'toklip search WHERE "a blue star"')
    if any(part_paths(Path(path)) for path in options["where"]):
        refuse_unused(ctx, ("max_pixels",), "on a token store, which has ids and no pictures")
    if out is not None:
        refuse_output(out, options["where"], suffixes=WRITTEN_SUFFIXES)
    report = search_pictures(compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    if not as_json:
        click.echo("\n".join([*_unread(report.unreadable), f"cosines; {report.searched} pictures searched"]), err=True)
    if out is not None:
        save_picture(draw_search(report), out)
        click.echo(f"written: {out}", err=True)


@click.command("zero-shot")
@click.argument("folder", type=PathName())
@click.option(
    "--imagenet", is_flag=True, help="Read FOLDER as ImageNet: 1000 folders named n01440764 and so on, or 0 to 999."
)
@_templates("[default: 'a photo of a {}.'; openai with --imagenet; {} for scenes]")
@_MODEL
@max_pixels
@_BATCH
@_DTYPE
@device
@as_json
def zero_shot(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure zero-shot classification accuracy.

    FOLDER contains one folder of pictures per class, named after the class; an underscore in the name stands for a
    space. It may also be scenes:SPLIT?count=N&objects=1, generated scenes of one object each. Reports top-1 and top-5
    accuracy, chance level and the protocol.
    """
    from toklip_core.evaluation import evaluate_zero_shot

    report = evaluate_zero_shot(compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


@click.command()
@click.argument("pairs", type=PathName())
@click.option(
    "--root", type=PathName(), help="Folder that the picture paths are relative to. [default: the folder of PAIRS]"
)
@click.option("--image", default="image", show_default=True, help="Key or column of the picture's path.")
@click.option(
    "--captions",
    default="captions",
    show_default=True,
    help="Key or column of the picture's captions: a list, or a single text.",
)
@click.option("--karpathy-split", help="Split of Karpathy's dataset_coco.json. [default: test]")
@_MODEL
@max_pixels
@_BATCH
@_DTYPE
@device
@as_json
@click.pass_context
def retrieval(ctx: click.Context, /, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Measure image-text retrieval in both directions.

    PAIRS is a JSONL, CSV or TSV file with the keys of {"image": PATH, "captions": [...]} in each row, Karpathy's
    dataset_coco.json, or scenes:SPLIT?count=N, generated scenes with their captions. Reports R@1, R@5 and R@10 for
    finding captions by pictures and pictures by captions, chance level and the protocol. Any caption of a picture
    counts as a hit.
    """
    from toklip_core.evaluation import evaluate_retrieval, is_karpathy
    from toklip_core.scenes import parse_scenes

    if parse_scenes(options["pairs"]) is not None:
        refuse_unused(ctx, ("root", "image", "captions"), "with scenes, which have no files")
    elif is_karpathy(options["pairs"]):
        refuse_unused(ctx, ("image", "captions"), "with Karpathy's splits (.json), which have keys of their own")
    report = evaluate_retrieval(compute=compute_of(options), **options)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())


def size_text(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _row(spec: ModelSpec) -> dict[str, Any]:
    from toklip_core.model import ALIASES

    image_size, tokens = _sizes(spec)
    return {
        "name": spec.name,
        "kind": spec.kind,
        "package": "toklip-core",
        "aliases": [alias for alias, name in ALIASES.items() if name == spec.name],
        "summary": spec.summary,
        "size": spec.size,
        "image_size": image_size,
        "tokens": tokens,
        "source": spec.source,
        "licence": spec.licence,
        "draws": False,
        "status": _status(spec),
    }


def _sizes(spec: ModelSpec) -> tuple[int | None, int | None]:
    """Return the side of a model's pictures in pixels, and the number of its tokens."""
    from toklip_core.model import CLIPConfig, TokLIPConfig
    from toklip_core.weights import CONFIG_FILE, read_config

    values = {} if spec.folder is None else read_config(spec.folder / CONFIG_FILE)
    if spec.kind == "CLIP":
        clip = CLIPConfig.model_validate(values)
        return clip.image_size, (clip.image_size // clip.vision.patch_size) ** 2
    config = TokLIPConfig.model_validate(values) if values else spec.config
    return (None, None) if config is None else (config.image_size, config.encoder.grid[0] * config.encoder.grid[1])


def _plugin_row(model: NamedModel) -> dict[str, Any]:
    loading = {"load", "load_folder", "chat", "match", "model_type"}
    shown = {name: value for name, value in vars(model).items() if name not in loading}
    return {**shown, "draws": model.load is not None, "aliases": [], "status": _status(model)}


def _status(spec: ModelSpec | NamedModel) -> str:
    from huggingface_hub import try_to_load_from_cache

    if not spec.source:
        return "in the package" if spec.size else "not in this build of the package"
    owner, repository, *file = spec.source.split("/", 2)
    cached = try_to_load_from_cache(f"{owner}/{repository}", file[0] if file else "config.json")
    return "cached" if isinstance(cached, str) else "not cached"


def _unread(unreadable: tuple[str, ...]) -> list[str]:
    return [f"cannot be read: {line}" for line in unreadable]
