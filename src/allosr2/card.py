"""The model card: what a person who finds a model folder has to know, written from what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from allosr2.licenses import OWN, STANDARD, describe_license, license_of

_CARD = """---
{metadata}
---

# One-step x{scale} super-resolution by Allo{{SR}}²

LoRA adapters on the VAE encoder and the transformer of `{base}`, trained by Algorithm 1 of
[arXiv:2604.19238](https://arxiv.org/abs/2604.19238) with the terms and weights listed below.

```python
from allosr2 import Upscaler

upscaler = Upscaler.from_pretrained("path/to/this/folder")  # or its name on the hub
large = upscaler(image)  # a PIL image, an array or a tensor
```

| | |
|---|---|
| base | `{base}` |
| license of the base, which holds for the whole | {license} |
| t* (Eq. 6) | {t_star} |
| scale | {scale} |
| degradation preset | {preset} |
| text tokens | {prompt_length} |
| guidance | {guidance} |
| recipe | {recipe} |
| training data | {data} |

## Metrics

{metrics}

## Training

```json
{provenance}
```
"""


def model_card(settings: Mapping[str, Any]) -> str:
    """Markdown with the metadata that model hubs read, from the fields of `allosr2.json`."""
    provenance: Mapping[str, Any] = settings["provenance"]
    training = provenance.get("training")
    base = settings["origin"] or settings["base"]
    if PurePath(base).is_absolute():  # the folder's place on one machine says nothing to others
        base = PurePath(base).name
    return _CARD.format(
        **{key: settings[key] for key in ("t_star", "scale", "preset", "prompt_length")},
        metadata=_metadata(base, settings),
        base=base,
        license=describe_license(base),
        guidance="none" if settings["guidance"] is None else settings["guidance"],
        recipe=training.get("run.recipe", "not recorded")
        if isinstance(training, dict)
        else "not recorded",
        data=_data(provenance),
        metrics=_metrics(settings["metrics"]),
        provenance=json.dumps(provenance, indent=2),
    )


def _metadata(base: str, settings: Mapping[str, Any]) -> str:
    """The front matter. A base without an owner on the hub is not linked."""
    known = license_of(base)
    licensed: dict[str, Any] = {}
    if known is not None:
        licensed["license"] = known.identifier
        if known.identifier not in STANDARD:
            licensed = {
                "license": "other",
                "license_name": known.identifier,
                "license_link": known.link,
            }
    data = ModelCardData(
        library_name="allosr2",
        pipeline_tag="image-to-image",
        tags=["super-resolution", "image-restoration", "flow-matching", "lora"],
        base_model=base if "/" in base and base != OWN else None,
        model_name="allosr2",
        eval_results=[
            EvalResult(
                task_type="image-to-image",
                dataset_type=metric["dataset"].lower().replace(" ", "-"),
                dataset_name=metric["dataset"],
                metric_type=metric["metric"],
                metric_value=metric["value"],
            )
            for metric in settings["metrics"]
        ]
        or None,
        **licensed,
    )
    return data.to_yaml()


def _data(provenance: Mapping[str, Any]) -> str:
    data = provenance.get("data")
    if not data:
        return "not recorded"
    sources = ", ".join(f"`{source}`" for source in data["sources"])
    photographs = f"{data['photographs']} photographs ({sources}), " if sources else ""
    return f"{photographs}{data['drawn']:.0%} drawn images"


def _metrics(metrics: list[dict[str, Any]]) -> str:
    if not metrics:
        return "None were recorded."
    rows = [f"| {m['dataset']} | {m['metric']} | {m['value']:g} | {m['by']} |" for m in metrics]
    return "\n".join(["| data | metric | value | measured by |", "|---|---|---|---|", *rows])
