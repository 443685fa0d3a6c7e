"""Which files of a local copy are read, the hub's own loader, and its absence; names and values of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import named_sets
import pytest
from named_sets import ROWS, WRITERS
from reading_sets import read, source, whole

from sail.data.named.catalogue import NAMED, known_as, nearest
from sail.data.sources import load_rows
from sail.data_config import DataSource, parse_source
from sail.errors import ConfigError, DataError, MissingExtraError

# --- Copies and the hub --------------------------------------------------------------------------------------


def test_a_single_file_is_a_copy(copies: Path) -> None:
    """Of a split if its name says so, else of the training rows."""
    path = copies / "hh-rlhf" / "helpful-base" / "test.jsonl.gz"
    assert len(load_rows(source("hh-rlhf", copies, path=str(path), split="test")).rows) == 4
    with pytest.raises(DataError, match=r"no file of the split train in .*test\.jsonl\.gz"):
        load_rows(source("hh-rlhf", copies, path=str(path), split="train"))
    alone = copies / "webgpt-comparisons" / "comparisons.jsonl"
    assert len(load_rows(source("webgpt-comparisons", copies, path=str(alone), split="all")).rows) == 36


def test_a_copy_without_the_split_says_what_is_there(copies: Path, tmp_path: Path) -> None:
    named_sets.jsonl(tmp_path / "train.jsonl", [named_sets.pku_row(n) for n in range(ROWS)])
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "test.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"no file of the split test .*\(found: train\.jsonl\).*held_out: 0\.05"
    ):
        load_rows(source("pku-saferlhf", copies, path=str(tmp_path), split="test"))
    parts = [
        load_rows(
            source("pku-saferlhf", copies, path=str(tmp_path), split=split, variant="10K", held_out=0.2)
        )
        for split in ("train", "test")
    ]
    assert sum(len(part.rows) for part in parts) == ROWS
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        load_rows(source("pku-saferlhf", copies, path=str(tmp_path / "nowhere")))


def test_a_pointer_of_git_lfs_is_no_data(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"pointer of git-lfs.*git lfs pull"):
        load_rows(str(path))


SCRIPTS = ("summarize-from-feedback", "webgpt-comparisons")
"""Sets that the hub keeps as a script, with a conversion of its own."""


@pytest.mark.parametrize("name", WRITERS)
def test_the_hubs_loader_gives_the_same_rows(
    name: str, copies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real datasets.load_dataset with the hub's id replaced by our folder: same splits and rows as by our own reader."""
    datasets = pytest.importorskip("datasets")
    real = datasets.load_dataset

    def local(hub: str, config: Any = None, **options: Any) -> Any:
        assert hub == next(iter(NAMED[name].variants.values())).hub
        if name in SCRIPTS and options.get("revision") is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
        return real(str(folder), config, cache_dir=str(tmp_path), **options)

    folder = copies / name
    if name == "webgpt-comparisons":  # the hub's own conversion has other folders than the original
        folder = tmp_path / "webgpt"
        named_sets.parquet(folder / "default" / "train" / "0000.parquet", named_sets.webgpt_rows())
    monkeypatch.setattr(datasets, "load_dataset", local)
    variant = {"hh-rlhf": "helpful-base"}.get(name)
    keys = {"split": whole(name), "variant": variant}
    made = parse_source({"name": name, **keys})
    assert isinstance(made, DataSource)
    of_hub, of_copy = load_rows(made), read(name, copies, **keys)
    assert [(row.prompt, row.chosen, row.rejected) for row in of_hub.rows] == [
        (row.prompt, row.chosen, row.rejected) for row in of_copy.rows
    ]
    assert of_hub.rows[0].origin.startswith(made.form.hub if made.form else "")


