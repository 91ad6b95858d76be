"""FLUX transformers, VAEs and adapters from diffusers and PEFT, behind plain functions of tensors."""
