"""Encode, killed with -9 in the middle and started again: ``kill_often.py PICTURES STORE KILLS``.

The children are forked, so that each is at work at once. Prints the number of parts at each kill, and the last report.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import pyarrow as pa
from toklip_core.config import Compute
from toklip_core.store import EncodeSettings, encode_pictures


def encode(folder, store):
    settings = EncodeSettings(tokenizer="mean-colour-slow", part_rows=64, part_seconds=0.5)
    return encode_pictures([folder], store, settings, compute=Compute(batch_size=16, workers=2))


def parts(store):
    return len(list(Path(store).glob("part-*")))


def kill_in_the_middle(folder, store, wait):
    """Kill as soon as the child has written ``wait`` parts more, at any moment of its work on the next."""
    before = parts(store)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of later Pythons, on a fork beside threads: there are none at work here
        child = os.fork()
    if child == 0:
        encode(folder, store)
        os._exit(0)
    while parts(store) < before + wait:
        time.sleep(0.005)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the encode ended before it was killed"
    time.sleep(random.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the encode ended before it was killed"


if __name__ == "__main__":
    folder, store, kills = sys.argv[1:]
    random.seed(0)
    pa.array([""])  # imports pandas, here for all of the children
    written = []
    for number in range(int(kills)):
        kill_in_the_middle(folder, store, wait=number % 3)
        written.append(parts(store))
    print(json.dumps({"parts": written, "report": encode(folder, store).as_json()}))
