"""Reference log-probs on disk: found again only where a forward would give the same numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from tiny import make_model, make_pairs, make_tokenizer, make_trainer, reward, weights_of

from sail.data.encode import encode_rows
from sail.training import ref_cache
from sail.training.ref_cache import read, write

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ROWS = 20


def trainer_of(tmp_path: Path, capsys: Any = None, **options: Any) -> Any:
    chosen: dict[str, Any] = {
        "routes": {"data": {"weight": 1.0}},
        "oracle": None,
        "precompute_ref_log_probs": True,
        "ref_cache": str(tmp_path / "cache"),
        "max_steps": 2,
        "rows": make_pairs(ROWS),
        "per_device_eval_batch_size": 8,
    }
    return make_trainer(tmp_path / "run", **{**chosen, **options})


def run(tmp_path: Path, capsys: Any, **options: Any) -> tuple[int, str, Any]:
    """Train two steps: the forwards of the reference, what was said, the trainer."""
    trainer = trainer_of(tmp_path, **options)
    forwards: list[int] = []
    real = trainer.reference.forward
    trainer.reference.forward = lambda *given: (forwards.append(1), real(*given))[1]
    trainer.train()
    output = capsys.readouterr()
    return len(forwards), output.out + output.err, trainer


ADAPTER = {
    "trainer_options": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")}
}


@pytest.mark.parametrize("options", [{}, ADAPTER], ids=["full", "lora"])
def test_a_second_run_reads_what_the_first_computed(
    tmp_path: Path, capsys: Any, options: dict[str, Any]
) -> None:
    forwards, said, first = run(tmp_path, capsys, **options)
    assert forwards == 3  # 20 rows, 8 at a time
    assert "nothing kept for these weights and rows, so computed; kept in" in said
    forwards, said, second = run(tmp_path, capsys, **options)
    assert forwards == 0
    assert "20 rows: read from" in said
    assert second.reference.remember == first.reference.remember
    one, other = weights_of(first.model), weights_of(second.model)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_by_default_it_is_in_the_runs_own_folder(tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, capsys, ref_cache=None)[0] == 3
    assert len(list((tmp_path / "run" / "ref_cache").iterdir())) == 1
    assert run(tmp_path, capsys, ref_cache=None)[0] == 0


def nudged() -> Any:
    """One value of the last layer changed by one unit in the last place."""
    model = make_model()
    weight = model.model.layers[-1].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))
    return model


def other_rows() -> Any:
    rows = make_pairs(ROWS)
    rows[-1] = {**rows[-1], "chosen": rows[-1]["chosen"] + " w4"}
    return rows


@pytest.mark.parametrize(
    "change",
    [
        lambda: {"model": nudged()},
        lambda: {"model": make_model(torch.float64)},
        lambda: {"model": make_model(rope_parameters={"rope_type": "default", "rope_theta": 500.0})},
        lambda: {"rows": other_rows()},
        lambda: {"rows": make_pairs(ROWS)[::-1]},
        lambda: {"bf16": True},
        lambda: {"per_device_eval_batch_size": 4},
        lambda: {"model": make_model(attn_implementation="eager")},
    ],
    ids=["weight", "type", "configuration", "row", "order", "autocast", "batch size", "attention"],
)
def test_whatever_changes_the_numbers_misses(tmp_path: Path, capsys: Any, change: Any) -> None:
    run(tmp_path, capsys)
    assert run(tmp_path, capsys, **change())[0] >= 3


@pytest.mark.parametrize("change", ["matmul", "kernel", "transformers", "device"])
def test_another_machine_or_switch_misses(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run(tmp_path, capsys)
    try:
        if change == "matmul":
            torch.set_float32_matmul_precision("high")
        elif change == "kernel":
            torch.backends.cuda.enable_flash_sdp(False)
        elif change == "transformers":
            monkeypatch.setattr(transformers, "__version__", "0.1")
        else:
            monkeypatch.setattr(ref_cache, "device_name", lambda device: "another GPU")
        assert run(tmp_path, capsys)[0] >= 3
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_flash_sdp(True)


class State:
    """What bitsandbytes hangs on a weight of 4 bits."""

    def __init__(self, scale: float) -> None:
        self.absmax = torch.tensor([scale])

    def as_dict(self) -> dict[str, Any]:
        return {"absmax": self.absmax, "quant_type": "nf4", "blocksize": 64}


@pytest.mark.parametrize("name", ["quant_state", "SCB"])
def test_scales_of_weights_in_few_bits_are_part_of_the_weights(tmp_path: Path, name: str) -> None:
    """The same packed bytes with another scale are other weights."""
    trainer = trainer_of(tmp_path)
    model, _ = trainer.reference.model()
    weight = model.model.layers[0].mlp.up_proj.weight
    hashes = [ref_cache.weights_hash(trainer.reference)]
    for scale in (1.0, 2.0, 1.0):
        setattr(weight, name, State(scale) if name == "quant_state" else torch.tensor([scale]))
        hashes.append(ref_cache.weights_hash(trainer.reference))
    assert hashes[1] == hashes[3]
    assert len(set(hashes)) == 3


def test_what_does_not_change_them_hits(tmp_path: Path, capsys: Any) -> None:
    run(tmp_path, capsys)
    options = {"routes": {"data": {"weight": 0.5}, "ddp": {"weight": 0.5, "coefficient": 0.2}}, "beta": 0.3}
    forwards, said, _ = run(tmp_path, capsys, seed=11, **options)
    assert forwards == 0
    assert "read from" in said


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "other rows"])
def test_a_harmed_file_is_ignored_and_replaced(tmp_path: Path, capsys: Any, harm: str) -> None:
    _, _, first = run(tmp_path, capsys)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    if harm == "other rows":
        write(file, torch.zeros(ROWS - 1, 2, dtype=torch.float64), {})
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        file.write_bytes({"cut": whole[: len(whole) // 2], "flipped": flipped, "empty": b""}[harm])
    assert read(file, ROWS) is None
    forwards, _, second = run(tmp_path, capsys)
    assert forwards == 3
    assert second.reference.remember == first.reference.remember
    assert read(file, ROWS) is not None


def test_a_writer_that_dies_leaves_nothing_that_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "a.safetensors"

    def die(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write(file, torch.zeros(2, 2, dtype=torch.float64), {})
    assert read(file, 2) is None
    assert not file.exists()


def test_a_folder_that_cannot_be_written_costs_the_file_not_the_run(tmp_path: Path, capsys: Any) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder would be")
    forwards, said, trainer = run(tmp_path, capsys, ref_cache=str(blocked / "cache"))
    assert forwards == 3
    assert "cannot be written" in said
    assert trainer.state.global_step == 2


def test_rows_without_a_pair_are_no_part_of_it(tmp_path: Path, capsys: Any) -> None:
    """Prompt-only rows stand as nan in the file; nothing is remembered of them."""
    rows = [*make_pairs(6), {"prompt": "w9 w8 w7"}]
    options = {
        "rows": rows,
        "routes": {"data": {"weight": 0.7}, "dpr": {"weight": 0.3, "coefficient": 0.3}},
        "oracle": reward,
    }
    _, _, first = run(tmp_path, capsys, **options)
    _, said, second = run(tmp_path, capsys, **options)
    assert "of 6 rows: read from" in said
    assert second.reference.remember == first.reference.remember
    assert set(first.reference.remember) == set(range(6))
    (file,) = (tmp_path / "cache").iterdir()
    assert read(file, 7)[6].isnan().all()


def test_processes_share_the_work(tmp_path: Path, monkeypatch: Any) -> None:
    """Three processes, one after the other: each does as many forwards as every other, together they have every row."""
    trainer = trainer_of(tmp_path)
    dataset = encode_rows(_rows(), make_tokenizer(), max_length=64, max_prompt_length=32)
    whole = ref_cache.computed(trainer.reference, dataset, 3, torch.device("cpu"))
    together: dict[int, tuple[float, float]] = {}
    forwards = []
    real = trainer.reference.forward
    for rank in range(3):
        count: list[int] = []
        trainer.reference.forward = lambda *given, count=count: (count.append(1), real(*given))[1]
        monkeypatch.setattr(ref_cache, "place_among_processes", lambda rank=rank: (rank, 3))
        together.update(ref_cache.computed(trainer.reference, dataset, 3, torch.device("cpu")))
        forwards.append(len(count))
    assert forwards == [3, 3, 3]  # 20 rows make 7 batches
    assert together == whole


def _rows() -> Any:
    from sail.data.sources import load_rows

    return load_rows(make_pairs(ROWS))
