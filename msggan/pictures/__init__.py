"""What a trained generator makes: images, grids, films, ONNX."""
