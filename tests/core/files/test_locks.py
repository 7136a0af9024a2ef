"""A lock keeps out the threads of its own process, too, and survives their attempts."""

import os
import subprocess
import sys
import threading

import pytest
from toklip_core.files import held_alone, held_together

from tests.support.processes import is_free, locked_elsewhere

#: A process forks inside a lock. The child must not take it while the parent has it, and may take it after that.
FORK = """
import os, sys
from pathlib import Path
from toklip_core.files import held_alone
path = Path(sys.argv[1])
ended, end = os.pipe()
told, tell = os.pipe()

def taken():
    try:
        with held_alone(path, "held"):
            return "taken"
    except OSError as error:
        return str(error)

with held_alone(path, "held"):
    if not os.fork():
        os.close(end)
        first = taken()
        os.write(tell, b".")
        os.read(ended, 1)
        print(first, taken(), flush=True)
        os._exit(0)
    os.read(told, 1)
os.close(end)
os.wait()
"""


def test_a_file_is_held_once_in_a_process_and_an_attempt_does_not_free_it(tmp_path):
    file, link = tmp_path / "lock", tmp_path / "link"
    link.symlink_to(file)
    with held_alone(file, "it is held"):
        for path in (file, link):
            with pytest.raises(OSError, match="it is held"), held_alone(path, "it is held"):
                pass
        with pytest.raises(OSError, match="it is held"), held_together(file, "it is held"):
            pass
        assert not is_free(file)
    assert is_free(file)
    with held_alone(file, "it is held"):
        pass


def test_of_many_threads_one_at_a_time_is_inside(tmp_path):
    inside, most, refused, taken = [0], [0], [0], [0]
    start, guard = threading.Barrier(8), threading.Lock()

    def take():
        start.wait()
        for _ in range(50):
            try:
                with held_alone(tmp_path / "lock", "held"):
                    with guard:
                        inside[0] += 1
                        taken[0] += 1
                        most[0] = max(most[0], inside[0])
                    threading.Event().wait(1e-4)
                    with guard:
                        inside[0] -= 1
            except OSError:
                with guard:
                    refused[0] += 1

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and taken[0] + refused[0] == 400 and refused[0]


def test_a_shared_lock_lasts_until_its_last_holder_ends(tmp_path):
    file = tmp_path / "lock"
    with held_together(file, "it is held"):
        with held_together(file, "it is held"):
            pass
        assert not is_free(file), "the end of one holder has not freed it"
        with pytest.raises(OSError, match="it is held"), held_alone(file, "it is held"):
            pass
    assert is_free(file)


def test_a_lock_of_another_process_is_refused_and_leaves_nothing_behind(tmp_path):
    file = tmp_path / "lock"
    with locked_elsewhere(file), pytest.raises(OSError, match="held"), held_alone(file, "held"):
        pass
    with held_alone(file, "held"):
        pass


def test_who_waits_to_share_a_file_holds_up_no_other_lock_and_gets_it_at_the_end(tmp_path):
    file, shared = tmp_path / "lock", threading.Event()

    def share():
        with held_together(file, "held"):
            shared.set()

    def lock_another_file():
        with held_alone(tmp_path / "other", "held"):
            pass

    waiting, other = (threading.Thread(target=target, daemon=True) for target in (share, lock_another_file))
    with locked_elsewhere(file):
        waiting.start()
        assert not shared.wait(0.2)
        other.start()
        other.join(5)
        assert not other.is_alive() and not shared.is_set()
    assert shared.wait(5)
    waiting.join(5)
    assert is_free(file)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_process_has_no_lock_of_its_parent_and_may_take_it_later(tmp_path):
    command = [sys.executable, "-c", FORK, str(tmp_path / "lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("held taken\n", "")
