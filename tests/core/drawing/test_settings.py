"""Laws of guidance and of the other settings: schedules, ranges, and which value wins."""

import math

import pytest
from toklip_core.drawing import Drawing, Guidance


def test_a_cosine_schedule_grows_from_1_towards_the_scale():
    scales = Guidance(scale=5.0, power=2.0).scales(64)
    assert scales[0] == 1 and scales == sorted(scales) and 4.9 < scales[-1] < 5
    assert scales[32] == pytest.approx(1 + 4 * 0.5 * (1 - math.cos(math.pi / 4)))
    assert Guidance(scale=5.0, first=2, last=3).scales(6) == [1, 1, 5, 5, 1, 1]


def test_a_power_of_guidance_that_is_too_large_is_told_the_largest():
    with pytest.raises(ValueError, match=r"got power of guidance = 1e\+300; wanted more than 0, up to 1e\+30$"):
        Guidance(2.0, power=1e300)


def test_what_is_left_open_is_the_models_own_and_else_off():
    own = Drawing(guidance=Guidance(3.0, last=5), top_k=20)
    assert Drawing(temperature=0.5).completed(own) == Drawing(Guidance(3.0, last=5), 0.5, 20)
    given = Drawing(guidance=Guidance(1.0), top_k=0, top_p=0.9)
    assert given.completed(own) == given
    assert Drawing().completed(Drawing()) == Drawing(Guidance(1.0), 1.0, 0, 1.0)


def test_reports_show_the_scale_and_of_a_schedule_what_is_set():
    drawing = Drawing(Guidance(6.0, last=40, power=1.5), top_k=0)
    assert drawing.as_json() == {
        "guidance": 6.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_last": 40, "guidance_power": 1.5
    }  # fmt: skip
    words = "guidance 6, temperature 1, top-k all, top-p 1, guidance-last 40, guidance-power 1.5"
    assert drawing.as_text() == words
    assert Drawing(Guidance(2.0), top_k=7).as_text() == "guidance 2, temperature 1, top-k 7, top-p 1"
