"""Real pictures: scikit-learn's handwritten digits, through a tokenizer, a TokLIP and a generator of their own.

    python results/digits.py

The 1,797 digits of 8 x 8 pixels become pictures of 32, of which the last 297 are held out. For each seed a tokenizer,
a teacher, a TokLIP and a generator are trained on the others by the recipes in results/digits. It prints how well
held-out digits are reconstructed; how many a linear probe tells apart, fitted on the training digits, by their codes
and by their semantic tokens, and how many the captions do without a probe; and how many drawn digits are the class that
was asked for, judged by a support vector machine that was fitted on the real training digits. digits.jpg in --out, or
docs/pictures/digits.jpg with --page, shows ten drawn digits of each class.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _runs import (
    Training,
    arguments,
    at_once,
    encode_once,
    markdown,
    measured,
    percent,
    picture_file,
    put,
    shortened,
    spread,
    train_all,
)
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from toklip_core.config import Compute
from toklip_core.evaluation import class_features, evaluate_reconstruction
from toklip_core.model import TokLIP
from toklip_core.pictures import normalized, to_picture
from toklip_gen.generator import load_generator
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

HELD_OUT = 297
SIZE = 32
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTION = "a handwritten {}"
RECIPES = Path(__file__).parent / "digits"
PSNR = "reconstruction, PSNR"
TRUE = "judge: held-out digits"


class Digits(NamedTuple):
    """Pictures and what they show."""

    #: (N, 3, 32, 32) in [-1, 1].
    pixels: Tensor
    #: (N,), 0 to 9.
    labels: np.ndarray[Any, Any]


def main() -> None:
    """Print a table, and write a picture."""
    parser = arguments(str(__doc__), steps=600)
    parser.add_argument("--drawn", type=int, default=500, help="digits, as many of each class")
    options = parser.parse_args()
    picture = picture_file(options, "digits.jpg")
    train, held_out = digits()
    folders = trained(options, train, held_out)
    found = measured(
        {
            folder.with_name(f"{folder.name}-{options.drawn}-drawn.json"): partial(
                figures, folder / "model", train, held_out, options.drawn
            )
            for folder in folders
        },
        options.jobs,
    )
    rows = []
    for name in found[0]:
        values = [one[name] for one in found]
        form = "{:.2f} dB".format if name == PSNR else percent
        rows.append([name, spread(values[:1] if name == TRUE else values, form)])
    put([markdown(["297 held-out digits", ""], rows)], options.page, "digits")
    draw_digits(folders[0] / "model").save(picture, quality=75, optimize=True)


def digits() -> tuple[Digits, Digits]:
    """Return those to train on, and those that are held out."""
    found = load_digits()
    grey = [
        np.asarray(Image.fromarray(digit).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for digit in (found.images * (255 / 16)).round().astype(np.uint8)
    ]
    pixels = normalized(torch.from_numpy(np.stack(grey))[:, None].expand(-1, 3, -1, -1))
    return (
        Digits(pixels[:-HELD_OUT], found.target[:-HELD_OUT]),
        Digits(pixels[-HELD_OUT:], found.target[-HELD_OUT:]),
    )


def write(found: Digits, folder: Path) -> None:
    """Write digits as FOLDER/CLASS/NUMBER.png with their captions beside them, unless they are there."""
    done = folder / "captions"
    if done.exists():
        return
    for number, (pixels, label) in enumerate(zip(found.pixels, found.labels, strict=True)):
        file = folder / str(label) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_picture(pixels).save(file)
        file.with_suffix(".txt").write_text(f"{CAPTION.format(NAMES[label])}\n", encoding="utf-8")
    done.write_text("written\n", encoding="utf-8")


def trained(options: Any, train: Digits, held_out: Digits) -> list[Path]:  # noqa: ANN401 - argparse's
    """Train what is not there; return the generators' runs."""
    jobs, seeds = options.jobs, options.seeds
    pictures, unseen = options.out / "digits/train", options.out / "digits/held-out"
    write(train, pictures)
    write(held_out, unseen)
    folders = (f"data.0.folder={pictures}", f"held_out.folder={unseen}")
    vqs = {seed: training(options, "vq", seed, *folders) for seed in seeds}
    teachers = {seed: training(options, "teacher", seed, f'data.0.inputs=["{pictures}"]') for seed in seeds}
    train_all([*vqs.values(), *teachers.values()], jobs)

    encodes, encoders, generators = [], [], []
    for seed in seeds:
        weights, teacher = vqs[seed].out / "model", teachers[seed].out / "model"
        store = options.out / f"digits-store-{options.steps}-steps-{seed}"
        words = ("--tokenizer", "vqgan", "--weights", weights, "--size", str(SIZE), "--teacher", teacher)
        encodes.append(partial(encode_once, store, [str(pictures)], *words))
        source = f"data.0.store={store}"
        models = (f"tokenizer_weights={weights}", f"teacher={teacher}")
        encoders.append(training(options, "encoder", seed, source, *models))
        generators.append(training(options, "generator", seed, source, f"toklip={encoders[-1].out}/model"))
    at_once(encodes, jobs)
    train_all(encoders, jobs)
    train_all(generators, jobs)
    return [generator.out for generator in generators]


