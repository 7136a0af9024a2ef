"""Small runs of `toklip train mllm` for tests: their data, their settings, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from toklip_core.tokenizer import Tokenizer
from toklip_mllm.training import MLLMTrainConfig
from torch import Tensor

from tests.core.conftest import picture
from tests.support import mean_colour
from tests.support.encoding import encode_with
from tests.support.small_mllms import MARKED, language_model, small_mllm, tokenizer
from tests.support.small_models import SIZE, small_toklip

ANSWERS = ["red circle", "blue square", "two", "it is green ."]
SMALL = {"width": 32, "hidden": 48, "heads": 2, "layers": 1, "context_length": 160, "conversations": 12}


def write_world(folder: Path, vq: Tokenizer | None = None) -> None:
    """Write a TokLIP, a language model, pictures, their token store, and conversations in LLaVA's form."""
    vq = vq or mean_colour.mean_colour()
    small_toklip(tokenizer=vq).save_pretrained(folder / "toklip")
    language_model().save_pretrained(folder / "language")
    tokenizer(MARKED).save_pretrained(folder / "language")
    (folder / "pictures").mkdir()
    rows = []
    for number in range(10):
        name = f"{number:02}.png"
        picture(number).save(folder / "pictures" / name)
        question = "what is it ?" if number % 2 else "how many red square ? the colour is the picture"
        turns = [("human", f"<image>\n{question}"), ("gpt", ANSWERS[number % len(ANSWERS)])]
        rows.append({"id": number, "image": name, "conversations": said(turns)})
    (folder / "captions.json").write_text(json.dumps(rows))
    rows += [{"conversations": said([("human", "yes ?"), ("gpt", "no")])} for _ in range(2)]
    (folder / "conversations.json").write_text(json.dumps(rows))
    encode_with(
        [folder / "pictures"], folder / "store", tokenizer=vq.name, image_size=SIZE, resize="crop"
    )


def write_tokens(world: Path) -> Path:
    """Write a token store that has the tokens of the world's TokLIP, too: five groups of two pictures."""
    store = world / "tokens"
    encode_with([world / "pictures"], store, model=world / "toklip", tokens=True, batch_size=2, part_rows=2)
    return store


def said(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Turns in LLaVA's form."""
    return [{"from": speaker, "value": text} for speaker, text in turns]


def file_data(world: Path, **changes: Any) -> dict[str, Any]:
    source = {"kind": "conversations", "file": str(world / "conversations.json"), "root": str(world / "pictures")}
    return source | changes


SCENES = {"kind": "scenes", "count": 20, "turns": 2}


def values(world: Path, *data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Settings of a run; a table among the changes replaces the keys that it has."""
    found: dict[str, Any] = {
        "toklip": str(world / "toklip"),
        "language_model": str(world / "language"),
        "train": ["connector", "language_model"],
        "data": [*data],
        "max_length": 512,
        "run": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 1, "keep": 9},
    }
    for name, value in changes.items():
        found[name] = found[name] | value if isinstance(found.get(name), dict) else value
    return {name: value for name, value in found.items() if value is not None}


def config(world: Path, *data: dict[str, Any], **changes: Any) -> MLLMTrainConfig:
    return MLLMTrainConfig.model_validate(values(world, *data, **changes))


def lines(out: Path) -> list[dict[str, float]]:
    """Return the log, but for the clock."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "steps_per_second"} for line in found]


def exported(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model/model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """The last checkpoints and the exported files, byte for byte, and the logs."""
    files = [*max((one / "checkpoints").iterdir()).iterdir(), *(one / "model").iterdir()]
    names = [file.relative_to(one) for file in files]
    assert len(names) > 7
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []
    assert lines(one) == lines(other)


def write_model(folder: Path, site: Path, *, new_tokens: int) -> Callable[[str, list[Path]], str]:
    """Write a model of random weights, and the plugin of its VQ tokenizer into ``site``; return what answers alone."""
    mean_colour.install(site)
    model, processor = small_mllm(template=MARKED)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def said(question: str, pictures: list[Path]) -> str:
        content = [*({"type": "image", "path": path} for path in pictures), {"type": "text", "text": question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        text = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.split(".")[0].strip()

    return said
