"""Ray, Spark and `datasets` write the store of the built-in engine, row for row. `nox -s engines` runs this."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import Dataset
from toklip_core.cli import cli
from toklip_core.config import Compute
from toklip_core.pictures import entries, find_pictures
from toklip_core.store import BatchEncoder, EncodeSettings, TokenStore, ray_engine

from tests.support.encoding import encode_with
from tests.support.engines import built_in_store, refuse_other_rows, write_pictures
from tests.support.refusals import refusing

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: nox -s engines")
needs_spark = pytest.mark.skipif(
    find_spec("pyspark") is None or shutil.which("java") is None,
    reason="pyspark or Java is not installed: nox -s engines",
)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of Ray and Spark, about themselves

SETTINGS = EncodeSettings(tokenizer="mean-colour-slow")


@pytest.fixture
def pictures(toy, tmp_path, monkeypatch):
    """2,000 pictures with 20 broken ones, as files in tmp_path and as a table; other processes find the tokenizers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(toy))
    return write_pictures(Path("pictures"), count=2000, broken=20)


@pytest.fixture
def ray(pictures):
    """A Ray cluster of two cores, whose workers find the pictures and the tokenizers."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()
    gc.collect()  # Ray does not wait for its processes; here the warning of that is not an error


def expected(**options):
    return built_in_store(tokenizer="mean-colour-slow", **options)


def actors(name):
    """The processes of Ray that run an actor."""
    lines = {int(path.parent.name): path for path in Path("/proc").glob("[0-9]*/cmdline")}
    found = []
    for pid, path in lines.items():
        try:
            if path.read_bytes().startswith(b"ray::" + name):
                found.append(pid)
        except OSError:  # it ended
            continue
    return found


@needs_ray
def test_ray_writes_the_built_in_engines_store_though_a_worker_is_killed(ray, pictures):
    killed = []

    def stop():  # called after each batch: the actors are at work
        if not killed and len(working := actors(b"_Actor")) == 2:
            os.kill(working[0], signal.SIGKILL)
            killed.append(working[0])
        return False

    report = encode_with(["pictures"], "store", tokenizer="mean-colour-slow", engine="ray", batch_size=8, stop=stop)
    assert (report.pictures, report.skipped, report.unreadable) == (1980, 0, 20) and killed
    refuse_other_rows(TokenStore("store"), expected())


@needs_ray
def test_a_share_is_tried_four_times_and_its_pictures_are_named(ray, pictures):
    killed = set()

    def stop():
        for actor in {*actors(b"_Actor.encode")} - killed:  # it encodes a share
            os.kill(actor, signal.SIGKILL)
            killed.add(actor)
        return False

    how = {"tokenizer": "mean-colour-slow", "engine": "ray", "workers": 1, "batch_size": 8, "stop": stop}
    with refusing(
        "Ray gave up an actor while it encoded the share from pictures/0000.png to pictures/0063.png; what was encoded "
        "is kept: run it again, without Ray if a picture kills it, which the built-in engine names",
        kind=OSError,
    ):
        encode_with(["pictures"], "store", **how)
    assert len(killed) == 4
    report = encode_with(["pictures"], "store", **how | {"stop": None})
    assert report.pictures + report.skipped == 1980 and report.skipped < 64
    refuse_other_rows(TokenStore("store"), expected())


@needs_ray
def test_ray_skips_what_is_there(ray, pictures):
    how = {"tokenizer": "mean-colour-slow", "engine": "ray"}
    first_part = {"part_rows": 8, "stop": lambda: any(Path("store").glob("part-*"))}
    stopped = encode_with(["pictures"], "store", batch_size=8, **how, **first_part)
    assert stopped.stopped and stopped.pictures == len(TokenStore("store")) < 100
    report = encode_with(["pictures"], "store", **how)
    assert (report.pictures, report.skipped) == (1980 - stopped.pictures, stopped.pictures)
    assert report.unreadable == 20
    refuse_other_rows(TokenStore("store"), expected())


@needs_ray
def test_it_is_said_after_a_while_that_no_actor_has_started_and_the_first_request_to_stop_ends_the_wait(
    ray, pictures, monkeypatch, caplog
):
    monkeypatch.setattr(ray_engine, "_PATIENCE", 2)

    @ray.remote(num_cpus=2)
    class Tenant:
        def moves_in(self):
            return True

    tenant = Tenant.remote()
    assert ray.get(tenant.moves_in.remote())
    said = "no actor has started yet; the Ray cluster may have no room; waiting (Ctrl-C ends)"
    how = {"tokenizer": "mean-colour", "engine": "ray", "stop": lambda: said in caplog.messages}
    report = encode_with(["pictures"], "store", **how)
    assert report.stopped and report.pictures == 0 and caplog.messages == [said]


@needs_ray
def test_ray_reads_folders_tars_parquet_and_scenes(ray, pictures):
    files = sorted(Path("pictures").glob("*"))
    with tarfile.open("pictures.tar", "w") as tar:
        for path in files[:300]:
            tar.add(path, path.name)
    pq.write_table(pictures.select(["image", "caption"]).slice(500, 300), "rows.parquet", row_group_size=50)
    few = Path("few")
    few.mkdir()
    for path in files[1000:1100]:
        shutil.copy(path, few)
    inputs = ["few", "pictures.tar", "rows.parquet", "scenes:train?count=20&size=32"]
    for engine in ("built-in", "ray"):
        encode_with(inputs, engine, tokenizer="mean-colour", engine=engine, batch_size=16, shuffle=True)
    refuse_other_rows(TokenStore("ray"), TokenStore("built-in"))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_shares_of_actors_have_every_picture_once(tmp_path, monkeypatch, workers):
    monkeypatch.chdir(tmp_path)
    rows = write_pictures(Path("pictures"), count=23, broken=1)
    with tarfile.open("pictures.tar", "w") as tar:
        tar.add("pictures")
    pq.write_table(rows.select(["image"]), "rows.parquet")
    sources = find_pictures(["pictures", "pictures.tar", "rows.parquet"])
    keys = [entry.key for share in ray_engine._shares(sources, workers, 7) for entry in entries(share)]
    assert sorted(keys) == sorted(entry.key for entry in entries(sources)) and len(keys) == 69


@pytest.mark.parametrize(("given", "address"), [(None, "local"), ("", "local"), ("auto", "auto")])
def test_a_cluster_that_is_not_named_is_left_alone(monkeypatch, given, address):
    calls = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda address, **options: calls.append(address),
        shutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setenv("RAY_ADDRESS", given or "")
    if given is None:
        monkeypatch.delenv("RAY_ADDRESS")
    with ray_engine._cluster(ray) as started:
        assert started == (address == "local")
    assert calls == [address, "shutdown"]


def test_a_cluster_that_cannot_start_is_one_line(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def init(*given, **named):
        raise Exception("timed out\nwhile the raylet started")  # as Ray does

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    with pytest.raises(OSError, match=r"^the Ray cluster \(local\) did not start.*timed out while") as caught:
        with ray_engine._cluster(ray):
            pass
    assert "\n" not in str(caught.value)


@needs_ray
def test_the_command_starts_a_cluster_of_its_own_and_ends_it(pictures):
    for path in sorted(Path("pictures").glob("*"))[40:]:
        path.unlink()
    command = [sys.executable, "-m", "toklip_core", "encode", "pictures", "--tokenizer", "mean-colour"]
    done = subprocess.run(
        [*command, "--out", "store", "--engine", "ray"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "pictures encoded into store in " in done.stderr
    refuse_other_rows(TokenStore("store"), built_in_store())
    deadline = time.monotonic() + 60
    while actors(b"_Actor"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@needs_ray
def test_what_goes_wrong_in_an_actor_is_one_line(ray):
    with refusing("got the device 'cuda:7'"):
        encode_with(["pictures"], "store", tokenizer="mean-colour", engine="ray", device="cuda:7")
    with refusing("got 2 processes and --engine ray; start one process"):
        encode_with(["pictures"], "store", tokenizer="mean-colour", engine="ray", rank=0, world_size=2)


@needs_ray
def test_ray_data_maps_batches(ray, pictures):
    rows = ray.data.from_arrow(pictures).repartition(20)
    encoded = rows.map_batches(
        BatchEncoder,
        fn_constructor_args=(SETTINGS,),
        batch_size=32,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=0.5,  # a core of the two is left for the other tasks
    )
    encoded.write_parquet("rows")
    refuse_other_rows(TokenStore.adopt("rows", "store", BatchEncoder(SETTINGS).info), expected())


@needs_spark
def test_spark_maps_data_frames_though_a_worker_is_killed_and_skips_what_is_there(pictures):
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col

    encoder, killed = BatchEncoder(SETTINGS), Path("killed").absolute()

    def encoded(frames):
        for number, frame in enumerate(frames):
            if number == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield encoder(frame)

    # Four attempts for a task, as on a cluster; locally Spark makes one.
    spark = SparkSession.builder.master("local[2,4]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 100)
        pq.write_table(pictures, "pictures.parquet")
        columns = "key string, ids array<int>, height int, width int, caption string, error string"
        rows = spark.read.parquet("pictures.parquet").repartition(4)
        rows.where("key < 'pictures/1000'").mapInPandas(encoded, columns).write.parquet("first")
        store = TokenStore.adopt("first", "store", encoder.info)
        assert len(store) == 990 and killed.exists()
        rest = rows.where(~col("key").isin(list(store.keys())))
        rest.mapInPandas(encoded, columns).write.parquet("rest")
    finally:
        spark.stop()
    assert sum(len(file) for file in map(pq.read_table, Path("rest").glob("*.parquet"))) == 1010
    refuse_other_rows(TokenStore.adopt("rest", "store", encoder.info), expected())


def test_datasets_map_by_processes_goes_on_after_a_kill_and_skips_what_is_there(pictures):
    encoder, killed = BatchEncoder(SETTINGS, Compute(batch_size=16)), Path("killed").absolute()

    def encode(batch):
        if batch["key"][0] == "pictures/0800.png" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return encoder(batch)

    def write(rows, folder):
        encoded = rows.map(encode, batched=True, batch_size=100, num_proc=2, remove_columns=rows.column_names)
        Path(folder).mkdir()
        encoded.to_parquet(f"{folder}/rows.parquet")

    rows = Dataset.from_dict(pictures.to_pydict())
    with pytest.raises(RuntimeError, match="died"):
        write(rows, "first")
    write(rows.select(range(1000)), "first")
    store = TokenStore.adopt("first", "store", encoder.info)
    assert len(store) == 990 and killed.exists()
    there = {*store.keys()}
    rest = rows.filter(lambda row: row["key"] not in there)
    assert len(rest) == 1010
    write(rest, "rest")
    refuse_other_rows(TokenStore.adopt("rest", "store", encoder.info), expected())


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_what_to_install(toy, pictures):
    result = CliRunner().invoke(cli, ["encode", "pictures", "--out", "store", "--engine", "ray"])
    assert result.exit_code == 1 and "Ray is not installed: pip install 'toklip-core[ray]'" in result.stderr
