"""MAGI-1 inference and training, independent of ComfyUI."""
