"""Where lmms-eval finds the model's classes: behind a look at the installed versions.

A version that is known to break lmms-eval or us is said in one line here, before what it breaks is imported.
"""

from lmms_textweighted.harness.stops import ending_the_run
from lmms_textweighted.upstream.known_bad import check_versions

with ending_the_run():
    check_versions(lmms_eval=True)

from lmms_textweighted.harness.model import LlavaTextweighted, LlavaTextweightedChat

__all__ = ["LlavaTextweighted", "LlavaTextweightedChat"]
