"""A shell that completes `toklip`: names of tokenizers and models, and files."""

import pytest
from click.shell_completion import ShellComplete
from toklip_core.cli import cli


@pytest.mark.parametrize(
    ("words", "begun", "names"),
    [
        (["encode", "--tokenizer"], "ibq-102", {"ibq-1024", "ibq-1024-raw"}),
        (["evaluate", "reconstruction", "--tokenizer"], "vqgan-t", {"vqgan-tiny"}),
        (["search", "--model"], "toklip-s", {"toklip-s-256"}),
        (["encode", "--model"], "toklip-b", {"toklip-b-256"}),
        (["convert"], "toklip-l", {"toklip-l-384"}),
        (["ask", "--model"], "", {"toklip-mllm-tiny", "toklip-uni-tiny"}),
        (["evaluate", "vqa", "--model"], "toklip", {"toklip-mllm-tiny", "toklip-uni-tiny"}),
        (["generate", "--model"], "toklip-", {"toklip-gen-tiny", "toklip-uni-tiny"}),
        (["evaluate", "generation", "--generator"], "llamagen-t2i", {"llamagen-t2i-xl-256", "llamagen-t2i-xl-512"}),
    ],
)
def test_a_shell_completes_names_of_tokenizers_and_models(words, begun, names):
    found = ShellComplete(cli, {}, "toklip", "_TOKLIP_COMPLETE").get_completions(words, begun)
    assert {item.value for item in found if item.type == "plain"} == names


def test_a_shell_completes_files_where_no_name_begins_so():
    found = ShellComplete(cli, {}, "toklip", "_TOKLIP_COMPLETE").get_completions(["search", "--model"], "runs/")
    assert [(item.value, item.type) for item in found] == [("runs/", "file")]