def training(options: Any, kind: str, seed: int, *settings: str) -> Training:  # noqa: ANN401 - argparse's
    """A run by a recipe beside this file."""
    steps = options.steps
    if kind == "vq":  # the recipe's shares of 600 steps
        settings += (f"losses.quantize_from={steps // 4}", f"losses.restart_until={3 * steps // 4}")
    out = options.out / f"digits-{kind}-{steps}-steps-{seed}"
    return Training(kind, out, (*settings, *shortened(steps, seed)), str(RECIPES / f"{kind}.toml"))


@torch.no_grad()
def figures(generator: Path, train: Digits, held_out: Digits, drawn: int) -> dict[str, float]:
    """The rows of the table, of one seed."""
    pictures = load_generator(generator)
    toklip = TokLIP.from_pretrained(str(pictures.config.toklip))  # the generator's own has no text tower
    report = evaluate_reconstruction(toklip.tokenizer, list(held_out.pixels), compute=Compute(batch_size=HELD_OUT))
    read = {name: features(toklip, of) for name, of in (("train", train), ("held-out", held_out))}
    right = {
        f"linear probe: {name}": probed(read["train"][name], train.labels, read["held-out"][name], held_out.labels)
        for name in read["train"]
    }
    classes = class_features(toklip, NAMES, [CAPTION])
    nearest = (toklip.image_features(held_out.pixels) @ classes.T).argmax(1).numpy()

    judge = SVC(gamma=0.001).fit(small(train.pixels), train.labels)
    asked = [number % 10 for number in range(drawn)]
    ids = pictures.draw(asked, seeds=range(drawn)).ids
    reconstructed = pictures.pixels(toklip.tokenizer.encode(held_out.pixels))
    return {
        PSNR: report.psnr,
        **right,
        "nearest of ten captions: pooled tokens": float((nearest == held_out.labels).mean()),
        TRUE: float(judge.score(small(held_out.pixels), held_out.labels)),
        "judge: their reconstructions": float(judge.score(small(reconstructed), held_out.labels)),
        f"judge: {drawn} drawn digits": float(judge.score(small(pictures.pixels(ids)), asked)),
    }


def draw_digits(generator: Path) -> Image.Image:
    """Return a row of drawn digits for each class, of the seeds 0 to 9."""
    pictures = load_generator(generator)
    classes = [label for label in range(10) for _ in range(10)]
    drawn = pictures.draw(classes, seeds=[*range(10)] * 10)
    return to_picture(make_grid(pictures.pixels(drawn.ids), nrow=10, pad_value=1.0))


def features(toklip: TokLIP, of: Digits) -> dict[str, Tensor]:
    """What probes read, (N, numbers) each."""
    seen = toklip(of.pixels)
    codes = seen.codes.flatten(1, 2)
    return {
        f"mean codes ({codes.shape[2]} numbers)": codes.mean(1),
        f"all codes ({codes.shape[1] * codes.shape[2]} numbers)": codes.flatten(1),
        f"mean tokens ({seen.tokens.shape[2]} numbers)": seen.tokens.mean(1),
    }


def probed(inputs: Tensor, labels: Any, others: Tensor, truth: Any) -> float:  # noqa: ANN401 - arrays
    """The accuracy of multinomial logistic regression, on others than it is fitted on."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return float(probe.fit(inputs.numpy(), labels).score(others.numpy(), truth))


def small(pixels: Tensor) -> np.ndarray[Any, Any]:
    """Pictures as scikit-learn has them: (N, 64), the means of 4 x 4 pixels, 0 to 16."""
    means = F.avg_pool2d(pixels.mean(1, keepdim=True), SIZE // 8)
    return ((means + 1) * 8).flatten(1).numpy()


if __name__ == "__main__":
    main()
