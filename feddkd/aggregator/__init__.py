"""Reduction rules: how the contributions to an exchange are combined into one."""
