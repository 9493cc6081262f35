"""`python -m model.export`: a model for other programs."""

from __future__ import annotations

import sys

from model.export.hugging_face import main

sys.exit(main())
