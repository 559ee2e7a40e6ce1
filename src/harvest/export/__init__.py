"""A model in other formats: for sentence-transformers, transformers and MTEB, and as ONNX for processes without PyTorch."""
