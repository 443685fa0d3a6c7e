"""The configurations in recipes/accelerate are read by this accelerate's own machinery, and mean what docs/scale.md says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name: str) -> None:
    """An unknown key would raise here."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 8


def launched(name: str) -> Any:
    """The launcher's arguments with the file merged in, as `accelerate launch` does before it starts processes."""
    given = ["--config_file", str(FOLDER / f"{name}.yaml"), "--num_processes", "2", "train.py"]
    args, config, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(given))
    assert config is not None
    return args


def test_fsdp2_reaches_the_processes() -> None:
    found = prepare_multi_gpu_env(launched("fsdp2"))
    assert found["ACCELERATE_USE_FSDP"] == "true"
    assert found["FSDP_VERSION"] == "2"
    assert found["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    assert found["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert found["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_reaches_the_processes(stage: int) -> None:
    args = launched(f"zero{stage}")
    # The launcher sets it only where DeepSpeed is installed.
    args.deepspeed_fields_from_accelerate_config = getattr(
        args, "deepspeed_fields_from_accelerate_config", ""
    )
    _, found = prepare_deepspeed_cmd_env(args)
    assert found["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert found["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert found["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"
    if stage == 3:
        assert found["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
