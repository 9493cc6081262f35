"""One file for each model family, with everything in which it differs from the others.

In reading order:
- family: the type Family, which says what such a file states.
- hf_config: reads the keys of config.json.
- weight_table: where in our decoder each tensor of a checkpoint goes.
- native/: the families, one file each.
- registry: FAMILIES, all of them by model_type, found by looking through native/.

A new family is one new file in native/, named after its model_type.
tests/model/families/test_families.py checks that, and wants a toy config of the family in
tests/conftest.py. A family that differs in a new way adds a field to DecoderConfig, which
decoder/layers.py and the steps in cpu/ (torch_step, blocks) and gpu/
(cuda_graphs) have to follow, and export/gguf.py.

Nothing else in model/ names a family (fim/formats.py does, for its FIM format). Nothing here loads
torch: the language server reads the registry, too.
"""
