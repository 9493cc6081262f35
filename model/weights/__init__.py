"""Model folders: finding one, reading its files, and filling a decoder with its weights.

In reading order:
- folder: find_path (a name -> a path), find_model and ModelFolder, as much of a model as is known
  without torch.
- preferences: fimls.json, the settings that were measured to suit one model.
- files: ModelFiles, what a folder and a GGUF file have in common.
- tensors: the weights of a folder's safetensors.
- gguf/: a GGUF file seen as a model folder.
- checkpoint: fills a decoder with the tensors of either.

Invariants:
- Weights come from safetensors and GGUF only. Pickled weights and code in a folder are never
  opened.
- files, folder, preferences and gguf/model load no torch: the language server uses them.
- Every tensor of a checkpoint is used once, or the error names it.
- Nothing here knows a device or how its matrices are multiplied: model.loading chooses that.
"""