@pytest.mark.parametrize(
    ("value", "calls"),
    [
        (
            "pku-saferlhf-10k",
            [("PKU-Alignment/PKU-SafeRLHF-10K", None, {"data_dir": None, "split": "train"})],
        ),
        (
            {"name": "pku-saferlhf", "variant": "alpaca-7b", "split": "test"},
            [("PKU-Alignment/PKU-SafeRLHF", "alpaca-7b", {"data_dir": None, "split": "test"})],
        ),
        (
            {"name": "hh-rlhf", "variant": "helpful-online"},
            [("Anthropic/hh-rlhf", None, {"data_dir": "helpful-online", "split": "train"})],
        ),
        (
            {"name": "summarize-from-feedback", "split": "test"},
            [
                ("openai/summarize_from_feedback", "comparisons", {"split": "validation"}),
                (
                    "openai/summarize_from_feedback",
                    None,
                    {"data_dir": "comparisons", "split": "validation", "revision": "refs/convert/parquet"},
                ),
            ],
        ),
    ],
)
def test_what_the_hubs_loader_is_asked_for(
    value: Any, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments that the library documents: a configuration or a folder, never both."""
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load(hub: str, config: Any = None, **options: Any) -> Any:
        asked.append((hub, config, options))
        if config == "comparisons":
            raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
        return []

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="there is not one row in it"):
        load_rows(parse_source(value))  # type: ignore[arg-type]
    assert asked == calls


@pytest.mark.parametrize(
    ("error", "asked_twice"),
    [
        (RuntimeError("Dataset scripts are no longer supported, but found it.py"), True),
        (
            ValueError(
                "Loading it requires you to execute the dataset script in that repo on your local machine."
            ),
            True,
        ),
        (
            ValueError("The repository contains custom code. Pass the argument `trust_remote_code=True`."),
            True,
        ),
        (ValueError("BuilderConfig 'comparisons' not found. Available: ['default']"), False),
        (ConnectionError("no script of the hub could be reached"), False),
    ],
    ids=["now", "before", "long before", "another cause", "no network"],
)
def test_a_script_is_known_by_what_each_version_says(
    error: Exception, asked_twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages of versions 4, 3 and 2; anything else is no reason to ask again."""
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load(hub: str, config: Any = None, **options: Any) -> Any:
        asked.append(options.get("revision"))
        if config == "comparisons":
            raise error
        return []

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DataError, match="not one row in it" if asked_twice else "could not be loaded from the hub"
    ):
        load_rows(parse_source("summarize-from-feedback"))  # type: ignore[arg-type]
    assert asked == [None, "refs/convert/parquet"][: 1 + asked_twice]


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE=1, so this is the real refusal."""
    made = parse_source("summarize-from-feedback")
    assert isinstance(made, DataSource)
    with pytest.raises(DataError) as caught:
        load_rows(made)
    said = str(caught.value)
    assert "could not be loaded from the hub as openai/summarize_from_feedback" in said
    assert (
        "hf download openai/summarize_from_feedback --repo-type dataset --revision refs/convert/parquet"
        in said
    )
    assert "path: DIR" in said


def test_without_datasets_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"sail-align\[sft\]\", or give path"):
        load_rows(parse_source("hh-rlhf"))  # type: ignore[arg-type]


# --- What a run file may say ---------------------------------------------------------------------------------


def test_names_and_other_names() -> None:
    assert known_as("PKU-Alignment/PKU-SafeRLHF-10K") == ("pku-saferlhf", "10K")
    assert known_as("pku-saferlhf-30k") == ("pku-saferlhf", "30K")
    assert known_as("Anthropic/hh-rlhf") == ("hh-rlhf", "all")
    assert known_as("openai/summarize_from_feedback") == ("summarize-from-feedback", "comparisons")
    assert known_as("nothing") is None
    assert nearest("hh-rlfh") == "hh-rlhf"
    assert nearest("ultrafeedback_binarized") is not None


@pytest.mark.parametrize(
    ("value", "held_out", "expected"),
    [
        ("pairs.jsonl", False, "pairs.jsonl"),
        ("hh-rlhf", False, DataSource(name="hh-rlhf", split="train")),
        ("hh-rlhf", True, DataSource(name="hh-rlhf", split="test")),
        ("pku-saferlhf-10k", True, DataSource(name="pku-saferlhf", variant="10K", split="test")),
        ({"name": "hh-rlhf", "split": "all"}, True, DataSource(name="hh-rlhf", split="all")),
        ({"path": "p.jsonl", "limit": 3}, False, DataSource(path="p.jsonl", limit=3)),
        (None, False, None),
    ],
)
def test_values_of_a_run_file(value: Any, held_out: bool, expected: Any) -> None:
    assert parse_source(value, held_out=held_out) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "must be a path, the name of a data set, or keys"),
        ("hh-rlfh", "there is no file and no data set 'hh-rlfh'; did you mean hh-rlhf?"),
        (
            {"name": "webgtp-comparisons"},
            "no data set 'webgtp-comparisons'; did you mean webgpt-comparisons?",
        ),
        ({"name": "zzz"}, "the names are pku-saferlhf, ultrafeedback"),
        ({}, "give name (one of pku-saferlhf"),
        ({"nmae": "hh-rlhf"}, "nmae: there is no such key. Did you mean name?"),
        ({"name": "hh-rlhf", "limit": 0}, "limit must be above 0; it is 0"),
        ({"name": "hh-rlhf", "label": "safe"}, "hh-rlhf has no label to choose: leave it out"),
        (
            {"name": "pku-saferlhf", "label": "safer"},
            "one of helpful, safe; it is 'safer'. Did you mean safe?",
        ),
        ({"name": "pku-saferlhf", "variant": "20K"}, "variant of pku-saferlhf is one of full, 10K, 30K"),
        ({"name": "pku-saferlhf", "min_gap": 1}, "has no scores, so min_gap says nothing"),
        ({"name": "hh-rlhf", "split": "dev"}, "split of hh-rlhf is one of train, test, all; it is 'dev'"),
        ({"name": "hh-rlhf", "shape": "html"}, "shape of hh-rlhf is one of chat, text"),
        ({"name": "hh-rlhf", "held_out": 1}, "held_out must be below 1"),
        ({"path": "p.jsonl", "label": "safe"}, "label belongs to a public set: give name too"),
        ({"path": "p.jsonl", "split": "dev"}, "split of a file is train, test"),
        ({"path": "p.jsonl", "held_out": 0.1}, "say which part"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    value: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parse_source(value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_name_of_a_split_serves_too(copies: Path) -> None:
    one, other = (read("ultrafeedback-binarized", copies, split=split) for split in ("test", "test_prefs"))
    assert one.rows == other.rows
    assert source("hh-rlhf", copies, split="test", held_out=0.1).hub_splits == ("train",)
