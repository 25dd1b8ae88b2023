"""Encoders as files that others read: weights, PyTorch, ONNX and StableHLO."""
