"""`python -m lmms_textweighted`, which is what `torchrun -m` and `accelerate launch -m` start."""

from lmms_textweighted.cli import main

main()
