"""The page of `toklip app`: the components of its tabs, of Gradio, and what they call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from toklip_core.demo.app.chat import ChatSession
from toklip_core.demo.app.models import AppModels, write_examples
from toklip_core.demo.app.tokenizers import HEADER, compare_on, offline_tokenizers
from toklip_core.demo.app.tokens import (
    Cell,
    cell_at,
    describe_token,
    draw_grid,
    matches_of,
    strongest_cell,
    texts_for,
)
from toklip_core.evaluation import Explanation, Search, draw_map, explain_image
from toklip_core.model import TokLIP
from toklip_core.pictures import PANEL_SIDE, open_picture

#: Options of every event that computes: one at a time, on one device.
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}
_QUESTIONS = ("is there a yellow square?", "how many objects are there?", "what colour is the square?")
_DRAWINGS = ("draw a large red circle", "draw a yellow square right of a blue square")
_MOST_RESULTS = 50
_UPLOADS = ["upload", "clipboard"]


def build_page(models: AppModels, folder: Path, notes: list[str]) -> gr.Blocks:
    """Return the page.

    Args:
        models: what the tabs compute with.
        folder: an empty folder, for pictures to try and drawn pictures.
        notes: lines below the title, such as what is left out.
    """
    examples = write_examples(folder / "examples")
    with gr.Blocks(title="TokLIP", analytics_enabled=False, fill_width=True) as page:
        with gr.Column(elem_classes="head"):
            gr.Markdown("\n\n".join(["# TokLIP", _introduction(models), *notes]))
        with gr.Tabs():
            if models.start is not None:
                with gr.Tab("Chat", id="chat"):
                    _add_chat(models, folder, examples)
            if isinstance(models.matcher, TokLIP):
                with gr.Tab("Tokens", id="tokens") as tab:
                    _add_tokens(models, examples, tab)
            with gr.Tab("Search", id="search"):
                _add_search(models)
            with gr.Tab("Tokenizers", id="tokenizers") as tab:
                _add_tokenizers(models, examples, tab)
    return page


def page_style() -> dict[str, Any]:
    """Return the options of Gradio for the looks of the page; its fonts are those of the visitor's system."""
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": (files("toklip_core.demo.app") / "page.css").read_text(), "footer_links": []}


def _introduction(models: AppModels) -> str:
    parts = [f"`{models.protocol['model']}` compares"]
    if models.language_model is not None:
        parts.append(f"`{models.language_model}` reads")
    if models.generator is not None:
        parts.append(f"`{models.generator}` draws")
    return f"Visual tokens that speak. {', '.join(parts)}; on {models.compute.device}."


