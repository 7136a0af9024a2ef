"""The page of `toklip app`: the components of its tabs, of Gradio, and what they call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

import gradio as gr

from toklip_core.demo.app.chat import ChatSession
from toklip_core.demo.app.models import AppModels, write_examples
from toklip_core.demo.app.tokenizers import HEADER, compare_on, offline_tokenizers, shipped_tokenizers
from toklip_core.demo.app.tokens import (
    TokenMark,
    TokenView,
    cell_at,
    describe_token,
    draw_grid,
    marked_cell,
    matches_of,
    texts_for,
)
from toklip_core.evaluation import Search, draw_map, explain_image
from toklip_core.model import TokLIP
from toklip_core.pictures import PANEL_SIDE, open_picture

#: Options of every event that computes: one at a time, on one device.
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}
#: An event that comes while another one is answered is answered after it, with what the page then holds.
_THEN_AGAIN: dict[str, Any] = {"trigger_mode": "always_last"}
_QUESTIONS = ("is there a yellow square?", "how many objects are there?", "what colour is the lower one?")
_DRAWINGS = ("draw a large red circle", "draw a yellow square right of a blue square")
_MOST_RESULTS = 50
_UPLOADS = ["upload", "clipboard"]
#: Seconds between two looks for files that visitors have left, and the age at which these are deleted.
_HOUR, _DAY = 3600, 86400

_Call = TypeVar("_Call", bound=Callable[..., Any])


def build_page(models: AppModels, folder: Path) -> gr.Blocks:
    """Return the page.

    Args:
        models: what the tabs compute with.
        folder: an empty folder for drawn pictures, and below it pictures to try: Gradio's own, whose files are sent to
            whoever knows their names, and deleted after a day unless they are pictures to try.
    """
    examples = write_examples(folder / "examples")
    with gr.Blocks(title="TokLIP", analytics_enabled=False, fill_width=True, delete_cache=(_HOUR, _DAY)) as page:
        with gr.Column(elem_classes="head"):
            gr.Markdown("\n\n".join(["# TokLIP", models.introduction, *models.notes]))
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


def _show_errors(call: _Call) -> _Call:
    """Show errors that are for users on the page; others are bugs, and keep their traceback in the terminal."""

    @wraps(call)
    def answer(*values: Any) -> Any:  # noqa: ANN401 - whatever the components hold
        try:
            return call(*values)
        except (ValueError, LookupError, OSError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return cast(_Call, answer)


def _add_chat(models: AppModels, folder: Path, examples: list[str]) -> None:
    start = models.start
    assert start is not None
    state = gr.State(None)
    chat = gr.Chatbot(
        show_label=False,
        height="60vh",
        placeholder="Show a picture and ask about it, or say what to draw.",
        elem_classes="chat",
        feedback_options=None,
        buttons=[],
    )
    message = gr.MultimodalTextbox(
        show_label=False,
        placeholder="Ask about a picture, or say: draw a large red circle",
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        elem_id="message",
    )
    questions = [{"text": text, "files": examples[:1]} for text in _QUESTIONS]
    gr.Examples([*([one] for one in questions), *([{"text": text}] for text in _DRAWINGS)], message, label="Try")
    with gr.Row():
        seed = gr.Number(
            0, label="Seed of the next conversation", precision=0, minimum=0, maximum=2**31 - 1, min_width=200
        )
        restart = gr.Button("New conversation", min_width=200)

    def answer(typed: dict[str, Any], session: ChatSession | None, number: float | None) -> Iterator[tuple[Any, ...]]:
        if session is None:
            most = models.compute.max_pixels
            session = ChatSession(start, models.drawer, folder, seed=int(number or 0), max_pixels=most)
        left: Any = None
        for _ in session.answer(typed["text"] or "", typed["files"]):
            yield session.messages, session, left
            # The message has left the text box, where the next one may be typed from now on.
            left = gr.skip()

    event = message.submit(answer, [message, state, seed], [chat, state, message], **_ONE_AT_A_TIME)
    for end in (restart.click, chat.clear):
        end(lambda: ([], None), None, [chat, state], queue=False, cancels=[event])


def _add_tokens(models: AppModels, examples: list[str], tab: gr.Tab) -> None:
    state, last = gr.State(None), gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=220):
            picture = _add_picture(examples[0], elem_id="token-picture")
            gr.Examples(examples, picture, label="Examples")
            lines = "\n".join(texts_for(models.protocol["model"]))
            texts = gr.Textbox(
                lines, label="Texts to compare with, one in each line", lines=6, max_lines=6, elem_id="token-texts"
            )
        with gr.Column(scale=3, min_width=320):
            label = "Its tokens: click on one"
            grid = gr.Image(label=label, interactive=False, format="png", buttons=[], elem_id="grid")
        with gr.Column(scale=3, min_width=320):
            description = gr.HTML(elem_id="token")
            best = gr.Image(interactive=False, format="png", buttons=[], height=300, elem_id="map")

    @_show_errors
    def read(file: str | None, typed: str, view: TokenView | None) -> TokenView | None:
        if file is None:
            return None
        wanted = [line.strip() for line in typed.splitlines() if line.strip()]
        if view is not None and (view.file, view.explanation.texts) == (file, tuple(wanted)):
            return view
        image = open_picture(file, max_pixels=models.compute.max_pixels)
        name = Path(file).name
        return TokenView(file, explain_image(models.matcher, image, wanted, picture=name, protocol=models.protocol))

    def show(view: TokenView | None, mark: TokenMark | None) -> tuple[Any, ...]:
        if view is None:
            return None, "", None
        explanation, cell = view.explanation, marked_cell(view, mark)
        text = matches_of(explanation, cell, 1)[0].text
        over = gr.Image(draw_map(explanation, text), label=f"“{text}”, over the whole picture")
        return draw_grid(explanation, cell), describe_token(explanation, cell), over

    def point(view: TokenView | None, mark: TokenMark | None, event: gr.SelectData) -> tuple[Any, ...]:
        if view is not None:
            mark = TokenMark(view.file, cell_at(view.explanation, *event.index))
        return mark, *show(view, mark)

    outputs = [grid, description, best]
    # A click ends the editing of the texts, which are read then: neither undoes the other, and no sign of progress lies
    # over the grid, where it would take the click.
    in_order: dict[str, Any] = {"concurrency_id": "tokens", "concurrency_limit": 1, "show_progress": "hidden"}
    gr.on(
        [picture.change, texts.blur, tab.select],
        read,
        [picture, texts, state],
        state,
        show_progress_on=[description, best],
        **_ONE_AT_A_TIME,
        **_THEN_AGAIN,
    ).success(show, [state, last], outputs, **in_order, **_THEN_AGAIN)
    grid.select(point, [state, last], [last, *outputs], trigger_mode="multiple", **in_order)


def _add_search(models: AppModels) -> None:
    with gr.Row(equal_height=True):
        text = gr.Textbox(label="Text", placeholder="a blue star", scale=6, elem_id="text")
        top = gr.Slider(1, _MOST_RESULTS, 12, step=1, label="Pictures", scale=2)
    button = gr.Button("Search", variant="primary")
    gallery = gr.Gallery(
        show_label=False, columns=6, height="auto", object_fit="contain", elem_classes="pixels", elem_id="results"
    )
    first = f"{len(models.index):,} pictures of `{models.where}`. The first search reads all of them."
    note = gr.Markdown(first)

    @_show_errors
    def run(wanted: str, count: float) -> tuple[Any, ...]:
        result = models.index.search(wanted, top=int(count))
        unreadable = f" {len(result.unreadable)} cannot be read." if result.unreadable else ""
        return _caption_hits(result), (
            f"{result.searched:,} pictures of `{models.where}` were compared.{unreadable} The numbers are cosines: "
            "they rank the pictures, and do not say whether any of them matches."
        )

    gr.on([text.submit, button.click], run, [text, top], [gallery, note], **_ONE_AT_A_TIME, **_THEN_AGAIN)


def _caption_hits(result: Search) -> list[tuple[Any, str]]:
    """Return the pictures of a search, small enough for a page, with cosine and name."""
    rows = []
    for hit in result.hits:
        image = hit.picture.read().copy()
        image.thumbnail((PANEL_SIDE, PANEL_SIDE))
        rows.append((image, f"{hit.cosine:.3f}  {Path(hit.picture.name).name}"))
    return rows


def _add_tokenizers(models: AppModels, examples: list[str], tab: gr.Tab) -> None:
    state = gr.State(None)
    names = [spec.name for spec in offline_tokenizers(models.plugins)]
    shipped = [spec.name for spec in shipped_tokenizers(models.plugins)]
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            picture = _add_picture(examples[-1], elem_id="tokenizers-picture")
            gr.Examples(examples, picture, label="Examples")
            choice = gr.CheckboxGroup(names, value=shipped, label="Tokenizers on this machine", elem_id="choice")
            button = gr.Button("Compare", variant="primary")
        with gr.Column(scale=3):
            gallery = gr.Gallery(
                show_label=False, columns=4, height="auto", object_fit="contain", elem_id="reconstructions"
            )
            table = gr.Dataframe(headers=HEADER, interactive=False, show_label=False, wrap=True)
            note = gr.Markdown()

    @_show_errors
    def run(file: str | None, wanted: list[str], before: Any) -> Any:  # noqa: ANN401 - of components
        if file is None:
            return [], [], "", None
        if (file, wanted) == before:
            return gr.skip()
        views, problems = compare_on(file, wanted, models.compute)
        pictures = [(view.reconstruction.image, view.caption) for view in views]
        if views:
            largest = max(views, key=lambda view: view.reconstruction.original.width)
            pictures.insert(0, (largest.reconstruction.original, "the picture"))
        return pictures, [view.row for view in views], "\n\n".join(problems), None if problems else (file, wanted)

    gr.on(
        [picture.change, button.click, tab.select],
        run,
        [picture, choice, state],
        [gallery, table, note, state],
        **_ONE_AT_A_TIME,
        **_THEN_AGAIN,
    )


def _add_picture(example: str, *, elem_id: str) -> gr.Image:
    # image_mode None: the file goes to open_picture as it is, which reads it as every command does.
    return gr.Image(
        example, type="filepath", image_mode=None, label="Picture", height=240, sources=_UPLOADS, elem_id=elem_id,
        elem_classes="input-picture", buttons=[],
    )
