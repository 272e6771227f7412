"""Models for neighbours: folders that llama.cpp or OpenVINO read. Export only; `gguf_folder` and `openvino_folder` are the two doors."""