def _said(call: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Show errors that are for users on the page; others are bugs, and keep their traceback in the terminal."""

    @wraps(call)
    def shown(*given: Any) -> tuple[Any, ...]:  # noqa: ANN401 - whatever the components hold
        try:
            return call(*given)
        except (ValueError, LookupError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return shown


def _add_chat(models: AppModels, folder: Path, examples: list[str]) -> None:
    start = models.start
    assert start is not None
    session = gr.State(None)
    chat = gr.Chatbot(
        show_label=False,
        height="60vh",
        placeholder="Show a picture and ask about it, or say what to draw.",
        elem_classes="chat",
        feedback_options=None,
        buttons=[],
    )
    asked = gr.MultimodalTextbox(
        show_label=False,
        placeholder="Ask about a picture, or say: draw a large red circle",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        elem_id="asked",
    )
    tries = [{"text": text, "files": examples[:1]} for text in _QUESTIONS]
    gr.Examples([*([one] for one in tries), *([{"text": text}] for text in _DRAWINGS)], asked, label="Try")
    with gr.Row():
        seed = gr.Number(
            0, label="Seed of the next conversation", precision=0, minimum=0, maximum=2**31 - 1, min_width=200
        )
        again = gr.Button("New conversation", min_width=200)

    def answer(given: dict[str, Any], held: ChatSession | None, number: float | None) -> Iterator[tuple[Any, ...]]:
        if held is None:
            most = models.compute.max_pixels
            held = ChatSession(start, models.drawer, folder, seed=int(number or 0), max_pixels=most)
        for _ in held.answer(given["text"] or "", given["files"]):
            yield held.messages, held, None

    sent = asked.submit(answer, [asked, session, seed], [chat, session, asked], **_ONE_AT_A_TIME)
    for event in (again.click, chat.clear):
        event(lambda: ([], None), None, [chat, session], queue=False, cancels=[sent])


def _add_tokens(models: AppModels, examples: list[str], tab: gr.Tab) -> None:
    held = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=220):
            given = _picture(examples[0], elem_id="token-picture")
            gr.Examples(examples, given, label="Examples")
            lines = "\n".join(texts_for(models.protocol["model"]))
            texts = gr.Textbox(lines, label="Texts to compare with, one in each line", lines=6, max_lines=6)
        with gr.Column(scale=3, min_width=320):
            label = "Its tokens: click on one"
            grid = gr.Image(label=label, interactive=False, format="png", buttons=[], elem_id="grid")
        with gr.Column(scale=3, min_width=320):
            said = gr.HTML(elem_id="said")
            best = gr.Image(interactive=False, format="png", buttons=[], height=300, elem_id="map")

    def shown(explanation: Explanation, cell: Cell) -> tuple[Any, ...]:
        text = matches_of(explanation, cell, 1)[0].text
        over = gr.Image(draw_map(explanation, text), label=f"“{text}”, over the whole picture")
        return explanation, draw_grid(explanation, cell), describe_token(explanation, cell), over

    @_said
    def read(file: str | None, typed: str) -> tuple[Any, ...]:
        if file is None:
            return None, None, "", None
        wanted = [line.strip() for line in typed.splitlines() if line.strip()]
        image = open_picture(file, max_pixels=models.compute.max_pixels)
        explanation = explain_image(models.matcher, image, wanted, picture=Path(file).name, protocol=models.protocol)
        return shown(explanation, strongest_cell(explanation))

    def point(explanation: Explanation | None, event: gr.SelectData) -> tuple[Any, ...]:
        return (None, None, "", None) if explanation is None else shown(explanation, cell_at(explanation, *event.index))

    outputs = [held, grid, said, best]
    for event in (given.change, texts.blur, tab.select):
        event(read, [given, texts], outputs, **_ONE_AT_A_TIME)
    grid.select(point, held, outputs, show_progress="hidden")


def _add_search(models: AppModels) -> None:
    with gr.Row(equal_height=True):
        text = gr.Textbox(label="Text", placeholder="a blue star", scale=6, elem_id="text")
        top = gr.Slider(1, _MOST_RESULTS, 12, step=1, label="Pictures", scale=2)
    go = gr.Button("Search", variant="primary")
    found = gr.Gallery(
        show_label=False, columns=6, height="auto", object_fit="contain", elem_classes="pixels", elem_id="found"
    )
    first = f"{len(models.index):,} pictures of `{models.where}`. The first search reads all of them."
    note = gr.Markdown(first)

    @_said
    def run(wanted: str, count: float) -> tuple[Any, ...]:
        result = models.index.search(wanted, top=int(count))
        unreadable = f" {len(result.unreadable)} cannot be read." if result.unreadable else ""
        return _captioned(result), (
            f"{result.searched:,} pictures of `{models.where}` were compared.{unreadable} The numbers are cosines: "
            "they rank the pictures, and do not say whether any of them matches."
        )

    for event in (text.submit, go.click):
        event(run, [text, top], [found, note], **_ONE_AT_A_TIME)


def _captioned(result: Search) -> list[tuple[Any, str]]:
    """Return the pictures of a search, small enough for a page, with cosine and name."""
    rows = []
    for hit in result.hits:
        image = hit.picture.read().copy()
        image.thumbnail((PANEL_SIDE, PANEL_SIDE))
        rows.append((image, f"{hit.cosine:.3f}  {Path(hit.picture.name).name}"))
    return rows


def _add_tokenizers(models: AppModels, examples: list[str], tab: gr.Tab) -> None:
    specs = offline_tokenizers(models.found)
    # The weights decide the codebook of the others, and without a path there are none.
    chosen = [spec.name for spec in specs if spec.codebook_sizes]
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            given = _picture(examples[-1], elem_id="tokenizers-picture")
            gr.Examples(examples, given, label="Examples")
            picked = gr.CheckboxGroup([spec.name for spec in specs], value=chosen, label="Tokenizers on this machine")
            go = gr.Button("Compare", variant="primary")
        with gr.Column(scale=3):
            seen = gr.Gallery(
                show_label=False, columns=4, height="auto", object_fit="contain", elem_id="compared"
            )
            table = gr.Dataframe(headers=HEADER, interactive=False, show_label=False, wrap=True)
            note = gr.Markdown()

    @_said
    def run(file: str | None, wanted: list[str]) -> tuple[Any, ...]:
        if file is None:
            return [], [], ""
        views, problems = compare_on(file, wanted, models.compute)
        pictures = [(view.reconstruction.image, view.caption) for view in views]
        if views:
            largest = max(views, key=lambda view: view.reconstruction.original.width)
            pictures.insert(0, (largest.reconstruction.original, "the picture"))
        return pictures, [view.row for view in views], "\n\n".join(problems)

    for event in (given.change, go.click, tab.select):
        event(run, [given, picked], [seen, table, note], **_ONE_AT_A_TIME)


def _picture(example: str, *, elem_id: str) -> gr.Image:
    # image_mode None: the file goes to open_picture as it is, which reads it as every command does.
    return gr.Image(
        example, type="filepath", image_mode=None, label="Picture", height=240, sources=_UPLOADS, elem_id=elem_id,
        elem_classes="given", buttons=[],
    )
