"""PyTorch's figures beside a GPU engine's, taken in a process of their own.

PyTorch's compiler may crash, hang, or take all memory, and what it leaves in a process may disturb the
engine: so neither shares a process with the other. They exchange two files.
"""
