"""The families, each in one file that is named after its model_type and holds FAMILY.

- gemma, gpt_bigcode, granite, llama, mistral, qwen2, qwen3, stablelm, starcoder2.

model.families.registry finds them by looking through this folder.
"""
