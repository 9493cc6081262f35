"""What of the user's files may go into a prompt.

- locations.py: the path that a document's URI names
- secret_files.py: which documents are secret, asked of the disk: links, and `.fimlsignore`

The rules themselves are fim/secrets/. Where the disk does not answer, a document counts as secret.
"""
