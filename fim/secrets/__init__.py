"""What is secret, by the name of a file and by what a text holds: one rule for every prompt.

It stands in `fim`, since a prompt is made here and since names of files are text, too: what asks
the disk (links, `.fimlsignore`) is lsp_server/context/, which asks these rules in turn.

The modules in reading order:
- paths: names of files that hold secrets, and the rules of a `.fimlsignore`
- keys: the places in a line that look like a key, a token or a password
- masking: a text with those places, and blocks of private keys, written over (mask)

Invariants:
- A masked text has as many code points and the same line ends as the text: offsets stay right.
- A line is masked by itself and by the name in front of it alone, so that the mask of a text stays
  the same while something else is typed, and prompts only grow.
- Nothing here reads a file, and nothing keeps a text beyond a bounded cache of short lines.
"""

from fim.secrets.masking import Masked, holds_secret, mask
from fim.secrets.paths import IgnoreRules, is_secret_path

__all__ = ["IgnoreRules", "Masked", "holds_secret", "is_secret_path", "mask"]
