"""What `train_mini.py` leaves: the finished model, and one archive of it with logs and validation sheets."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mini_plan import Plan

from allosr2.card import model_card
from allosr2.licenses import OWN
from allosr2.model import CARD_NAME, model_folder
from allosr2.model_config import CONFIG_NAME, ModelConfig
from allosr2.storage import save_text
from allosr2.training.config import TrainingConfig

NAME = "mini.tar"


def save_model(
    output: Path,
    configs: Mapping[str, TrainingConfig],
    plan: Plan,
    initial: str | None,
    codec: str | None,
) -> None:
    """Write `output/model`: the last stage's, with what each stage took in config and card. Raises OSError."""
    model, partial = output / "model", output / ".model"
    if model.is_dir():
        return
    _remove(partial)
    *_, last = configs
    shutil.copytree(output / last / "model", partial)
    trained: dict[str, Any] = {
        name: {
            "recipe": config.run.recipe,
            "steps": plan.stages[name].steps,
            "batch_size": plan.stages[name].batch_size,
            "crop": config.images.crop,
            "minutes": round(plan.stages[name].seconds / 60, 1),
            "machines": plan.stages[name].machines,
        }
        for name, config in configs.items()
    }
    former = {"initial": initial, "codec": codec}
    added = {name: None if model is None else Path(model).name for name, model in former.items()}
    added |= {"stages": trained}
    # a base that was trained from random weights has nobody else's license
    source = initial or codec
    origin = OWN if source is None else ModelConfig.read(model_folder(source)).origin
    config = ModelConfig.read(partial)
    settings = asdict(replace(config, origin=origin, provenance=config.provenance | added))
    save_text(partial / CONFIG_NAME, json.dumps(settings, indent=2) + "\n")
    save_text(partial / CARD_NAME, model_card(settings))
    partial.rename(model)


def save_archive(output: Path, stages: Mapping[str, Any]) -> Path:
    """Write `output/mini.tar`, uncompressed, as weights do not shrink; returns it. Raises OSError."""
    archive, partial = output / NAME, output / f".{NAME}"
    if archive.exists():
        return archive
    records = [
        path
        for name in stages
        for pattern in ("log.jsonl", "validation.jsonl", "sheets/*.png")
        for path in sorted((output / name).glob(pattern))
    ]
    with tarfile.open(partial, "w") as tar:
        for path in (output / "model", *records):
            tar.add(path, Path("mini", path.relative_to(output)), filter=_without_owner)
    return partial.rename(archive)


def save_parts(archive: Path, mib: int) -> list[Path]:
    """Cut an archive into `parts/mini.tar.000` and so on, of at most so many MiB each. Raises OSError."""
    folder, partial = archive.parent / "parts", archive.parent / ".parts"
    _remove(partial)
    partial.mkdir()
    with archive.open("rb") as stream:
        pieces = iter(lambda: stream.read(mib * 2**20), b"")
        for number, piece in enumerate(pieces):
            (partial / f"{archive.name}.{number:03}").write_bytes(piece)
    _remove(folder)
    partial.rename(folder)
    return sorted(folder.iterdir())


def _remove(folder: Path) -> None:
    """Remove a folder, such as a killed process left it, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def _without_owner(info: tarfile.TarInfo) -> tarfile.TarInfo:
    return info.replace(uid=0, gid=0, uname="", gname="", deep=False)
