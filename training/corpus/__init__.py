"""The corpus: permissively licensed Python, filtered, split by whole packages.

    python -m training.corpus build training/data      packages.toml and packages.lock -> the corpus
    python -m training.corpus pack training/data OUT     the corpus -> pieces of at most 25 MB
    python -m training.corpus unpack OUT training/data   and back

`build` has pip download the wheels that packages.lock names (they are opened as archives; nothing
is installed or run), adds the standard library of the running Python, and writes train.jsonl,
validation.jsonl and test.jsonl (one file a line: package, licence, path, text; grouped by package)
and manifest.json (version, licence, size and SHA-256 of each package and of what was written, and
what each filter dropped). The same wheels and the same Python give the same bytes. Files get their
names only when whole, the manifest last.

Held-out packages pass the plain filters only, so that they stay the same files when the others
grow; what resembles them is dropped from training. Functions that look like HumanEval's (an entry
point's name, and an example in the docstring) are cut out of it.
"""
