"""GGUF files: a whole model in one file, as llama.cpp and ollama use them.

In reading order:
- header: the metadata and the table of tensors, checked against the file's size.
- model: GgufModel, a file seen as a model folder: its config in Hugging Face's shape.
- cutting: how tokenizers cut a text before they merge, by name.
- special_tokens: the ends and the tokens of FIM, named by ids and checked by their texts.
- vocabulary: the tokenizer from the file's tokens and merges.
- tensors: the weights under Hugging Face's names, as floats or in blocks (model.ggml).

Invariants:
- Only tensors loads torch, numpy and the gguf library: the language server uses the rest.
- Nothing is allocated by a number that a file states before it is checked against the file's size.
- An architecture, a type of tensor, a pre-tokenizer or a key that is unknown and changes the result
  is refused by name.
"""
