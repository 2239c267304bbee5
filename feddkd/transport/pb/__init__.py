"""Generated from protos/ by scripts/proto; do not edit."""
