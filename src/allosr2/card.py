"""The model card: what a person who finds a model folder has to know, written from what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: allosr2
pipeline_tag: image-to-image
tags: [super-resolution, image-restoration, flow-matching]
---

# One-step x{scale} super-resolution by Allo{{SR}}²

LoRA adapters on the VAE encoder and the transformer of `{base}`, trained by Algorithm 1 of
[arXiv:2604.19238](https://arxiv.org/abs/2604.19238) with the terms and weights listed below.

```python
from allosr2 import Upscaler

upscaler = Upscaler.from_pretrained("path/to/this/folder")
large = upscaler(image)  # a PIL image, an array or a tensor
```

| | |
|---|---|
| base | `{base}`; its license holds for the whole |
| t* (Eq. 6) | {t_star} |
| scale | {scale} |
| degradation preset | {preset} |
| text tokens | {prompt_length} |
| guidance | {guidance} |

## Training

```json
{provenance}
```
"""


def model_card(settings: Mapping[str, Any]) -> str:
    """Markdown with the metadata that model hubs read, from the fields of `allosr2.json`."""
    provenance = json.dumps(settings["provenance"], indent=2)
    guidance = "none" if settings["guidance"] is None else settings["guidance"]
    fields = dict(settings) | {"provenance": provenance, "guidance": guidance}
    return _CARD.format(**fields)
