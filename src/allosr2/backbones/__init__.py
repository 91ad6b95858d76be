"""FLUX transformers, VAEs and adapters from diffusers and PEFT, behind plain functions of tensors."""

import logging

# PEFT imports bitsandbytes wherever it is installed; on some CPUs that warns of a kernel that would make
# inference in 4 bits faster, which nothing here does, and the warning would be the first line of every script.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
