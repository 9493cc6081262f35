"""What of the user's files may go into a prompt.

- locations.py: the path that a document's URI names
- project.py: snippets of other files for a document's prompts, chosen beside the typing
- project_files.py: the files of a workspace folder that may be shown, within bounds
- secret_files.py: which documents are secret, asked of the disk: links, and `.fimlsignore`

The rules themselves are fim/secrets/ and fim/project/. Where the disk does not answer, a document
counts as secret.
"""
