"""One file for each model family, with everything in which it differs from the others.

In reading order:
- family: the type Family, which says what such a file states.
- hf_config: reads the keys of config.json.
- weight_table: where in our decoder each tensor of a checkpoint goes.
- llama, qwen2, stablelm, starcoder2: the families.
- registry: FAMILIES, all of them by model_type, found by looking through this folder.

A new family is one new file here. Nothing outside of this folder names a family, and nothing here
loads torch: the language server reads the registry, too.
"""
