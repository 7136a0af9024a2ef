"""TRL's SFTTrainer trains the model on each kind of data that it knows. `nox -s trl` runs it."""

from importlib.util import find_spec

import datasets
import pytest
import torch
from peft import LoraConfig

from tests.core.conftest import picture
from tests.support.refusals import refusing
from tests.support.small_mllms import MARKED, small_mllm
from tests.support.small_unified import small_unified

pytestmark = [
    pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: nox -s trl"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    # What TRL says of itself, and what it imports.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TURNS = [("what is it ?", "red circle"), ("how many ?", "two"), ("is it red ?", "yes"), ("what colour ?", "blue")] * 2
LORA = LoraConfig(
    r=4, target_modules=r"language_model\..*\.(q_proj|v_proj|up_proj)", modules_to_save=["connector"], lora_alpha=32
)


def turn(role, text):
    return {"role": role, "content": text}


def rows(kind):
    """The same questions, answers and pictures in each form of TRL's."""
    for number, (question, answer) in enumerate(TURNS):
        images = [picture(number % 4)]
        asked, said = [turn("user", question)], [turn("assistant", answer)]
        both = asked + said
        parts = [{"type": "image", "text": None}, {"type": "text", "text": question}]
        yield {
            "messages": {"images": images, "messages": both},
            "image column": {"image": images[0], "messages": both},
            "parts": {
                "images": images,
                "messages": [
                    {"role": "user", "content": parts},
                    {"role": "assistant", "content": [{"type": "text", "text": answer}]},
                ],
            },
            "two pictures": {"images": images * 2, "messages": both},
            "prompt-completion": {"images": images, "prompt": asked, "completion": said},
            "prompt-completion, image column": {"image": images[0], "prompt": asked, "completion": said},
            "text": {"images": images, "text": f"<image> {question} {answer}<|end|>"},
            "no pictures": {"messages": both},
            "drawn": {
                "images": images,
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": question}]},
                    {"role": "assistant", "content": [{"type": "image", "text": None}]},
                ],
            },
        }[kind]


def trainer(folder, kind, *, peft=None, made=None, **options):
    from trl import SFTConfig, SFTTrainer

    model, processor = made or small_mllm(template=MARKED)
    settings = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        max_steps=4,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=False,
    )
    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings | options),
        train_dataset=datasets.Dataset.from_list([*rows(kind)]),
        processing_class=processor,
        peft_config=peft,
    )


CASES = {
    "messages": {},
    "image column": {},
    "parts": {"assistant_only_loss": True},
    "two pictures": {},
    "prompt-completion": {},
    "prompt-completion, image column": {"max_length": None},
    "text": {"remove_unused_columns": False},  # TRL would take away the texts beside pictures
    "no pictures": {"assistant_only_loss": True},
}


WAYS = {"whole": {}, "lora": {"peft": LORA, "learning_rate": 2e-2}, "smooth": {"label_smoothing_factor": 0.1}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", CASES)
def test_each_kind_of_data_is_learnt(kind, way, tmp_path):
    learner = trainer(tmp_path, kind, **CASES[kind], **WAYS[way])
    frozen = {name: weight.clone() for name, weight in learner.model.state_dict().items() if "vision." in name}
    learner.train()
    losses = [entry["loss"] for entry in learner.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.2
    after = learner.model.state_dict()
    assert frozen and all(torch.equal(weight, after[name]) for name, weight in frozen.items())


@pytest.mark.parametrize("kind", ["messages", "prompt-completion"])
def test_the_loss_is_the_models_own(kind, tmp_path):
    learner = trainer(tmp_path, kind)
    batch = learner.data_collator([learner.train_dataset[row] for row in range(3)])
    learner.model.eval()
    with torch.no_grad():
        own = learner.model(**batch).loss
        torch.testing.assert_close(learner.compute_loss(learner.model, dict(batch)), own)


def test_labels_are_what_the_assistant_says_where_that_is_asked_for(tmp_path):
    learner = trainer(tmp_path, "messages", assistant_only_loss=True)
    batch = learner.data_collator([learner.train_dataset[row] for row in range(2)])
    said = [learner.processing_class.decode(row[row != -100]) for row in batch["labels"]]
    assert said == ["red circle <|end|>", "two <|end|>"]
    assert batch["image_ids"].shape == (2, 8, 8, 1)


def test_pictures_that_the_longest_row_would_cut_are_refused(tmp_path):
    learner = trainer(tmp_path, "messages", max_length=40)
    with refusing("truncation to 40 tokens would leave", "raise max_length"):
        learner.train()


def test_drawn_pictures_are_refused_because_their_loss_is_the_models(tmp_path):
    learner = trainer(tmp_path, "drawn", made=small_unified("mean-colour", template=MARKED))
    with refusing("got drawn pictures in training without labels", "let the model compute the loss, as Trainer does"):
        learner.train()
