"""Everything private or unpromised that is used of other packages, in one list. tests/test_upstream.py runs it.

When a release breaks something here, add to this list first: the check that would have named it.
"""

from __future__ import annotations

from itertools import chain

from lmms_textweighted.upstream.attention import ATTENTION
from lmms_textweighted.upstream.checkpoints import CHECKPOINTS
from lmms_textweighted.upstream.harness import HARNESS
from lmms_textweighted.upstream.llava_package import LLAVA
from lmms_textweighted.upstream.models import MODELS
from lmms_textweighted.upstream.others import OTHERS
from lmms_textweighted.upstream.unpromised import Unpromised

NAMES: tuple[Unpromised, ...] = tuple(
    chain(ATTENTION, MODELS, CHECKPOINTS, HARNESS, LLAVA, chain.from_iterable(OTHERS))
)
