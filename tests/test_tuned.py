"""Names of fine-tuned models, and where a job's checkpoints are shown."""

import json
from contextlib import closing

import pytest
from click.testing import CliRunner
from test_adapters import saved
from tiny import write_tiny

from nightschool.adapters import list_adapters
from nightschool.cli import main
from nightschool.errors import NotFound
from nightschool.promotion import retire
from nightschool.store import open_store
from nightschool.tuned import adapter_name, is_snapshot, read_tuned_name, snapshot_name, tuned_name

MODEL = "ft-my-sums-Ab12Cd34"
CHECKPOINTS = [f"{MODEL}.step-{step}" for step in (12, 24)]
OTHERS = ["ft-my-sums-Ab12Cd3", "work", "work.step-2"]


@pytest.fixture
def shelf(tmp_path):
    base = write_tiny(tmp_path / "tiny.gguf", "llama")
    for name in (MODEL, *CHECKPOINTS, *OTHERS):
        saved(base, name)


def run(*arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("suffix", ["", "sums", "a.b_c-d", "x.step-3"])
def test_a_name_and_its_adapter_are_made_from_each_other(suffix):
    served, adapter = tuned_name("ember", suffix, "Ab12Cd34"), adapter_name(suffix, "Ab12Cd34")
    assert read_tuned_name(served) == ("ember", adapter)
    assert read_tuned_name(served + ":ckpt-step-24") == ("ember", snapshot_name(adapter, 24))
    assert is_snapshot(snapshot_name(adapter, 24))
    assert not is_snapshot(adapter)
    with pytest.raises(NotFound, match="is no tuned model"):
        read_tuned_name(adapter)


def test_checkpoints_are_not_listed_among_the_adapters(shelf):
    assert [each["name"] for each in json.loads(run("adapters", "--json"))] == sorted([MODEL, *OTHERS])
    assert "ft-my-sums-Ab12Cd34.step" not in run("adapters")
    assert json.loads(run("adapters", "show", CHECKPOINTS[0], "--json"))["name"] == CHECKPOINTS[0]
    missing = CliRunner().invoke(main, ["adapters", "show", "nobody"])
    assert MODEL in missing.output and ".step-12" not in missing.output


def test_a_model_that_is_removed_takes_its_checkpoints_with_it(shelf):
    asked = CliRunner().invoke(main, ["adapters", "remove", MODEL], input="y\n")
    assert asked.exit_code == 0
    assert "and its 2 checkpoints" in asked.output
    assert [each.name for each in list_adapters()] == sorted(OTHERS)
    run("adapters", "remove", "work", "--yes")
    assert "work.step-2" in [each.name for each in list_adapters()]  # that is somebody's own name


def test_the_servers_way_of_removing_takes_them_too_and_one_checkpoint_goes_alone(shelf):
    with closing(open_store()) as db:
        retire(db, CHECKPOINTS[1])
        assert [each.name for each in list_adapters()] == sorted([MODEL, CHECKPOINTS[0], *OTHERS])
        retire(db, MODEL)
    assert [each.name for each in list_adapters()] == sorted(OTHERS)
