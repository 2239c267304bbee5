"""Reduction rules: how the contributions of one exchange become one."""
