"""A picture may come in any usual form; nothing is fetched from a network unless that is allowed."""

import base64
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

from tests.core.conftest import picture
from tests.support.refusals import refusing
from tests.support.small_mllms import shared

LEVELS = np.array(picture(0))


def png(image=None) -> bytes:
    file = io.BytesIO()
    (image or picture(0)).save(file, "PNG")
    return file.getvalue()


BASE64 = base64.b64encode(png()).decode()

#: The same picture in each form.
FORMS = {
    "array": LEVELS,
    "array, channels first": LEVELS.transpose(2, 0, 1),
    "array of int64": LEVELS.astype(np.int64),
    "array of floats": LEVELS.astype(np.float32),
    "array from 0 to 1": LEVELS / 255,
    "array of float16 from 0 to 1": (LEVELS / 255).astype(np.float16),
    "tensor": torch.from_numpy(LEVELS),
    "tensor, channels first": torch.from_numpy(LEVELS).permute(2, 0, 1),
    "tensor from 0 to 1": torch.from_numpy(LEVELS).permute(2, 0, 1) / 255,
    "tensor with a gradient": torch.from_numpy(LEVELS).float().requires_grad_(),
    "array with alpha": np.dstack([LEVELS, np.full(LEVELS.shape[:2], 255, np.uint8)]),
    "bytes": png(),
    "bytearray": bytearray(png()),
    "base64": BASE64,
    "base64 in lines": "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
    "data URI": f"data:image/png;base64,{BASE64}",
    "data URI, escaped": f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('/', '%2F')}",
}


@pytest.fixture(scope="module")
def wanted():
    return shared()[1].encode([picture(0)])


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_each_form_has_the_ids_of_the_picture(form, wanted):
    _, processor = shared()
    for images in (FORMS[form], [FORMS[form]], [[FORMS[form]]]):
        assert torch.equal(processor(text="<image>", images=images, return_tensors="pt")["image_ids"], wanted)
    assert torch.equal(processor.encode([FORMS[form]]), wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", ["image", "url", "path", "base64", "image_url", "image_url url"])
def test_a_picture_in_each_form_may_be_a_part_of_a_message(form, key, wanted):
    _, processor = shared()
    part = {"type": "image", key: FORMS[form]}
    if key.startswith("image_url"):
        part = {"type": "image_url", "image_url": {"url": FORMS[form]} if key.endswith(" url") else FORMS[form]}
    conversation = [{"role": "user", "content": [part, {"type": "text", "text": "what ?"}]}]
    options = dict(tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(processor.apply_chat_template(conversation, **options)["image_ids"], wanted)


def test_an_array_of_four_dimensions_is_a_batch():
    _, processor = shared()
    both = [picture(0), picture(1)]
    wanted = processor.encode(both)
    stacked = np.stack([np.array(one) for one in both])
    for images in (stacked, torch.from_numpy(stacked).permute(0, 3, 1, 2), [stacked[:1], stacked[1:]], [[stacked]]):
        found = processor(text="<image> <image>", images=images, return_tensors="pt")
        assert torch.equal(found["image_ids"], wanted)
    assert torch.equal(processor.encode(stacked), wanted)
    each = processor(text=["<image>", "<image>"], images=stacked, return_tensors="pt")
    assert torch.equal(each["image_ids"], wanted)


def test_grey_values_are_a_grey_picture():
    _, processor = shared()
    grey = picture(0).convert("L")
    wanted = processor.encode([grey])
    levels = np.array(grey)
    for values in (levels, levels[None], levels[..., None], torch.from_numpy(levels), levels / 255):
        assert torch.equal(processor.encode([values]), wanted)
    assert torch.equal(processor.encode([levels > 127]), processor.encode([(levels > 127) * np.uint8(255)]))


def test_values_with_alpha_are_seen_on_white():
    _, processor = shared()
    clear = np.dstack([LEVELS, np.zeros(LEVELS.shape[:2], np.uint8)])
    assert torch.equal(processor.encode([clear]), processor.encode([np.full_like(LEVELS, 255)]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LEVELS / 127.5 - 1, r"got values from -1 to .*; wanted integers from 0 to 255, or floats from 0 to 1"),
        (LEVELS.astype(np.uint16) * 257, "wanted integers from 0 to 255"),
        (np.full((4, 5, 3), np.nan), "got values from nan to nan"),
        (np.zeros((5, 6, 7)), r"got values of shape \(5, 6, 7\); wanted 1, 3 or 4 channels"),
        (np.zeros((2, 2, 2, 2, 3)), r"got values of shape \(2, 2, 2, 2, 3\); wanted \(H, W\)"),
        (np.zeros((0, 4, 3)), r"got values of shape \(0, 4, 3\)"),
        (np.array([["a"]]), "got values of <U1; wanted integers or floats"),
        (b"no picture", "no picture in a format"),
        ("nowhere.png", r"\('nowhere.png'\) cannot be read: No such file"),
        ("abcd", r"\('abcd'\) cannot be read: No such file"),  # base64 of three bytes, but no picture
        ("abcd" * 100, r"abcd'\) cannot be read: no picture in a format"),
        ("data:image/png;base64,", "a data URI without data"),
        ("data:image/png;base64,!", "a data URI without data"),
        ({"bytes": b""}, "got a dict; wanted a file, its bytes"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_number(given, message):
    _, processor = shared()
    with pytest.raises(ValueError, match=rf"^picture 2\b.*{message}") as caught:
        processor(text="<image> <image>", images=[picture(0), given])
    assert " cannot be read: " in str(caught.value)


def test_a_long_string_that_is_no_picture_is_not_repeated():
    _, processor = shared()
    with refusing("picture 1", "data:image/png"):
        processor(text="<image>", images="data:image/png;base64," + "QUFB" * 5000)


@pytest.fixture
def address():
    """Where a picture is in a network of this machine; the value is its address and the list of what was asked."""
    asked = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404 if "nothing" in self.path else 200)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.png", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_is_fetched_from_a_network_unless_it_is_asked_for(address, wanted):
    _, processor = shared()
    where, asked = address
    conversation = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": where}}]}]
    options = dict(tokenize=True, return_dict=True, return_tensors="pt")
    message = r"picture 1 \('http://127.*a.png'\) cannot be read: nothing is fetched .*; download it first, or"
    for call in (
        lambda: processor.apply_chat_template(conversation, **options),
        lambda: processor(text="<image>", images=where),
        lambda: processor.encode([where]),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert processor.apply_chat_template(conversation).startswith("<|user|> <image>")
    assert asked == []
    assert torch.equal(processor.apply_chat_template(conversation, fetch=True, **options)["image_ids"], wanted)
    assert torch.equal(processor(text="<image>", images=where, fetch=True, return_tensors="pt")["image_ids"], wanted)
    assert torch.equal(processor.encode([where], fetch=True), wanted)
    assert len(asked) == 3


def test_an_address_that_gives_nothing_is_named(address):
    _, processor = shared()
    with pytest.raises(ValueError, match=r"picture 1 \('http://.*/nothing'\) cannot be read: HTTP Error 404"):
        processor.encode([address[0].replace("a.png", "nothing")], fetch=True)


def test_a_malformed_address_is_named():
    _, processor = shared()
    with refusing("picture 1 ('http://localhost/my cat.png') cannot be read: InvalidURL"):
        processor.encode(["http://localhost/my cat.png"], fetch=True)
