"""Serving: the engine that runs a version in ONNX Runtime, and the HTTP interface on the Unix socket."""
