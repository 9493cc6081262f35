"""The recipe of the model that ships; not in the wheel. In the order of the work:

corpus/ (packages.toml, packages.lock -> the files to learn from) -> tokenizer.py -> train.py
(config.toml or gpu.toml; data.py makes its samples, syntax.py finds middles, network.py is the
model and muon.py its optimizer, checkpoint.py keeps it) -> export.py (int8) -> copying.py (the
weights of copying) -> attribution.py (the filter beside the model). plot.py draws a run.

Nothing imports this room. It loads neither the server nor its packages: the machine that trains may
lack them.
"""
