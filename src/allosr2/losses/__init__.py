"""The terms of Algorithm 1 (arXiv:2604.19238), each a function of tensors."""
